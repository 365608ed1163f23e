"""An agent's tools: shell commands of its own devising, many at once, by asyncio.

Each sees the system read-only and a /tmp of its own, has no network and no other process, and gets
five seconds. Its output is read as it comes, up to a limit. Any user may do this.
Usage: tools.py [COMMAND...]
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import clonekit
from clonekit import aio, mounts

COMMANDS = [
    "echo I am $(id -u) and process $$",
    "ls / | wc -l; cat /etc/shadow",
    "yes",
    "sleep 60",
    "echo mine > /tmp/note; cat /tmp/note",
    "while :; do :; done",
    "cat < /dev/tcp/192.0.2.1/80",
    "kill -KILL -1; ps 2>/dev/null | wc -l; exit 3",
]
SECONDS = 5
MOST_OUTPUT = 1 << 10
NOBODY = 65534

box = clonekit.Spec(
    [],
    env={"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"},
    namespaces=["user", "mnt", "pid", "net", "uts", "ipc", "cgroup"],
    uid_map=(NOBODY, os.geteuid()),
    gid_map=(NOBODY, os.getegid()),
    rootfs=mounts.tmpfs("/", size=1 << 20, read_only=True),
    mounts=[
        *(
            mounts.bind(path, path, read_only=True, nosuid=True, optional=True)
            for path in map(Path, ("/usr", "/bin", "/lib", "/lib64"))
        ),
        mounts.proc(subset="pid"),
        mounts.dev(),
        mounts.tmpfs("/tmp", size=8 << 20),
    ],
    cwd="/tmp",
    rlimits={"as": 256 << 20, "cpu": 1, "fsize": 1 << 20, "nofile": 64, "core": 0},
    setsid=True,
    capabilities=[],
    no_new_privs=True,
    init=True,
)


async def use(command: str) -> str:
    """What a command prints, and how it ends."""
    child = await aio.create_subprocess_exec(
        "bash", "-c", command,
        stdin=aio.DEVNULL, stdout=aio.PIPE, stderr=aio.STDOUT, spec=box,
    )  # fmt: skip
    assert child.stdout  # noqa: S101 - it was asked for
    told = b""
    ends = "ended with"
    try:
        async with asyncio.timeout(SECONDS):
            while part := await child.stdout.read(MOST_OUTPUT):
                told += part
                if len(told) > MOST_OUTPUT:
                    ends = "told more than it may, ended with"
                    child.kill()
                    break
            await child.communicate()  # what is left in the pipe, and the end
    except TimeoutError:
        ends = f"ran for {SECONDS} s, ended with"
        child.kill()
        await child.communicate()
    ends = f"{ends} {child.returncode}"
    text = told.decode(errors="replace").strip().replace("\n", " | ")
    return f"{command[:45]:45}  {ends}: {text[:60]}"


async def main() -> None:
    """All at once, each line when it is there."""
    for line in asyncio.as_completed([use(command) for command in sys.argv[1:] or COMMANDS]):
        print(await line)


try:
    asyncio.run(main())
except clonekit.SpawnError as error:
    sys.exit(f"tools.py: {error}")
