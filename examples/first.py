"""A program in namespaces of its own, with exactly the descriptors and limits that it is given.

It prints what it sees: it is pid 1 and uid 0 on a machine with another name, another uptime and
no network; it has four descriptors, whatever this process has open, and may have sixteen. Any
user may do this where unprivileged user namespaces are allowed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import clonekit

LOOK_AROUND = r"""
echo "I am pid $$ and uid $(id -u) on $(uname -n)."
echo "Up for $(cut -d . -f 1 /proc/uptime) seconds."
echo "Network devices: $(sed -n 's/^ *\([^ ]*\):.*/\1/p' /proc/net/dev | xargs)."
echo "At most $(ulimit -n) descriptors and $(ulimit -t) s of processor time. Descriptors:"
for fd in /proc/self/fd/*; do
    file=$(readlink "$fd") && echo "  ${fd##*/} -> $file"
done
echo "Descriptor 7 says: $(cat <&7)"
"""

with tempfile.TemporaryFile() as note, Path("/dev/null").open("rb") as nothing:
    note.write(b"only what was given is here.")
    note.seek(0)
    try:
        process = clonekit.spawn(
            ["sh", "-c", LOOK_AROUND],
            namespaces=["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"],
            uid_map=0,
            gid_map=0,
            hostname="aquarium",
            time_offsets={"boottime": 1_000_000},
            fds={0: nothing, 1: 1, 2: 2, 7: note},
            rlimits={"nofile": 16, "cpu": 10},
            no_new_privs=True,
        )
    except clonekit.SpawnError as error:
        sys.exit(f"This machine refuses it. {error}")
with process:
    sys.exit(process.wait().returncode)
