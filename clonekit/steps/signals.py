"""Signals: the mask, what becomes of each, and what the parent's end means."""

from __future__ import annotations

import signal
import struct

from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib
from clonekit.records import CALLER_MASK, CLEARED_DISPOSITIONS, Call, Clone, Fd, Move, Scratch, Slot
from clonekit.steps.step import Option, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from clonekit.records import Records

SIGSET_SIZE = 8
SIGNALS = 64
SIG_DFL, SIG_IGN = 0, 1
SIGACTION = struct.Struct("<QQQQ")
MICROSECONDS = 1_000_000  # in a second
UNCHANGEABLE = (signal.SIGKILL, signal.SIGSTOP)
#: What Python itself ignores, and a program expects not to be ignored.
PYTHON_IGNORES = ("PIPE", "XFSZ")
#: The slot for a pidfd of the parent, which `spawn` fills.
PARENT = Slot(".parent")


def signal_number(value: int | str) -> int:
    """A signal by number or name: 15, "TERM", "SIGTERM"."""
    if isinstance(value, str) and not value.isdecimal():
        number = getattr(signal, "SIG" + value.upper().removeprefix("SIG"), None)
        if not isinstance(number, int):
            msg = f"{value!r} is no signal; write a number or a name such as 'TERM'"
            raise DeclarationError(msg)
        return int(number)
    if not 0 < int(value) <= SIGNALS:
        msg = f"{value!r} is no signal; use 1 to {SIGNALS}"
        raise DeclarationError(msg)
    return int(value)


def parse_names(text: str) -> list[str]:
    """`INT,TERM`."""
    return [name for name in text.split(",") if name]


def dispositions(names: Iterable[int | str], handler: int) -> Records:
    """One rt_sigaction for each signal."""
    action = SIGACTION.pack(handler, 0, 0, 0)
    for number in sorted({signal_number(name) for name in names}):
        if number in UNCHANGEABLE:
            msg = f"{signal.Signals(number).name} cannot be reset or ignored; leave it out"
            raise DeclarationError(msg)
        yield Call("rt_sigaction", number, action, 0, SIGSET_SIZE)


@step(phase="table")
def clear_handlers() -> Records:
    """Do what CLONE_CLEAR_SIGHAND does, where clone3 is refused: rt_sigaction.

    Each signal that has a handler in the parent gets the default; ignored ones stay ignored.

    See: clone(2).
    """
    for number in range(1, SIGNALS + 1):
        if number not in UNCHANGEABLE:
            place = CLEARED_DISPOSITIONS.at((number - 1) * SIGACTION.size)
            yield Call("rt_sigaction", number, place, 0, SIGSET_SIZE)


@step(phase="signals", field="sigdefault", lasting=True, option=Option("NAMES", parse_names))
def reset_signals(names: Iterable[int | str]) -> Records:
    """These signals have their default action: rt_sigaction.

    Handlers are reset anyway; ignored signals would stay ignored. A declaration without it
    resets what Python ignores: PIPE and XFSZ.

    See: sigaction(2).
    """
    yield from dispositions(names, SIG_DFL)


@step(phase="signals", field="sigignore", lasting=True, option=Option("NAMES", parse_names))
def ignore_signals(names: Iterable[int | str]) -> Records:
    """These signals are ignored, also by the program until it changes that: rt_sigaction.

    See: sigaction(2).
    """
    yield from dispositions(names, SIG_IGN)


def mask_of(names: Iterable[int | str]) -> int:
    """A set of signals as the kernel takes it."""
    return sum(1 << number - 1 for number in {signal_number(name) for name in names})


@step(phase="mask", field="sigmask", lasting=True, option=Option("NAMES", parse_names))
def set_signal_mask(names: Iterable[int | str] | None = None) -> Records:
    """The signals that are blocked when the program begins: rt_sigprocmask.

    None: those of the thread that spawns. All are blocked until this step, the last before exec;
    a pending signal acts here, by its default action.

    See: sigprocmask(2).
    """
    if names is None:
        yield Call("rt_sigprocmask", lib.SIG_SETMASK, CALLER_MASK, 0, SIGSET_SIZE)
        return
    packed = struct.pack("<Q", mask_of(names))
    yield Call("rt_sigprocmask", lib.SIG_SETMASK, packed, 0, SIGSET_SIZE)


@step(phase="parent", field="pdeathsig", lasting=True, option=Option("SIGNAL"))
def set_parent_death_signal(number: int | str) -> Records:
    """The signal that the program gets when its parent ends: prctl PR_SET_PDEATHSIG.

    The parent is the *thread* that spawned: its end counts, even if the process lives on. Set-id
    programs lose it, and so does any change of credentials: hence its place in the order. Then the
    parent's pidfd is polled (ppoll): if it has ended before the call, the child ends too.

    Raises: EINVAL. See: PR_SET_PDEATHSIG(2const).
    """
    yield Call("prctl", lib.PR_SET_PDEATHSIG, signal_number(number), 0, 0, 0)
    polled = Scratch(struct.pack("<ihh", 0, lib.POLLIN, 0))
    yield Move(polled.at(0), value=Fd(PARENT))
    yield Call("ppoll", polled, 1, bytes(16), 0, SIGSET_SIZE, expect=0)


@step(phase="init", field="alarm", lasting=True, option=Option("SECONDS", float))
def set_alarm(seconds: float) -> Records:
    """The program gets SIGALRM after so many seconds, which ends it by default: setitimer.

    An exec keeps it and a fork does not hand it on: where there is an init, it comes after that.

    Raises: EINVAL for more seconds than the kernel counts. See: setitimer(2).
    """
    microseconds = round(seconds * MICROSECONDS)
    if microseconds <= 0:
        msg = f"alarm {seconds!r} is not above 0; leave it out for none"
        raise DeclarationError(msg)
    once = struct.pack("<4q", 0, 0, *divmod(microseconds, MICROSECONDS))
    yield Call("setitimer", signal.ITIMER_REAL, once, 0)


@step(phase="clone", field="autoreap", lasting=True)
def end_without_zombie() -> Records:
    """The child leaves no zombie and sends no signal at its end: CLONE_AUTOREAP.

    Its status is in PIDFD_GET_INFO alone. Since: Linux 7.1. See: clone(2).
    """
    yield Clone(lib.CLONE_AUTOREAP, exit_signal=0)


@step(phase="clone", field="autokill", lasting=True)
def end_with_pidfd() -> Records:
    """The child is killed when the last copy of its pidfd closes: CLONE_PIDFD_AUTOKILL.

    It leaves no zombie either (AUTOREAP). Without CAP_SYS_ADMIN it needs `clone_nnp`.
    Since: Linux 7.1. See: clone(2).
    """
    yield Clone(lib.CLONE_PIDFD_AUTOKILL | lib.CLONE_AUTOREAP, exit_signal=0)


@step(phase="clone", field="clone_nnp", lasting=True)
def clone_no_new_privs() -> Records:
    """The child has no_new_privs from its first moment: CLONE_NNP.

    Since: Linux 7.1; before, `no_new_privs` sets it as a step. See: clone(2).
    """
    yield Clone(lib.CLONE_NNP)
