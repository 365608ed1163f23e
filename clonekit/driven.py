"""Drive a child that does not hold us: with a deadline, to be suspended, or to wait for orders."""

from __future__ import annotations

import contextlib
import errno
import time

from clonekit.linux.abi import ffi, lib
from clonekit.manners import SLICE
from clonekit.process import blank
from clonekit.vforked import Trace, traced

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from clonekit.compiled import Compiled
    from clonekit.records import Slot

GONE, RUNNING, ASKS = lib.CK_GONE, lib.CK_RUNNING, lib.CK_ASKS
#: How long we sleep, in seconds, until we look again for a value that the child is about to make.
SOON = 0.0001
#: What children read that we were not allowed to end.
_left: list[object] = []


class Asked:
    """A child that asks for something, and waits: what its parent knows of it.

    Attributes:
        pid: its number, here.
        pidfd: a pidfd, which is not to be closed.
    """

    __slots__ = ("_driven", "_registers", "pid", "pidfd")

    def __init__(self, driven: Driven, program: Compiled) -> None:
        self._driven = driven
        self._registers = program.setup.assembler.registers
        self.pid: int = driven.struct.pid
        self.pidfd: int = driven.struct.pidfd

    def value(self, slot: Slot) -> int:
        """What a slot of the child's holds; one that it is about to make is waited for.

        Raises: ProcessLookupError if the child dies meanwhile.
        """
        registers, number = self._driven.struct.frame.registers, self._registers[slot]
        while registers[number] == -1:
            if lib.ck_attend(self._driven.struct, 0) != ASKS:
                raise ProcessLookupError(errno.ESRCH, f"child {self.pid} has died")
            time.sleep(SOON)
        return int(registers[number])


class Driven:
    """The child, as the C side holds it: its clone, its orders, its end.

    Attributes:
        struct, outcome: struct ck_driven and the ck_outcome of the last order.
        stops: whether it stops at its exec.
        refusal: why we could not do what it has asked for last.
    """

    __slots__ = ("_held", "_undo", "outcome", "refusal", "stops", "struct")

    def __init__(self) -> None:
        self.struct = ffi.gc(ffi.new("struct ck_driven *", {"channel": -1}), lib.ck_abandon)
        self.outcome = ffi.new("struct ck_outcome *", {"pidfd": -1})
        self.stops = False
        self.refusal: OSError | None = None
        self._held: tuple[Any, ...] = ()  # what the child reads
        self._undo: list[Callable[[], object]] = []  # what we have done for it, to be undone

    def begin(
        self, program: Compiled, values: list[int], stays: int, stamps: Any = ffi.NULL
    ) -> None:
        """Make the child, which runs the program.

        Raises: SpawnError, DeclarationError.
        """
        inputs = ffi.new("int64_t[]", values)
        self._held = program, inputs, stamps
        self.stops = program.setup.suspension is not None
        if lib.ck_begin(program.struct, inputs, stamps, stays, self.struct, self.outcome):
            from clonekit.failure import failure

            raise failure(program, self.outcome)

    def order(self, order: Compiled, values: list[int], stays: int, bell: Any = ffi.NULL) -> int:
        """Give the child another order: 0 or -errno."""
        inputs = ffi.new("int64_t[]", values)
        last = self._held[:1]  # it may be about to leave that
        result: int = lib.ck_order(self.struct, order.struct, inputs, stays, bell)
        self._held = order, bell, *last
        self.stops = order.setup.suspension is not None
        return result

    def attend(self, until: float) -> int:
        """Wait for the end of the order, until this time: CK_RUNNING if it has not come.

        What the child asks for is done meanwhile, and Python's handlers of signals run.
        """
        while True:
            left = until - time.monotonic()
            state: int = lib.ck_attend(self.struct, int(max(min(left * 1e9, SLICE), 0)))
            if state == ASKS:
                self._act()
                continue
            if self.stops and state == RUNNING:
                lib.ck_pass_stop(self.struct)
            if state != RUNNING or left <= 0:
                return state

    def _act(self) -> None:
        """Do what the child asks for."""
        program = self._held[0]
        ask = program.setup.assembler.asks[self.struct.frame.asked]
        answer, self.refusal = 0, None
        try:
            undo = ask.act(Asked(self, program))
        except OSError as error:
            answer, self.refusal = -(error.errno or errno.EIO), error
        else:
            if undo is not None:
                self._undo.append(undo)
        lib.ck_answer(self.struct, answer)

    def keep(self) -> list[Callable[[], object]]:
        """What was done for the child stays: it has begun. What would undo it, in that order."""
        kept, self._undo = self._undo, []
        return kept

    def _undo_all(self) -> None:
        """Undo what was done for the child."""
        undo_all(self._undo)

    def report(self) -> Any:
        """How the order of a child that waits again has ended."""
        lib.ck_report(self.struct, self.outcome)
        return self.outcome

    def end(self, *, dead: bool) -> Any:
        """What became of a child that is gone; with `dead` it is ended first. It is forgotten.

        Raises: PermissionError where we may not end it: it has other ids by now, and we have no
            CAP_KILL. It goes on then.
        """
        result = lib.ck_end(self.struct, dead, self.outcome)
        if result == -errno.EBUSY:  # whoever waits for it sees that it is dead, and ends it
            return self.outcome
        if result:
            _left.append((self.struct, self._held))  # the child goes on, and reads these
            msg = f"child {self.struct.pid} has other ids by now, and we may not kill it (CAP_KILL)"
            raise OSError(-result, msg)
        self._held = ()
        if self.outcome.stage != lib.CK_SPAWNED:
            self._undo_all()
        return self.outcome

    def discard(self, handle: Any) -> None:
        """End the child, whatever it is at: somebody was interrupted. `handle` is to be its own."""
        self.end(dead=True)
        if self.outcome.stage == lib.CK_SPAWNED and self.outcome.pidfd >= 0:
            handle.adopt(self.outcome)
        if handle is not None:
            handle.__exit__(None, None, None)
        self._undo_all()


