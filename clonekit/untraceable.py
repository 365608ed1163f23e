"""When our memory must be untraceable while a child has it: H7 of cdefs/machine.c."""

from __future__ import annotations

import os
from itertools import takewhile

from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib
from clonekit.linux.privilege import has_capability, is_privileged
from clonekit.manners import JOINS
from clonekit.records import Call, Wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from clonekit.records import Record
    from clonekit.steps.step import Step

INT = 0xFFFFFFFF


def joins_users(record: Record) -> bool:
    """Whether a call may put the child into another user namespace."""
    if type(record) is not Call:
        return False
    values = record.operands
    if record.name in JOINS[:2]:
        kinds = values[1] if len(values) > 1 else 0
        return type(kinds) is not int or kinds & INT == 0 or bool(kinds & lib.CLONE_NEWUSER)
    if record.name in JOINS[2:]:
        makes = not values or type(values[0]) is not int or bool(values[0] & lib.CLONE_NEWUSER)
        return makes and is_privileged()
    return False


def untraceable() -> Call:
    """No process without CAP_SYS_PTRACE may trace our memory, and no core is made of it."""
    return Call("prctl", lib.PR_SET_DUMPABLE, 0, 0, 0, 0)


def checks_are_over() -> Call:
    """Outlast whoever has found the child traceable and is about to look at its credentials: P12.

    The kernel holds the child's lock (task_lock) from the one look to the other; so does this call,
    which changes nothing. A check that comes later finds an untraceable memory.
    """
    return Call("prlimit64", 0, lib.RLIMIT_NOFILE, 0, 0)


def dumps_end_all(release: str) -> bool:
    """Before Linux 5.16 a core dump of the child ends every process that shares its memory: us."""
    major, minor = (int("".join(takewhile(str.isdigit, part))) for part in release.split(".")[:2])
    return (major, minor) < (5, 16)


def refuse_unreachable(
    lists: Sequence[Sequence[Record]], steps: Sequence[Step], *, joins: bool
) -> None:
    """A listener can be fetched only from a child that we may trace."""
    if has_capability(lib.CAP_SYS_PTRACE):
        return
    hidden = joins
    for step, records in zip(steps, lists, strict=True):
        for record in records:
            hidden = hidden or hides(record)
            if hidden and type(record) is Wait and record.ask.meanwhile is not None:
                msg = (
                    f"{step}: its listener could not be fetched: without CAP_SYS_PTRACE we cannot "
                    "reach into a child whose ids or capabilities have changed (or, before Linux "
                    "5.16, that has a filter); leave those as they are, or the listener out"
                )
                raise DeclarationError(msg)


def hides(record: Record) -> bool:
    """Whether a record is that of `untraceable`."""
    return (
        type(record) is Call
        and record.name == "prctl"
        and record.operands[:2] == (lib.PR_SET_DUMPABLE, 0)
    )


def suid_dumpable() -> bytes:
    """The sysctl fs.suid_dumpable, or nothing where it cannot be read."""
    try:
        fd = os.open("/proc/sys/fs/suid_dumpable", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return b""
    try:
        return os.read(fd, 1)
    finally:
        os.close(fd)


def refuse_debug_dumps() -> None:
    """fs.suid_dumpable=1 makes memory traceable by the very change of ids that must not."""
    if suid_dumpable() == b"1":
        msg = (
            "the sysctl fs.suid_dumpable is 1, so a process of the new uid could trace our memory "
            "while the child shares it; set it to 0 or 2"
        )
        raise DeclarationError(msg)
