"""When our memory must be untraceable while a child has it: H7 of cdefs/machine.c."""

from __future__ import annotations

import os
import sys
from itertools import takewhile

from clonekit.errors import DeclarationError
from clonekit.linux.abi import call, ffi, lib
from clonekit.manners import JOINS
from clonekit.records import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clonekit.records import Record

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


def is_privileged() -> bool:
    """Whether we have what a process of our uid may lack: capabilities.

    Where our own uid owns our user namespace, each of its processes outside has them all there.
    """
    if os.geteuid() == 0:
        return True
    header = ffi.new("uint32_t[2]", [lib._LINUX_CAPABILITY_VERSION_3, 0])  # noqa: SLF001 - the kernel's own name
    data = ffi.new("uint32_t[6]")
    call("capget", int(ffi.cast("uintptr_t", header)), int(ffi.cast("uintptr_t", data)))
    _, permitted, _, _, permitted_high, _ = data
    return bool(permitted or permitted_high) and owner_of_namespace() != os.geteuid()


def owner_of_namespace() -> int:
    """The uid that made our user namespace; -1 where that cannot be told."""
    import fcntl

    try:
        with open("/proc/self/ns/user", "rb") as file:  # noqa: PTH123 - pathlib is slow to import
            return int.from_bytes(fcntl.ioctl(file, lib.NS_GET_OWNER_UID, bytes(4)), sys.byteorder)
    except OSError:
        return -1


def refuse_debug_dumps() -> None:
    """fs.suid_dumpable=1 makes memory traceable by the very change of ids that must not."""
    try:
        with open("/proc/sys/fs/suid_dumpable", "rb") as file:  # noqa: PTH123 - pathlib is slow to import
            value = file.read(1)
    except (FileNotFoundError, PermissionError):
        return
    if value == b"1":
        msg = (
            "the sysctl fs.suid_dumpable is 1, so a process of the new uid could trace our memory "
            "while the child shares it; set it to 0 or 2"
        )
        raise DeclarationError(msg)
