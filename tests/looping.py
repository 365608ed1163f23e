"""Loops to run the same tests in, and what they must leave."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from parent_snapshot import changes, children, descriptors, snapshot

from clonekit import aio

TURNS = 20
Work = Callable[[], Coroutine[Any, Any, Any]]
Run = Callable[[Work], Any]


def loop_of(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes a loop."""
    if name == "asyncio":
        return asyncio.SelectorEventLoop
    return pytest.importorskip("uvloop").new_event_loop  # type: ignore[no-any-return]


@contextmanager
def all_heard(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Nothing was thrown that only the loop's handler of exceptions has seen."""
    heard: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: heard.append(context))
    yield
    # asyncio before 3.11.4 tells of a stdin that has broken and that nobody waits for.
    assert [each for each in heard if not isinstance(each.get("exception"), ConnectionError)] == []


@contextmanager
def nothing_new() -> Iterator[None]:
    """Assert that no descriptor and no child is there that was not there before."""
    before = descriptors(), children()
    yield
    gc.collect()
    after = descriptors(), children()
    assert after == before


async def turned() -> None:
    """The loop has made more turns than anything takes that was closed in it."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def reaped() -> None:
    """All children were reaped, and what was closed is."""
    async with asyncio.timeout(60):
        while any("pidfd" in target for target in descriptors().values()):  # noqa: ASYNC110 - the loop has no event for it
            await asyncio.sleep(0.001)
    await turned()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run work in a loop of each kind: this process is as before, in the loop and after it."""
    make = loop_of(request.param)

    def in_loop(work: Work, *, debug: bool = False) -> Any:
        async def watched() -> Any:
            first = await aio.create_subprocess_exec("true", stdin=PIPE, stdout=PIPE)
            await first.communicate()  # libuv opens a descriptor of its own with the first pipe
            await turned()
            with all_heard(asyncio.get_running_loop()), nothing_new():
                result = await work()
                await turned()
                return result

        with asyncio.Runner(loop_factory=make) as runner:  # libuv makes a pipe that stays
            runner.run(asyncio.sleep(0))
        before = snapshot()
        with asyncio.Runner(loop_factory=make, debug=debug) as runner:
            result = runner.run(watched())
        gc.collect()
        assert changes(before, snapshot()) == {}
        return result

    return in_loop


def alone(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of Python's in a process of its own."""
    command = [sys.executable, "-X", "faulthandler", "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
