"""A process that makes children in one way, by `clonekit.Popen` and by `subprocess.Popen`.

A script, which answers as scene.py does: `popens.py '{"way": "cwd", "heap": 0, ...}'`. With
asyncio both are in one loop, and the clock is read in there.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import time
from functools import partial
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

from scene import NOBODY, in_python, perform

import clonekit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from scene import Contestant

PIPELINE = "echo a | cat"


def communicated(process: subprocess.Popen[bytes]) -> int:
    """How it ended, when all that it wrote was read."""
    process.communicate()
    return process.returncode


def ways_of(target: str) -> dict[str, Callable[[Any], int]]:
    """What is done with each of the two classes."""
    argv = [target]
    directory, name = os.path.split(target)
    number = itertools.count()
    ids = {"user": NOBODY, "group": NOBODY}
    os.environ["PATH"] = f"{os.defpath}:{directory}"
    return {
        "plain": lambda popen: popen(argv).wait(),
        "new_argv": lambda popen: popen([*argv, str(next(number))]).wait(),
        "path": lambda popen: popen([name]).wait(),
        "user": lambda popen: popen(argv, **ids).wait(),
        "groups": lambda popen: popen(argv, **ids, extra_groups=[]).wait(),
        "cwd": lambda popen: popen(argv, cwd="/").wait(),
        "session": lambda popen: popen(argv, start_new_session=True).wait(),
        "pipe": lambda popen: communicated(popen(argv, stdout=PIPE)),
        "pipeline": lambda popen: communicated(popen(PIPELINE, shell=True, stdout=PIPE)),  # noqa: S604 - what is measured
    }


def ways_in_loop(target: str) -> dict[str, Callable[[Any], Awaitable[int | None]]]:
    """What is done with each of the two functions."""

    async def aio(create: Any) -> int:
        status: int = await (await create(target)).wait()
        return status

    async def aio_pipe(create: Any) -> int | None:
        process: asyncio.subprocess.Process = await create(target, stdout=PIPE)
        await process.communicate()
        return process.returncode

    async def aio_ten(create: Any) -> int:
        return max(await asyncio.gather(*(aio(create) for _ in range(10))))

    return {"aio": aio, "aio_pipe": aio_pipe, "aio_ten": aio_ten}


def in_loop(loop: asyncio.AbstractEventLoop, spawn: Callable[[], Awaitable[Any]]) -> Contestant:
    """A contestant that is awaited."""

    async def timed() -> int:
        before = time.perf_counter_ns()
        status = await spawn()
        taken = time.perf_counter_ns() - before
        if status:
            msg = f"the program ended with {status}"
            raise ChildProcessError(msg)
        return taken

    return lambda: loop.run_until_complete(timed())


def contestants(scene: dict[str, Any]) -> dict[str, Contestant]:
    """Ours and the other."""
    way, target = scene["way"], scene["target"]
    ways, asynchronous = ways_of(target), ways_in_loop(target)
    if way in ways:
        classes = {"clonekit": clonekit.Popen, "subprocess": subprocess.Popen}
        return {name: in_python(partial(ways[way], popen)) for name, popen in classes.items()}
    loop = asyncio.new_event_loop()
    functions = {
        "clonekit": clonekit.aio.create_subprocess_exec,
        "subprocess": asyncio.create_subprocess_exec,
    }
    return {
        name: in_loop(loop, partial(asynchronous[way], create))
        for name, create in functions.items()
    }


if __name__ == "__main__":
    perform(contestants)
