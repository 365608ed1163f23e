"""Drive a child that goes on in the first stage: wait until that has begun the program."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import time

from clonekit.driven import run as run_driven
from clonekit.driven import undo_all
from clonekit.failure import failure, late
from clonekit.linux.abi import LAST_ERRNO, ffi, lib
from clonekit.linux.descriptors import close_all
from clonekit.linux.execution import SealedProgram
from clonekit.linux.privilege import is_privileged
from clonekit.process import Process
from clonekit.stage import ANSWER_AT, REPORT, REPORT_AT
from clonekit.steps.memory import ALIVE, PLAN, STAGE
from clonekit.vforked import run as run_vforked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from clonekit.program import Program
    from clonekit.vforked import Trace

SLICE = 50  # ms after which Python looks for signals
SOON = 1  # ms after which we look again when something has been told
ABOVE_STDIO = 3
#: The mode of the first stage's file. The kernel keeps who runs a file that he may not read from
#: being traced, S1 of cdefs/stage.c; but us too, where we have no privilege and it is in a user
#: namespace of ours.
READABLE, NOT_READABLE = 0o555, 0o111
BY_SIGNAL = 128


def first_stage() -> int:
    """A descriptor of the first stage, as a sealed file; the caller's own.

    Each spawn has a file of its own: who has been in one container with it could keep it open for
    writing, which seals do not forbid, and so keep us from beginning it in another (ETXTBSY).
    """
    mode = NOT_READABLE if is_privileged() else READABLE
    size = ffi.new("uint64_t *")
    image = lib.ck_stage_image(size)
    with SealedProgram(ffi.buffer(image, size[0])[:], "clonekit") as program:
        os.fchmod(program.fileno(), mode)
        return fcntl.fcntl(program.fileno(), fcntl.F_DUPFD_CLOEXEC, ABOVE_STDIO)


def run(
    program: Program, slots: Mapping[str, object], trace: list[object] | None, process: Process
) -> Trace | None:
    """Spawn a program that has a second part; trace both if `trace` is a list.

    The handle owns the child from the moment when there is one.

    Raises: SpawnError naming the step that failed, of either part.
    """
    deadline = program.setup.deadline
    until = time.monotonic() + (float("inf") if deadline is None else deadline)
    opened: list[int] = []
    undo: list[Callable[[], object]] = []
    try:
        plan = os.memfd_create("clonekit-plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        opened.append(plan)
        opened.append(first_stage())
        reader, writer = os.pipe2(os.O_CLOEXEC)
        opened += reader, writer
        own = {PLAN.name: plan, STAGE.name: opened[1], ALIVE.name: writer}
        values = program.values(slots, own)
        given = dict(zip(program.setup.inputs, values, strict=True))
        os.write(plan, program.rest.plan(given, traced=trace is not None))
        if program.setup.manner.holds:
            times = run_vforked(program, values, trace, process)
        else:
            times = run_driven(program, values, trace, process, undo)
        del opened[-1]
        os.close(writer)
        judge(program, process, plan, ended=follow(program, process, reader, plan, until))
        if times is not None:
            times.add(program.rest.stamps(plan), lib.ck_read_cycles(ffi.new("uint64_t *")))
    except BaseException:
        if opened:
            end(process, opened[0])
        undo_all(undo)
        raise
    else:
        return times
    finally:
        close_all(opened)


def follow(program: Program, process: Process, reader: int, plan: int, until: float) -> bool:
    """Wait until the first stage has begun the program, or has ended: False if time is up first.

    Both close the pipe. But a copy of us that was forked meanwhile, and a child that waits, have
    it open too; and a step may close it. What is true then is whether the records are mapped.
    """
    poller = select.poll()
    for fd in (reader, process.fileno()):
        poller.register(fd, select.POLLIN)
    told: set[int] = set()
    pause = SLICE
    while True:
        left = until - time.monotonic()
        now = [fd for fd, _ in poller.poll(max(0.0, min(left * 1000, pause)))]
        for fd in now:
            poller.unregister(fd)
        told.update(now)
        pause = SOON if now else SLICE
        state, how, record, _ = report(plan)
        if reader in told and (how or (state and program.rest.is_exec(record))):
            return True
        if not is_mapped(plan) if state else process.fileno() in told:
            return True
        if left <= 0:
            return False


def report(plan: int) -> tuple[int, ...]:
    """What the first stage says of itself: numbers, which may be any (S2 of cdefs/stage.c)."""
    return REPORT.unpack(os.pread(plan, REPORT.size, REPORT_AT))


def is_mapped(plan: int) -> bool:
    """Whether a process has the records mapped: those who do have not begun the program."""
    try:
        fcntl.fcntl(plan, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return True
    return False


def judge(program: Program, process: Process, plan: int, *, ended: bool) -> None:
    """What has become of the second part.

    Raises: SpawnError if the program has not begun.
    """
    rest = program.rest
    state, how, record, result = report(plan)
    outcome = ffi.new("struct ck_outcome *")
    outcome.record = min(record, len(rest) - 1)
    outcome.result = result if result >= -LAST_ERRNO else -errno.EIO
    if not ended:
        raise late(rest, outcome, program.setup.deadline)  # type: ignore[arg-type]
    begun = state and how != lib.CK_FAILED and rest.is_exec(outcome.record)
    pid = place_taken(plan)
    other = successor(pid) if pid else None
    if other is not None:
        with contextlib.suppress(ChildProcessError):
            process.wait()
        process.become(other)
    elif pid and begun:
        msg = "the program has begun, and has ended; as SIGCHLD is ignored, how is not known"
        raise ChildProcessError(errno.ECHILD, msg)
    if begun:
        return
    outcome.stage = lib.CK_RECORD_FAILED if how == lib.CK_FAILED else lib.CK_KILLED
    by_signal = 0
    with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored
        exit_ = process.wait()
        by_signal = exit_.signal or max(0, (exit_.status or 0) - BY_SIGNAL)  # told by init
    if outcome.stage == lib.CK_KILLED:
        outcome.result = by_signal
    raise failure(rest, outcome)


def place_taken(plan: int) -> int:
    """The pid of the child that has taken the place of the first, or 0."""
    return max(0, int.from_bytes(os.pread(plan, 4, ANSWER_AT), "little", signed=True))


def successor(pid: int) -> Process | None:
    """That child, if it is there. Only a child of ours is believed to be it (S2)."""
    try:
        other = Process.from_pid(pid)
    except ProcessLookupError:
        return None
    ended = ffi.new("struct ck_exit *")
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    if lib.ck_wait(other.fileno(), options, ended) != -errno.ECHILD:
        return other
    other.close()
    return None


def end(process: Process, plan: int) -> None:
    """End the child, if that is not done yet, and the one that has taken its place."""
    process.__exit__(None, None, None)
    pid = place_taken(plan)
    other = successor(pid) if pid else None
    if other is not None and pid != process.pid:
        other.__exit__(None, None, None)
