"""A child that has not begun its program, and does what it is told until it does.

It shares our memory, and has all else of its own: descriptors, directory, limits, and the
namespaces that it was made with. What we can do to ourselves we can do to it: step by step, with a
look at each result, and with things done by us in between. docs/uses.md has examples.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import time
from signal import SIGKILL, pidfd_send_signal

from clonekit.arrange import ABOVE, CGROUP, Arranged, reserved_from
from clonekit.child import DEADLINE, Child, Refused, limit_of, send
from clonekit.compiled import Compiled, OurPidfd, immediate
from clonekit.completion import CHANNEL, EXECUTE, beginning
from clonekit.driven import GONE, RUNNING, Driven, handle_of
from clonekit.errors import DeclarationError, SpawnError
from clonekit.failure import died, failure, late
from clonekit.linux.abi import ffi, lib
from clonekit.linux.memory import address
from clonekit.manners import DRIVEN, ORDERED, STARTED
from clonekit.orders import Order
from clonekit.records import ChildFd, Fd, Slot
from clonekit.spec import OF_EXEC, Spec, in_order, own_steps, refuse_whole_machine
from clonekit.steps.descriptors import place_descriptors
from clonekit.steps.sandbox import set_attribute
from clonekit.steps.signals import PARENT, set_signal_mask
from clonekit.steps.step import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Literal, overload

    from clonekit.process import Process
    from clonekit.steps.execute import Text
    from clonekit.suspended import Suspended
else:
    from clonekit.steps.step import overload

POLLFD = struct.Struct("<ihh")
#: All signals, for a child whose start has failed after it lifted the block.
EVERY_SIGNAL = tuple(range(1, 65))
NOT_REPEATED = "the child is gone: a start that changes ids, filters or suspends is not repeated"
#: Why an order may be refused.
REFUSALS = {
    errno.EBUSY: "it is at another order; one thread at a time may drive it",
    errno.EPERM: "it has the ids that we have given up; start or kill it before that",
}


class Opening(Compiled):
    """What a child that waits does before its first order.

    It takes a table of its own, ends when we do, and closes all but what it needs to wait: the
    socket over which it is given descriptors, and a pidfd of ours.

    Attributes:
        kept: the numbers that these have in the child.
    """

    __slots__ = ("kept",)

    def __init__(self, clone: Sequence[Step]) -> None:
        has_clone3 = bool(lib.ck_has_clone3())
        first = beginning(DRIVEN, inherits=False, has_clone3=has_clone3)
        steps = [*first, *clone, place_descriptors({})]
        arranged = Arranged(steps, DRIVEN, (CHANNEL, PARENT))
        self._compile(arranged, steps, has_clone3=has_clone3)
        self.kept = {slot: arranged.moved[Fd(slot)] for slot in (CHANNEL, PARENT)}

    def values(self, channel: int, parent: int) -> list[int]:
        """The input registers."""
        known = {
            CHANNEL: channel,
            PARENT: parent,
            ABOVE: max(channel, parent) + 1,
        }
        values = []
        for slot in self.setup.inputs:
            if slot.name.startswith(CGROUP):
                known[slot] = int(slot.name.removeprefix(CGROUP))
            if slot not in known:
                msg = f"{slot} has no value yet; give a path or a descriptor"
                raise DeclarationError(msg)
            values.append(known[slot])
        return values


#: The opening that asks nothing more of the clone, by what it depends on.
_plain: dict[tuple[int, int], Opening] = {}


def opening_of(clone: Sequence[Step]) -> Opening:
    """An opening that asks this of the clone; the usual one is compiled once."""
    if clone:
        return Opening(clone)
    key = lib.ck_has_clone3(), reserved_from()
    if key not in _plain:
        _plain[key] = Opening(clone)
    return _plain[key]


class Watch:
    """The call by which a child that waits sees whether we are there: ppoll.

    It looks at a pidfd of ours, and at the socket between us, whose other end an exec closes.
    """

    __slots__ = ("_polled", "_timeout", "record")

    def __init__(self, numbers: dict[Slot, int]) -> None:
        self._polled = bytearray(POLLFD.size * 2)
        self._timeout = bytes(16)
        self.record = immediate("ppoll", address(self._polled), 2, address(self._timeout), 0, 8)
        self.follow(numbers)

    def follow(self, numbers: dict[Slot, int]) -> None:
        """The child has these descriptors at these numbers now."""
        POLLFD.pack_into(self._polled, 0, numbers[PARENT], lib.POLLIN, 0)
        POLLFD.pack_into(self._polled, POLLFD.size, numbers[CHANNEL], 0, 0)


class Use:
    """While lines of ours use a child's memory, whoever kills it leaves its end to the last one.

    That is a handler of a signal, which may come between any two lines, or another thread.
    """

    __slots__ = ("_child",)

    def __init__(self, child: Nascent) -> None:
        self._child = child

    def __enter__(self) -> None:
        self._child.uses += 1

    def __exit__(self, *_: object) -> None:
        child = self._child
        child.uses -= 1
        if child.killed and not child.uses:
            child.kill()


class Nascent(Child):
    """A child that shares our memory and waits for orders, until it is started.

    Made by `nascent()`. As a context manager it leaves nothing: at the block's end a child that was
    not started is killed and reaped. It is safe to drive from one thread at a time. It ends with
    us, and with the *thread* that made it.
    """

    __slots__ = ("_driven", "_handle", "_numbers", "_thread", "_watch", "killed", "uses")
    manner = ORDERED

    def __init__(self, opening: Opening, deadline: float) -> None:
        super().__init__(-1, -1, deadline)
        self.uses, self.killed = 0, False  # what `Use` counts, and whether it was killed meanwhile
        self._driven = driven = Driven()
        self._handle: Any = None  # what it is when it has begun its program
        self._thread = threading.get_native_id()
        self._numbers = dict(opening.kept)
        self._watch = Watch(self._numbers)
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = None
        try:
            driven.struct.channel = ends[0].detach()
            os.set_blocking(self.channel, False)
            parent = OurPidfd()
            driven.begin(opening, opening.values(ends[1].fileno(), parent.fd), lib.CK_STAYS_DONE)
            self.pid, self._pidfd = driven.struct.pid, driven.struct.pidfd
            driven.struct.frame.watch = self._watch.record
            self._finish(opening, deadline)
            self.state = "it waits"
        except BaseException:
            self._pidfd = -1
            driven.discard(None)
            raise
        finally:
            for end in ends:
                end.close()
            if parent is not None:
                parent.close()

    # What its asyncio form uses, too.

    @property
    def channel(self) -> int:
        """Our end of the socket over which it is given descriptors."""
        return int(self._driven.struct.channel)

    def reserved(self) -> dict[Slot, int]:
        """Where it has its end of that, and a pidfd of ours."""
        return self._numbers

    def look(self) -> int:
        """Its state, without waiting."""
        return self._driven.attend(0)

    def drain(self) -> None:
        """Take what its bell has written."""
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while os.read(self.channel, 64):
                pass

    # Orders.

    def _carry_out(self, order: Order, deadline: float | None) -> list[Any]:
        self._run(order, lib.CK_STAYS, deadline)
        return self.results(order)

    def _run(self, order: Order, stays: int, deadline: float | None) -> Process | None:
        """Give an order, wait until it is carried out, and judge it."""
        self.check()
        try:
            return self._finish(order, self.hand_over(order, stays, deadline))
        except (DeclarationError, SpawnError, Refused):
            raise
        except BaseException:  # a handler has raised: nobody knows how far the order is
            self.discard()
            raise

    def results(self, order: Order) -> list[Any]:
        """What an order that was carried out has brought."""
        with Use(self):
            self.check()  # a handler may have killed the child since
            frame = self._driven.struct.frame
            scratch = ffi.buffer(frame.scratch, order.struct.scratch_size)[:]
            return order.outcome(self, frame.registers, scratch)

    def hand_over(
        self, order: Order, stays: int, deadline: float | None, bell: Any = ffi.NULL
    ) -> float:
        """Give the child an order, and what it needs for it; say how long it may take."""
        with Use(self):
            self.check()
            return self._hand_over(order, stays, deadline, bell)

    def _hand_over(self, order: Order, stays: int, deadline: float | None, bell: Any) -> float:
        limit = self.limit(deadline)
        if self.look() == RUNNING:
            raise Refused(errno.EBUSY, REFUSALS[errno.EBUSY])
        if os.geteuid() != self._driven.struct.uid:
            raise Refused(errno.EPERM, REFUSALS[errno.EPERM])
        self._handle = handle_of(order) if order.argv else None
        if order.given:
            send(self.channel, order.given)
        if order.schedules:
            self._driven.struct.frame.spins = 0
        result = self._driven.order(order, order.values, stays, bell)
        if result == -errno.ESRCH:
            self.state = "it has died while it waited"
            raise died(self.pid, self._end(dead=True))
        if result:
            raise OSError(-result, REFUSALS.get(-result, os.strerror(-result)))
        return limit

    def _finish(self, order: Compiled, limit: float) -> Process | None:
        """Wait until the order is carried out, and judge it."""
        return self.judge(order, self._driven.attend(time.monotonic() + limit), limit)

    def judge(self, order: Compiled, state: int, limit: float) -> Process | None:
        """What has become of an order: a process if it began one.

        Raises: SpawnError if it was not carried out.
        """
        with Use(self):
            return self._judge(order, state if self._driven.struct.memory else GONE, limit)

    def _judge(self, order: Compiled, state: int, limit: float) -> Process | None:
        if state == RUNNING:
            outcome = self._end(dead=True)
            self.state = "it was killed, as an order passed its deadline"
            raise late(order, outcome, limit)
        if state == GONE:
            outcome = self._end(dead=False)
            if outcome.stage != lib.CK_SPAWNED:
                error = failure(order, outcome, self._driven.refusal)
                self.state = f"it has ended: {error}"
                if outcome.stage == lib.CK_RECORD_FAILED and isinstance(error, SpawnError):
                    error.hint = "; ".join(filter(None, [error.hint, NOT_REPEATED]))
                raise error
            self._handle.adopt(outcome)
            self.state = "it was started; use what start() has returned"
            try:
                self._handle.hold()
            except BaseException:
                self._handle.__exit__(None, None, None)
                raise
            self._driven.keep()
            process, self._handle = self._handle, None
            return process  # type: ignore[no-any-return]
        outcome = self._driven.report()
        if outcome.stage == lib.CK_REFUSED:
            error = failure(order, outcome, self._driven.refusal)
            if isinstance(order, Order):
                self._repair(order, int(outcome.record))
            raise error
        return None

    def _repair(self, order: Order, record: int) -> None:
        """After an order that failed, the child is as before but for the steps that were done."""
        arranged, step = order.arranged, order.step_of(record)
        if 0 <= arranged.vector == step:
            self.kill()  # its descriptors are between two places
            return
        if arranged.vector < 0 or step < arranged.vector or not arranged.moved:
            self._close_given(order, self._driven.struct.frame.registers)
        else:
            self._renumber(arranged.moved)
        if arranged.vector >= 0:
            again = [set_signal_mask(EVERY_SIGNAL), set_attribute("PR_SET_PDEATHSIG", SIGKILL)]
            repair = Order(again, STARTED, known={}, reserved=self._numbers)
            self._run(repair, lib.CK_STAYS, None)

    def _renumber(self, moved: dict[Fd, int]) -> None:
        """A start that failed has placed its vector: what the child keeps is above it."""
        for fd, number in moved.items():
            if isinstance(fd.of, ChildFd):
                fd.of.number = number
            elif fd.of in self._numbers:
                self._numbers[fd.of] = number  # type: ignore[index]
        self._watch.follow(self._numbers)

    # The end of waiting.

    @overload
    def start(
        self,
        argv: Sequence[Text],
        /,
        *,
        suspended: Literal[True],
        deadline: float | None = None,
        **declaration: Any,
    ) -> Suspended: ...
    @overload
    def start(
        self,
        argv: Sequence[Text] | Sequence[Step],
        /,
        *,
        deadline: float | None = None,
        **declaration: Any,
    ) -> Process: ...
    def start(
        self,
        argv: Sequence[Text] | Sequence[Step],
        /,
        *,
        deadline: float | None = None,
        **declaration: Any,
    ) -> Any:
        """Begin the program: what is left of the declaration, then exec. The result is a Process.

        `argv` and `declaration` are as for `spawn`, but for what only a clone can do; or `argv` is
        a list of steps that ends with `execute`. Changes of ids and capabilities, joins of user
        namespaces and seccomp filters belong here. With `suspended=True` it is a `Suspended`.

        Raises: SpawnError naming the step that failed. If no such change was part of it, the child
            waits again, and may be started otherwise. TimeoutError, ChildProcessError,
            DeclarationError as from `do`.
        """
        order = self.starting(argv, declaration)
        stays = lib.CK_STAYS if order.repeatable else lib.CK_ENDS
        process = self._run(order, stays, deadline)
        assert process is not None  # noqa: S101 - an exec succeeds, or is a failure
        return process

    def starting(self, argv: Sequence[Text] | Sequence[Step], declaration: dict[str, Any]) -> Order:
        """The order that begins the program."""
        self.check()
        if isinstance(argv, list | tuple) and any(isinstance(part, Step) for part in argv):
            if declaration:
                msg = f"steps have an order of their own; say {', '.join(declaration)} as steps too"
                raise DeclarationError(msg)
            steps = own_steps(argv)
            if steps[-1].kind is not EXECUTE:
                msg = "a program ends with one execute(argv) step; put it last"
                raise DeclarationError(msg)
        else:
            steps = Spec(argv, **declaration).steps()  # type: ignore[arg-type]
        alive = [fd for fd in self._fds if fd.number >= 0]
        order = Order(
            steps, STARTED, self,
            known=self.names, reserved=self._numbers, alive=alive, limit=limit_of(self.pid),
        )  # fmt: skip
        if order.setup.suspension is not None and threading.get_native_id() != self._thread:
            msg = "a child can be suspended only by the thread that made it; start it from there"
            raise DeclarationError(msg)
        return order

    def _end(self, *, dead: bool) -> Any:
        """Forget the child, which is gone, or ended here."""
        outcome = self._driven.end(dead=dead)
        self._pidfd = -1
        return outcome

    def discard(self) -> None:
        """End the child, also if it has just begun its program: somebody was interrupted."""
        self.state = "it was ended, as an order was interrupted"
        self._pidfd = -1
        self._driven.discard(self._handle)

    def kill(self) -> None:
        """End the child, and reap it. One that has begun its program is not touched."""
        if self._pidfd < 0:
            return
        self.state = "it was killed"
        if self.uses and self._is_ours():
            self.killed = True
            with contextlib.suppress(ProcessLookupError):
                pidfd_send_signal(self._pidfd, SIGKILL)
        elif self._is_ours():
            self._end(dead=True)
        else:
            self._pidfd = -1

    def __repr__(self) -> str:
        return f"<Nascent child {self.pid}: {self.state}>"


def prepared(declaration: dict[str, Any]) -> tuple[Opening, list[Step]]:
    """What a declaration asks of the clone, and the steps that the child does first.

    Raises: DeclarationError, before there is a child.
    """
    fields = {name: value for name, value in declaration.items() if value is not None}
    for name in fields:
        if name in OF_EXEC or name in {"check", "suspended"}:
            msg = f"{name} belongs to the start of the program; give it to start()"
            raise DeclarationError(msg)
    refuse_whole_machine(fields)
    steps = in_order(Spec(["nascent"], **fields).fields)
    opening = opening_of([step for step in steps if step.phase == "clone"])
    steps = [step for step in steps if step.phase != "clone"]
    if steps:
        Order(steps, ORDERED, known={}, reserved=opening.kept)
    return opening, steps


def nascent(*, deadline: float = DEADLINE, **declaration: Any) -> Nascent:
    """Make a child that shares our memory and waits for orders: clone3, at the cost of vfork.

    `declaration` are fields of `Spec`: new namespaces, the cgroup, and whatever else a child that
    waits may do; it is done before this returns. The child has no descriptor but those that orders
    open or are given. `deadline` is how many seconds each order may take.

    Example: `with nascent(namespaces=["net"]) as child: ...; process = child.start(["prog"])`.

    Raises: SpawnError naming the step that failed, and then there is no child; DeclarationError.
    """
    opening, steps = prepared(declaration)
    child = Nascent(opening, deadline)
    if steps:
        try:
            child.do(*steps)
        except BaseException:
            child.kill()
            raise
    return child
