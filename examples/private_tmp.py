"""A program that is not trusted: a /tmp of its own, three descriptors, and little else.

In a mount namespace of its own an empty directory of ours is mounted over /tmp. The program reads
its task from descriptor 0, has 1 and 2, may write below /tmp alone and read only the system. It
has no network, is nobody, and what it leaves in /tmp is ours to look at.
Usage: private_tmp.py [PROGRAM ARG...]
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from clonekit import Program, SpawnError, mounts
from clonekit.linux import landlock
from clonekit.steps import (
    change_directory,
    enter_root,
    execute,
    map_gid,
    map_uid,
    mount,
    new_namespaces,
    new_root,
    place_descriptors,
    restrict_with_landlock,
    set_gid,
    set_groups,
    set_no_new_privs,
    set_propagation,
    set_rlimit,
    set_uid,
)

UNTRUSTED = """
echo "uid $(id -u), in $(pwd): $(ls -A | wc -l) files"
echo "the task: $(cat)"
echo "done" >result && echo "can write in /tmp"
ls / >/dev/null 2>&1 || echo "cannot look around"
(echo >/usr/mine) 2>/dev/null || echo "cannot write elsewhere"
"""
NOBODY = 65534
SYSTEM = [path for path in ("/usr", "/bin", "/lib", "/lib64", "/etc") if Path(path).exists()]

argv = sys.argv[1:] or ["sh", "-c", UNTRUSTED]
root = os.geteuid() == 0
if not landlock.abi():
    sys.exit("This kernel has no Landlock, so the program could read every file of its user.")

with tempfile.TemporaryDirectory() as private, tempfile.TemporaryFile() as task:
    task.write(b"add one and one")
    task.seek(0)
    if root:
        os.chown(private, NOBODY, NOBODY)
    ruleset = landlock.Ruleset(
        execute=SYSTEM, read=[private], write=[private, "/dev/null"], best_effort=True
    )
    program = Program(
        [
            # Root gives up its uid. Anybody else is nobody in a user namespace, which gives the
            # right to mount in there until exec.
            new_namespaces(["mnt", "pid", "net", "ipc", *([] if root else ["user"])]),
            *([] if root else [map_uid(NOBODY), map_gid(NOBODY)]),
            set_propagation(),
            new_root("/"),
            mount(mounts.bind(private, "/tmp", nosuid=True, nodev=True)),
            enter_root("/"),
            change_directory("/tmp"),
            place_descriptors({0: task, 1: 1, 2: 2}),
            set_rlimit("nofile", 16),
            set_rlimit("fsize", 1 << 20),
            set_rlimit("cpu", 10),
            *([set_groups([]), set_gid(NOBODY), set_uid(NOBODY)] if root else []),
            set_no_new_privs(),
            restrict_with_landlock(ruleset),
            execute(argv, env={"PATH": "/usr/bin:/bin", "HOME": "/tmp"}),
        ]
    )
    try:
        with program.spawn() as process:
            ended = process.wait(timeout=30)
    except SpawnError as error:
        sys.exit(f"This machine refuses it. {error}")
    print("It left", sorted(path.name for path in Path(private).iterdir()), "and ended:", ended)
sys.exit(ended.returncode)
