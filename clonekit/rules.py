"""What the rules of a filter are made of: actions, comparisons of arguments, names of calls."""

from __future__ import annotations

import errno

from clonekit.errors import DeclarationError
from clonekit.linux.abi import NUMBERS, lib
from clonekit.linux.libseccomp import COMPARISONS, MASKED, number_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clonekit.linux.libseccomp import Comparison

WORD = (1 << 64) - 1
LAST_ARGUMENT = 5
LAST_ERRNO = 4095
#: What a filter may answer, by the names of the OCI profile.
ACTIONS: dict[str, int] = {
    "ALLOW": lib.SECCOMP_RET_ALLOW,
    "ERRNO": lib.SECCOMP_RET_ERRNO,
    "KILL": lib.SECCOMP_RET_KILL_PROCESS,
    "KILL_PROCESS": lib.SECCOMP_RET_KILL_PROCESS,
    "KILL_THREAD": lib.SECCOMP_RET_KILL_THREAD,
    "LOG": lib.SECCOMP_RET_LOG,
    "NOTIFY": lib.SECCOMP_RET_USER_NOTIF,
    "TRACE": lib.SECCOMP_RET_TRACE,
    "TRAP": lib.SECCOMP_RET_TRAP,
}


def action_of(name: str, number: int = errno.EPERM) -> int:
    """An action by name, with the errno that it carries if it is ERRNO."""
    action = ACTIONS.get(name.upper())
    if action is None:
        msg = f"{name!r} is no action; write one of {', '.join(ACTIONS)}"
        raise DeclarationError(msg)
    if action not in (ACTIONS["ERRNO"], ACTIONS["TRACE"]):
        return action
    if not isinstance(number, int) or not 0 <= number <= LAST_ERRNO:
        msg = f"errno={number!r} is no errno; give a number up to {LAST_ERRNO}, as errno.EPERM"
        raise DeclarationError(msg)
    return action | number


class Arg:
    """A comparison of a call's argument, counted from 0: `Arg(0, "==", socket.AF_UNIX)`.

    Operators are `==`, `!=`, `<`, `<=`, `>`, `>=`; with `mask`, only the bits in it are compared,
    for equality.

    All 64 bits of an argument are compared, but of an `int` the kernel looks at the lower 32
    alone: a program may put anything above them. A rule that *refuses* by an int wants
    `mask=0xffffffff`, or it is passed by; one that *allows* by it is not.

    Memory behind a pointer cannot be compared.
    """

    __slots__ = ("comparison", "text")

    def __init__(self, index: int, operator: str, value: int, *, mask: int | None = None) -> None:
        if not isinstance(index, int) or not 0 <= index <= LAST_ARGUMENT:
            msg = f"Arg({index!r}, ...): a call has the arguments 0 to {LAST_ARGUMENT}"
            raise DeclarationError(msg)
        if operator not in COMPARISONS:
            msg = f"{operator!r} is no comparison; write one of {', '.join(COMPARISONS)}"
            raise DeclarationError(msg)
        for number in (value, mask or 0):
            if not isinstance(number, int) or not -(1 << 63) <= number <= WORD:
                msg = f"Arg({index}, ...): {number!r} is no number of 64 bits"
                raise DeclarationError(msg)
        value &= WORD
        if mask is None:
            self.comparison: Comparison = (index, COMPARISONS[operator], value, 0)
            self.text = f"Arg({index}, {operator!r}, {value})"
            return
        mask &= WORD
        if operator != "==" or value & ~mask:
            msg = f"Arg({index}, {operator!r}, {value:#x}, mask={mask:#x}) "
            msg += "can never hold" if operator == "==" else "is not offered: a mask goes with '=='"
            raise DeclarationError(msg)
        self.comparison = (index, MASKED, mask, value)
        self.text = f"Arg({index}, '==', {value:#x}, mask={mask:#x})"

    def __repr__(self) -> str:
        return self.text


def call_number(name: object) -> int | None:
    """A call's number by libseccomp, or by this kernel where that is younger."""
    if not isinstance(name, str):
        msg = f"{name!r} names no call; write its name, as 'openat', or an Arg(...)"
        raise DeclarationError(msg)
    number = number_of(name)
    return NUMBERS.get(name) if number is None else number


def unknown_call(name: str) -> DeclarationError:
    """What was meant, perhaps."""
    import difflib

    near = difflib.get_close_matches(name, NUMBERS, 3)
    told = f"did you mean {' or '.join(near)}?" if near else "best_effort=True leaves it out"
    return DeclarationError(f"{name!r} is no system call known here; {told}")
