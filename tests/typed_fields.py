"""Uses of what `subprocess` has not, to be checked, and never run."""

from __future__ import annotations

import asyncio.subprocess
from subprocess import CompletedProcess
from typing import assert_type

from clonekit import DEVNULL, PIPE, Exit, Popen, Spec, aio, call, check_output, run


def accepted(spec: Spec) -> None:
    assert_type(run(["ls"], text=True, rlimits={"nofile": 64}), CompletedProcess[str])
    assert_type(run(spec=spec, check=True), CompletedProcess[bytes])
    assert_type(check_output(["ls"], nice=5, no_new_privs=True, encoding="utf-8"), str)
    assert_type(call("ls", shell=True, namespaces=["user", "net"], spec=None), int)
    process = Popen(["ls"], stdout=PIPE, cgroup=None, mounts=[])
    assert_type(process, Popen[bytes])
    assert_type(process.pidfd, int)
    assert_type(process.exit, Exit | None)


async def awaited() -> None:
    child = await aio.create_subprocess_exec("ls", b"-l", stdout=PIPE, cwd="/", rlimits={"cpu": 5})
    assert_type(child, asyncio.subprocess.Process)
    other = await aio.create_subprocess_shell("ls", DEVNULL, limit=10, user=0, nice=5)
    assert_type(other, asyncio.subprocess.Process)
    await aio.create_subprocess_exec("ls", text=True)  # type: ignore[arg-type]
    await aio.create_subprocess_exec("ls", rlimit=5)  # type: ignore[call-arg]
    await aio.create_subprocess_exec(5)  # type: ignore[arg-type]


def refused() -> None:
    run(["ls"], rlimit={"nofile": 64})  # type: ignore[call-overload]
    Popen(["ls"], preexec_fn=print)  # type: ignore[call-overload]
    call(["ls"], spec=["ls"])  # type: ignore[arg-type]
