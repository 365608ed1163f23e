"""A cancelled creation leaves no child, no pipe and no pidfd; a cancelled wait leaves the child."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Coroutine
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from looping import Run, loop_of, nothing_new, reaped

from clonekit import aio

Create = Callable[[], Coroutine[Any, Any, Process]]
PIPES = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE}
#: More turns of a loop than any creation takes.
TURNS = 14


def plain() -> Coroutine[Any, Any, Process]:
    return aio.create_subprocess_exec("sleep", "1000")


def piped() -> Coroutine[Any, Any, Process]:
    return aio.create_subprocess_exec("sleep", "1000", **PIPES)


def brief() -> Coroutine[Any, Any, Process]:
    """One that has written and ended before its creation has."""
    return aio.create_subprocess_shell("echo out; echo error >&2", **PIPES)


async def end(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    await process.communicate()


async def done(future: asyncio.Future[object] | None) -> None:
    """What a task that has yielded this waits for has come."""
    if future is not None:
        future._asyncio_future_blocking = False  # type: ignore[attr-defined]
        await asyncio.wait([future])


async def cancelled_after(turns: int, create: Create, times: int = 1) -> bool:
    """Cancel a creation after so many turns of the loop; whether it was in time."""
    task = asyncio.create_task(create())
    for _ in range(times):
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
    try:
        await end(await task)
    except asyncio.CancelledError:
        return True
    return False


@pytest.mark.parametrize("create", [plain, piped, brief])
def test_a_cancelled_creation_leaves_nothing(run: Run, create: Create) -> None:
    async def work() -> list[bool]:
        found = []
        for turns in range(TURNS):
            with nothing_new():
                found.append(await cancelled_after(turns, create))
                await asyncio.sleep(0)
        return found

    found = run(work)
    assert found[1]
    assert not found[-1]


def test_thousands_of_cancelled_creations_leave_nothing(run: Run) -> None:
    async def work() -> int:
        cancelled = 0
        for create in (plain, piped, brief):
            for round_of in range(70):
                turns = range(round_of % 2, TURNS)
                done = await asyncio.gather(*(cancelled_after(each, create) for each in turns))
                cancelled += sum(done)
        return cancelled

    assert run(work) > 1000


def test_a_creation_that_is_cancelled_twice_leaves_nothing_but_for_the_loop_to_see(
    run: Run,
) -> None:
    async def work() -> None:
        for turns in range(1, TURNS):
            for create in (plain, piped):
                with nothing_new():
                    await cancelled_after(turns, create, times=2)
                    await reaped()

    run(work)


@contextmanager
def grandchild() -> Any:
    """What makes a child whose own child has its pipes, until the end of this."""
    reader, writer = os.pipe()
    try:
        yield lambda: aio.create_subprocess_shell(
            f"cat /dev/fd/{reader} & wait", pass_fds=[reader], **PIPES
        )
    finally:
        os.close(reader)
        os.close(writer)


def test_a_grandchild_that_keeps_the_pipes_holds_no_cancelled_creation(run: Run) -> None:
    async def work() -> None:
        for turns in range(1, 6):
            with nothing_new(), grandchild() as create:
                assert await cancelled_after(turns, create)
                await asyncio.sleep(0)

    run(work)


@pytest.mark.parametrize("create", [piped, brief])
@pytest.mark.parametrize("name", ["asyncio", "uvloop"])
def test_a_loop_that_is_given_up_in_a_creation_ends(name: str, create: Create) -> None:
    """asyncio.run cancels all tasks at its end, at whatever they are."""

    async def work(turns: int) -> asyncio.Task[Process]:
        task = asyncio.create_task(create())
        for _ in range(turns):
            await asyncio.sleep(0)
        return task

    make = loop_of(name)
    with nothing_new():
        for turns in range(4):
            with asyncio.Runner(loop_factory=make) as runner:
                task = runner.run(work(turns))
            assert task.cancelled()


@pytest.mark.parametrize("create", [plain, piped, brief])
def test_a_creation_that_is_closed_leaves_nothing(run: Run, create: Create) -> None:
    """A coroutine that is not run to its end gets GeneratorExit, and may not wait."""

    async def work() -> None:
        for turns in range(1, 5):
            with nothing_new():
                creation = create().__await__()
                try:
                    for _ in range(turns):
                        await done(next(creation))
                except StopIteration as made:
                    await end(made.value)
                creation.close()
                await reaped()

    run(work)


def test_a_wait_that_is_given_up_leaves_the_child(run: Run) -> None:
    async def work() -> None:
        process = await aio.create_subprocess_exec("sleep", "1000")
        for _ in range(20):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(process.wait(), 0.001)
        assert process.returncode is None
        assert not process._transport._waiters  # type: ignore[attr-defined]
        waits = [asyncio.create_task(process.wait()) for _ in range(100)]
        await asyncio.sleep(0)
        for wait in waits[::2]:
            wait.cancel()
        process.terminate()
        ends = await asyncio.gather(*waits, return_exceptions=True)
        assert ends[1::2] == [-signal.SIGTERM] * 50
        assert all(isinstance(each, asyncio.CancelledError) for each in ends[::2])

    run(work)


def test_communicate_that_is_given_up_leaves_the_child(run: Run) -> None:
    script = "echo out; exec sleep 1000"  # a child of its own could hold the pipes after its end

    async def work() -> None:
        for _ in range(20):
            process = await aio.create_subprocess_exec("sh", "-c", script, **PIPES)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(process.communicate(b"told" * 100_000), 0.01)
            assert process.returncode is None
            process.kill()
            assert await process.wait() == -signal.SIGKILL

    run(work)
