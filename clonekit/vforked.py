"""Drive a vforked child: run a whole program at once, and tell what became of it."""

from __future__ import annotations

from clonekit.linux.abi import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from clonekit.process import Process
    from clonekit.program import Program


class Trace:
    """When each record of one spawn began and ended, in nanoseconds from before the clone.

    Attributes:
        records: (begin, end, result) for each record that ran; `end` and `result` of a successful
            exec are those that the parent saw.
        total: from before the clone until the parent went on.
    """

    __slots__ = ("_per_cycle", "_zero", "records", "total")

    def __init__(self, zero: int, per_cycle: float) -> None:
        self._zero = zero
        self._per_cycle = per_cycle
        self.records: list[tuple[float, float, int]] = []
        self.total = 0.0

    def add(self, stamps: Iterable[Any], until: int) -> None:
        """Further records, of a child that was followed until this reading of the cycle counter."""
        for stamp in stamps:
            if not stamp.before:
                break
            end, result = (stamp.after, stamp.result) if stamp.after else (until, 0)
            times = [(cycles - self._zero) * self._per_cycle for cycles in (stamp.before, end)]
            self.records.append((times[0], times[1], result))
        self.total = (until - self._zero) * self._per_cycle


def run(
    program: Program,
    values: list[int] | None,
    trace: list[object] | None,
    handle: Process,
) -> Trace | None:
    """Spawn the program with these input registers; trace it if `trace` is a list.

    The handle owns the child from the moment when there is one, whatever is raised after that.

    Raises: SpawnError.
    """
    outcome = ffi.new("struct ck_outcome *")
    inputs = ffi.NULL
    parent = None
    if values is not None:
        parent, values = program.with_parent(values)
        inputs = ffi.new("int64_t[]", values)
    stamps = ffi.NULL
    if trace is not None:
        stamps = ffi.new("struct ck_stamp[]", len(program))
        start = ffi.new("uint64_t *")
        cycles = lib.ck_read_cycles(start)
    try:
        try:
            lib.ck_spawn(program.struct, inputs, stamps, outcome)
        finally:  # handlers of signals run when a call comes back or begins: there is none here
            if outcome.pid and outcome.stage == lib.CK_SPAWNED:
                handle.pid, handle._pidfd = outcome.pid, outcome.pidfd  # noqa: SLF001 - as adopt()
    finally:
        if parent is not None:
            parent.close()
    if outcome.stage != lib.CK_SPAWNED:
        from clonekit.failure import failure

        raise failure(program, outcome)
    return None if trace is None else traced(stamps, outcome, cycles, start[0])


def traced(stamps: Iterable[Any], outcome: Any, cycles: int, start: int) -> Trace:
    """Cycles as nanoseconds, by what CLOCK_MONOTONIC said before and after."""
    now = ffi.new("uint64_t *")
    per_cycle = 0.0
    while True:  # the spawn alone may be too short to compare two clocks by
        later = lib.ck_read_cycles(now)
        if now[0] - start > 2_000_000:  # noqa: PLR2004 - 2 ms bound the error to some 1e-4
            per_cycle = (now[0] - start) / (later - cycles)
            break
    trace = Trace(outcome.clone_before, per_cycle)
    trace.add(stamps, outcome.clone_after)
    return trace
