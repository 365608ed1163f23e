"""Drive a child that goes on in the first stage: wait until that has begun the program."""

from __future__ import annotations

import contextlib
import os
import select
import time

from clonekit.driven import run as run_driven
from clonekit.driven import undo_all
from clonekit.failure import failure, late
from clonekit.linux.abi import ffi, lib
from clonekit.linux.execution import SealedProgram
from clonekit.process import Process
from clonekit.stage import ANSWER_AT, REPORT, REPORT_AT
from clonekit.steps.memory import ALIVE, PLAN, STAGE
from clonekit.vforked import run as run_vforked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from clonekit.program import Program
    from clonekit.vforked import Trace

SLICE = 50  # ms after which Python looks for signals
BY_SIGNAL = 128  # init's status, with the signal's number, for a program that was killed
_stage: list[tuple[SealedProgram, tuple[int, int]]] = []


def first_stage() -> int:
    """A descriptor of the first stage, as a sealed file; made when it is first needed."""
    if _stage:
        program, identity = _stage[0]
        with contextlib.suppress(OSError, ValueError):
            if identity_of(program.fileno()) == identity:
                return program.fileno()
        _stage.clear()  # somebody has closed it
    size = ffi.new("uint64_t *")
    image = lib.ck_stage_image(size)
    program = SealedProgram(ffi.buffer(image, size[0])[:], "clonekit")
    _stage.append((program, identity_of(program.fileno())))
    return program.fileno()


def identity_of(fd: int) -> tuple[int, int]:
    """Which file a descriptor is for."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def run(
    program: Program, slots: dict[str, object], trace: list[object] | None
) -> tuple[Process, Trace | None]:
    """Spawn a program that has a second part; a trace is that of the first.

    Raises: SpawnError naming the step that failed, of either part.
    """
    rest, deadline = program.rest, program.setup.deadline
    until = time.monotonic() + (float("inf") if deadline is None else deadline)
    opened: list[int] = []
    done: list[Callable[[], object]] = []
    try:
        plan = os.memfd_create("clonekit-plan", os.MFD_CLOEXEC)
        opened.append(plan)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        opened += reader, writer
        os.write(plan, rest.plan())
        own = {PLAN.name: plan, ALIVE.name: writer, STAGE.name: first_stage()}
        values = program.values(slots, own)
        if program.setup.manner.holds:
            process, times = run_vforked(program, values, trace)
        else:
            process, times = run_driven(program, values, trace, done)
        try:
            os.close(opened.pop())
            judge(program, process, plan, ended=follow(reader, until))
        except BaseException:
            end(process, plan)
            undo_all(done)
            raise
        return process, times
    finally:
        for fd in opened:
            os.close(fd)


def follow(reader: int, until: float) -> bool:
    """Wait until the first stage has begun the program, or has ended: False if time is up first."""
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    while True:
        left = until - time.monotonic()
        if poller.poll(max(0.0, min(left * 1000, SLICE))):
            return True
        if left <= 0:
            return False


def judge(program: Program, process: Process, plan: int, *, ended: bool) -> None:
    """What has become of the second part.

    Raises: SpawnError if the program has not begun.
    """
    rest = program.rest
    _, how, record, result = REPORT.unpack(os.pread(plan, REPORT.size, REPORT_AT))
    outcome = ffi.new("struct ck_outcome *")
    outcome.record, outcome.result = min(record, len(rest) - 1), result  # S2 of cdefs/stage.c
    if not ended:
        end(process, plan)
        raise late(rest, outcome, program.setup.deadline)  # type: ignore[arg-type]
    began = how != lib.CK_FAILED and rest.is_exec(outcome.record)
    other = int.from_bytes(os.pread(plan, 8, ANSWER_AT), "little")
    if other:
        process.wait()
        successor = Process.from_pid(other)
        process.become(successor)
    if began:
        return
    outcome.stage = lib.CK_RECORD_FAILED if how == lib.CK_FAILED else lib.CK_KILLED
    exit_ = process.wait()
    if outcome.stage == lib.CK_KILLED:
        outcome.result = exit_.signal or max((exit_.status or 0) - BY_SIGNAL, 0)  # init's word
    raise failure(rest, outcome)


def end(process: Process, plan: int) -> None:
    """End the child, and the one that has taken its place."""
    process.__exit__(None, None, None)
    other = int.from_bytes(os.pread(plan, 8, ANSWER_AT), "little")
    if other and other != process.pid:
        with contextlib.suppress(ProcessLookupError):
            Process.from_pid(other).__exit__(None, None, None)