def undo_all(undo: list[Callable[[], object]]) -> None:
    """Undo what was done for a child, the last first.

    What a signal's handler takes us away from stays in the list, for whoever goes on.
    """
    while undo:
        with contextlib.suppress(OSError):
            undo[-1]()
        undo.pop()


def handle_of(program: Any) -> Any:
    """The handle of a child that is yet to begin this program: a Process, or a Suspended."""
    if program.setup.suspension is not None:
        from clonekit.suspended import Suspended

        return Suspended(program)
    return blank(program.argv)


def run(
    program: Any,
    values: list[int] | None,
    trace: list[object] | None,
    handle: Any,
    undo: list[Callable[[], object]] | None = None,
) -> Trace | None:
    """Spawn the program with these input registers; trace it if `trace` is a list.

    `handle` is of `handle_of`, and has the child then. `undo` takes what would undo what was done
    for it, where it is not done with its exec.

    Raises: SpawnError; one that is a TimeoutError at the deadline.
    """
    deadline = program.setup.deadline
    stamps = ffi.NULL
    if trace is not None:
        stamps = ffi.new("struct ck_stamp[]", len(program))
        start = ffi.new("uint64_t *")
        cycles = lib.ck_read_cycles(start)
    driven = Driven()
    parent, values = program.with_parent(values or [])
    try:
        try:
            driven.begin(program, values, lib.CK_ENDS, stamps)
            until = time.monotonic() + (float("inf") if deadline is None else deadline)
            state = driven.attend(until)
            outcome = driven.end(dead=state == RUNNING)
            if outcome.stage == lib.CK_SPAWNED:
                handle.adopt(outcome)
                handle.hold()
        finally:
            if parent is not None:
                parent.close()
        kept = driven.keep() if outcome.stage == lib.CK_SPAWNED else []
        if undo is not None:
            undo += kept
    except BaseException:  # a handler of a signal has raised, perhaps
        driven.discard(handle)
        raise
    if outcome.stage != lib.CK_SPAWNED:
        from clonekit.failure import failure, late

        if state == RUNNING:
            raise late(program, outcome, deadline)
        raise failure(program, outcome, driven.refusal)
    if trace is None:
        return None
    outcome.clone_after = lib.ck_read_cycles(ffi.new("uint64_t *"))
    return traced(stamps, outcome, cycles, start[0])
