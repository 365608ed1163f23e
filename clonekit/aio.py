"""For asyncio: subprocesses, the child that waits for orders, and a supervisor.

No thread waits, and no task.

The child says that an order is done by a byte on its socket, which the loop watches; its end is
seen by its pidfd.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import time
from collections.abc import Awaitable

from clonekit.child import DEADLINE, Refused
from clonekit.compiled import immediate
from clonekit.completion import CHANNEL
from clonekit.driven import RUNNING
from clonekit.errors import DeclarationError, SpawnError
from clonekit.linux.abi import ffi, lib
from clonekit.linux.memory import address
from clonekit.notify import answered
from clonekit.popen import DEVNULL, PIPE, STDOUT
from clonekit.steps.opening import close_descriptor
from clonekit.steps.sandbox import system_call
from clonekit.streamed import create_subprocess_exec, create_subprocess_shell
from clonekit.waiting import Nascent as Driven
from clonekit.waiting import prepared

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Any, Self

    from clonekit.notify import Listener
    from clonekit.orders import Order
    from clonekit.process import Exit, Process
    from clonekit.records import ChildFd, Operand
    from clonekit.request import Request
    from clonekit.steps.execute import Text
    from clonekit.steps.step import Step

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "Nascent",
    "create_subprocess_exec",
    "create_subprocess_shell",
    "nascent",
    "serve",
    "wait",
]
#: Seconds after which the child's state is looked at, though nothing has told of it: a start moves
#: the socket, and a filter may forbid the byte.
SOONEST, LATEST = 0.001, 0.05
BYTE = b"."


class Nascent:
    """`clonekit.Nascent` with orders that are awaited. Made by `clonekit.aio.nascent()`.

    One order at a time: a second task that gives one meanwhile gets RuntimeError. A task that is
    cancelled in an order ends the child: a call that blocks cannot be abandoned.

    Attributes:
        child: the same child, for what needs no waiting: `pid`, `fileno()`, `names`, `getfd`.
    """

    __slots__ = ("_bell", "_busy", "child")

    def __init__(self, child: Driven) -> None:
        self.child = child
        self._busy = False
        self._bell = immediate("write", 0, address(BYTE), len(BYTE))

    async def do(self, *steps: Step, deadline: float | None = None) -> Any:
        """Have the child carry out these steps: see `clonekit.Nascent.do`."""
        order = self.child.order_of(steps)
        self._bell.operand[0] = self.child.reserved()[CHANNEL]
        await self._carry_out(order, lib.CK_STAYS, deadline, self._bell)
        results = self.child.results(order)
        return results[0] if len(steps) == 1 else results

    async def syscall(
        self, name: str | int, *operands: Operand | bytearray, deadline: float | None = None
    ) -> Any:
        """Have the child make a system call: see `clonekit.Nascent.syscall`."""
        return await self.do(system_call(name, *operands), deadline=deadline)  # type: ignore[arg-type]

    async def give(self, fd: object, at: int | None = None) -> ChildFd:
        """Give the child a descriptor of ours: see `clonekit.Nascent.give`."""
        copy: ChildFd = await self.do(self.child.copying(fd, at))
        if at is None or copy.number == at:
            return copy
        given: ChildFd = await self.do(self.child.placing(copy, at))
        await self.do(close_descriptor(copy))
        return given

    async def start(
        self,
        argv: Sequence[Text] | Sequence[Step],
        /,
        *,
        deadline: float | None = None,
        **declaration: Any,
    ) -> Process:
        """Begin the program: see `clonekit.Nascent.start`."""
        order = self.child.starting(argv, declaration)
        stays = lib.CK_STAYS if order.repeatable else lib.CK_ENDS
        process = await self._carry_out(order, stays, deadline, ffi.NULL)
        assert process is not None  # noqa: S101 - an exec succeeds, or is a failure
        return process

    async def _carry_out(
        self, order: Order, stays: int, deadline: float | None, bell: Any
    ) -> Process | None:
        """Give an order, and let other tasks run until it is done."""
        if self._busy:
            msg = "the child is at another task's order; await that first"
            raise RuntimeError(msg)
        self.child.check()
        self._busy = True
        try:
            limit = self.child.hand_over(order, stays, deadline, bell)
            state = await self._attend(time.monotonic() + limit)
            return self.child.judge(order, state, limit)
        except (DeclarationError, SpawnError, Refused):
            raise
        except BaseException:  # cancelled, or a handler has raised
            self.child.discard()
            raise
        finally:
            self._busy = False

    async def _attend(self, until: float) -> int:
        """Wait until the order has ended, or time is up."""
        loop = asyncio.get_running_loop()
        told = asyncio.Event()
        channel, pidfd = self.child.channel, self.child.fileno()
        pause = SOONEST
        loop.add_reader(channel, told.set)
        loop.add_reader(pidfd, told.set)
        try:
            while True:
                state = self.child.look()
                left = until - time.monotonic()
                if state != RUNNING or left <= 0:
                    return state
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(told.wait(), min(pause, left))
                told.clear()
                self.child.drain()
                pause = min(pause * 2, LATEST)
        finally:
            loop.remove_reader(channel)
            loop.remove_reader(pidfd)

    def kill(self) -> None:
        """End the child, and reap it. One that has begun its program is not touched."""
        self.child.kill()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def __repr__(self) -> str:
        return f"<aio {self.child!r}>"


async def wait(process: Process) -> Exit:
    """Wait until a process has ended, and reap it: the loop watches its pidfd.

    For a time-out, `asyncio.wait_for`. Raises: what `Process.wait` raises.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(process.fileno(), ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(process.fileno())
    return process.wait()


async def serve(listener: Listener, handler: Callable[[Request], object]) -> None:
    """Let `handler(request)`, a function or a coroutine, answer each request: see `Listener.serve`.

    Coroutines are tasks, so that several calls wait at once. It ends when no process is left that
    has the filter, or with `listener.stop()`; when it is cancelled, what waits fails with EPERM.
    """
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()
    with listener.attended():
        loop.add_reader(listener.fileno(), told.set)
        try:
            ended = False
            while tasks or not ended:
                await told.wait()
                told.clear()
                while not ended and (request := listener.receive(0)):
                    task = loop.create_task(_answer(request, handler))
                    task.add_done_callback(lambda _: told.set())
                    tasks.add(task)
                for task in [task for task in tasks if task.done()]:
                    tasks.discard(task)
                    task.result()
                if not ended and listener.events() & select.EPOLLHUP:
                    ended = True
                    loop.remove_reader(listener.fileno())
                    told.set()
        finally:
            loop.remove_reader(listener.fileno())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _answer(request: Request, handler: Callable[[Request], object]) -> None:
    """One request's answer."""
    with answered(request):
        result = handler(request)
        if isinstance(result, Awaitable):
            await result


async def nascent(*, deadline: float = DEADLINE, **declaration: Any) -> Nascent:
    """Make a child that waits for orders: see `clonekit.nascent`.

    Example: `async with await clonekit.aio.nascent() as child: await child.do(...)`.
    """
    clone, steps = prepared(declaration)
    made = Nascent(Driven(clone, deadline))
    if steps:
        try:
            await made.do(*steps)
        except BaseException:
            made.kill()
            raise
    return made
