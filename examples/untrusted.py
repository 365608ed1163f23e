"""A snippet of Python that nobody trusts: no network, no file but its own, 64 MiB and 1 s of CPU.

It sees the interpreter and its libraries, read-only, an empty /tmp of 8 MiB, and nothing else: no
home, no other process, no device but the harmless. What it prints is taken, up to a limit. Any user
may do this. Usage: untrusted.py [FILE]
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

import clonekit
from clonekit import mounts

SNIPPET = """
import os, socket
print("uid", os.getuid(), "in", os.getcwd(), "with", sorted(os.listdir("/")))
for what, attempt in {
    "network": lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
    "other files": lambda: open("/etc/shadow"),
    "writing": lambda: open("/usr/mine", "w"),
    "memory": lambda: bytearray(128 << 20),
}.items():
    try:
        attempt()
        print(what, "is open")
    except (OSError, MemoryError) as error:
        print(what, "is closed:", type(error).__name__)
print("processes here:", [name for name in os.listdir("/proc") if name.isdigit()])
open("/tmp/note", "w").write("mine")
print(open("/tmp/note").read())
while True:
    pass
"""
MOST_OUTPUT = 1 << 16
NOBODY = 65534

snippet = Path(sys.argv[1]).read_text() if len(sys.argv) > 1 else SNIPPET
interpreter = [Path(sys.base_prefix).resolve(), *map(Path, ("/usr", "/lib", "/lib64", "/bin"))]
system = [
    mounts.bind(path, path, read_only=True, nosuid=True, optional=True) for path in interpreter
]

with tempfile.TemporaryFile() as told:
    try:
        with clonekit.spawn(
            [os.path.realpath(sys.executable), "-I", "-u", "-c", snippet],
            env={"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"},
            namespaces=["user", "mnt", "pid", "net", "uts", "ipc", "cgroup"],
            uid_map=(NOBODY, os.geteuid()),
            gid_map=(NOBODY, os.getegid()),
            rootfs=mounts.tmpfs("/", size=1 << 20, read_only=True),
            mounts=[
                *system,
                mounts.proc(subset="pid"),
                mounts.dev(),
                mounts.tmpfs("/tmp", size=8 << 20),
            ],
            cwd="/tmp",
            fds={1: told, 2: told},
            rlimits={"as": 64 << 20, "cpu": (1, 2), "fsize": MOST_OUTPUT, "nofile": 32, "core": 0},
            setsid=True,
            capabilities=[],
            no_new_privs=True,
            landlock=clonekit.Landlock(write=["/tmp", "/dev"], best_effort=True),
            seccomp=clonekit.Filter("ALLOW").errno(
                "unshare", "setns", "mount", "umount2", "fsopen", "open_tree", "move_mount",
                "bpf", "perf_event_open", "ptrace", "keyctl", "add_key", "io_uring_setup",
            ),
            init=True,
        ) as process:  # fmt: skip
            ended = process.wait(timeout=30)
    except clonekit.SpawnError as error:
        sys.exit(f"This machine refuses it. {error}")
    told.seek(0)
    print(told.read(MOST_OUTPUT).decode(errors="replace"), end="")
    # Of a program that a signal has ended, init says so as a shell does.
    how = signal.Signals(ended.returncode - 128).name if ended.returncode > 128 else ended.how  # noqa: PLR2004
    print("It ended:", how)
