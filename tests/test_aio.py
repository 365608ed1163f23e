"""The child that waits, for asyncio: other tasks go on, and nothing is left behind."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from parent_snapshot import unchanged

from clonekit import DeclarationError, Fd, Slot, SpawnError, aio
from clonekit.steps import (
    change_directory,
    execute,
    open_file,
    open_pipe,
    place_descriptors,
    set_umask,
    system_call,
    write,
)

Test = Callable[..., Coroutine[Any, Any, None]]
BLOCKS = system_call("pause")


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run it in a loop of its own, and leave this process as it was."""
    with unchanged():
        asyncio.run(work)


def test_orders_have_the_results_of_the_plain_form(tmp_path: Path) -> None:
    async def work() -> None:
        async with await aio.nascent(umask=0o27) as child:
            assert await child.syscall("getpid") == child.child.pid
            assert await child.do(set_umask(0o77), set_umask(0)) == [0o27, 0o77]
            reader, _ = await child.do(open_pipe("r", "w"))
            assert await child.do(write(Slot("w"), b"hello")) == 5
            room = bytearray(5)
            assert await child.syscall("read", reader, room, 5) == 5
            assert room == b"hello"
            with open(tmp_path / "file", "wb") as file:  # noqa: ASYNC230 - it does not block
                given = await child.give(file, at=9)
                assert given.number == 9
                await child.syscall("write", given, b"there", 5)
                assert await child.syscall("fsync", Fd(file)) == 0
            assert (tmp_path / "file").read_bytes() == b"there"
            await child.do(write(Slot("w"), b" again"))
            process = await child.start(["sh", "-c", "exec cat >&3"], fds={0: reader, 3: given})
            with process:
                assert process.wait().status == 0
            assert (tmp_path / "file").read_bytes() == b"there again"

    run(work())


def test_an_error_leaves_the_child_alive() -> None:
    async def work() -> None:
        async with await aio.nascent() as child:
            for _ in range(3):
                with pytest.raises(FileNotFoundError, match="change_directory"):
                    await child.do(change_directory("/nowhere"))
                with pytest.raises(FileNotFoundError, match="execute"):
                    await child.start(["/nonexistent"])
            steps = [place_descriptors({1: 1}), execute(["true"])]
            with await child.start(steps) as process:
                assert process.wait().status == 0

    run(work())


def test_other_tasks_go_on_while_an_order_blocks() -> None:
    async def work() -> None:
        async with await aio.nascent() as child:
            order = asyncio.create_task(child.do(BLOCKS, deadline=60))
            for _ in range(1000):
                await asyncio.sleep(0)
            assert not order.done()
            order.cancel()
            with pytest.raises(asyncio.CancelledError):
                await order

    run(work())


def test_an_order_that_is_late_is_an_error() -> None:
    async def work() -> None:
        child = await aio.nascent()
        with pytest.raises(TimeoutError, match="pause"):
            await child.do(BLOCKS, deadline=0.2)

    run(work())


def test_a_second_order_meanwhile_is_refused() -> None:
    async def work() -> None:
        async with await aio.nascent() as child:
            order = asyncio.create_task(child.do(BLOCKS, deadline=60))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="another task's order"):
                await child.do(set_umask(0))
            assert not order.done()
            order.cancel()
            with pytest.raises(asyncio.CancelledError):
                await order
            with pytest.raises(ValueError, match="holds no child"):
                await child.do(set_umask(0))

    run(work())


@pytest.mark.parametrize("at", ["waits", "order", "start"])
def test_a_child_that_dies_is_an_error_at_once(at: str) -> None:
    async def work() -> None:
        child = await aio.nascent(deadline=60)
        uses: dict[str, Callable[[], Awaitable[object]]] = {
            "waits": lambda: child.do(set_umask(0)),
            "order": lambda: child.do(BLOCKS),
            "start": lambda: child.start([BLOCKS, execute(["true"])]),
        }
        if at == "waits":
            os.kill(child.child.pid, signal.SIGKILL)
        use = asyncio.ensure_future(uses[at]())
        if at != "waits":
            for _ in range(3):
                await asyncio.sleep(0)
            os.kill(child.child.pid, signal.SIGKILL)
        with pytest.raises(SpawnError, match="signal 9") as told:
            await asyncio.wait_for(use, 30)
        assert told.value.errno == errno.ECHILD

    run(work())


def test_many_children_are_driven_at_once() -> None:
    async def one(number: int) -> int:
        async with await aio.nascent() as child:
            assert await child.do(set_umask(number)) >= 0
            assert await child.do(set_umask(0)) == number
            await child.do(open_file("/dev/null", name="null"))
            with await child.start(["true"], fds={0: Slot("null")}) as process:
                return (await aio.wait(process)).returncode

    async def work() -> None:
        assert await asyncio.gather(*(one(number) for number in range(300))) == [0] * 300
        assert threading.active_count() == 1

    run(work())


def test_a_declaration_is_refused_before_there_is_a_child() -> None:
    async def work() -> None:
        for fields in ({"uid": 1}, {"env": {}}, {"umsk": 1}):
            with pytest.raises(DeclarationError):
                await aio.nascent(**fields)
        with pytest.raises(FileNotFoundError):
            await aio.nascent(cwd="/nowhere")

    run(work())
