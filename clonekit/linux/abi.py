"""The compiled half of the library, and system calls by name."""

from __future__ import annotations

import os

from clonekit._machine import ffi, lib
from clonekit.errors import DeclarationError

__all__ = ["NUMBERS", "call", "ffi", "lib", "name_of", "refuse_nul"]

LAST_ERRNO = 4095
#: The number of each system call on this machine, by name.
NUMBERS: dict[str, int] = {
    name: int(number)
    for name, _, number in (
        entry.partition("=") for entry in ffi.string(lib.ck_syscall_table()).decode().split()
    )
}

_names: dict[int, str] = {}


def name_of(number: int) -> str:
    """The name of the system call with this number, or `syscall_N` for an unknown one."""
    if not _names:
        _names.update({value: key for key, value in NUMBERS.items()})
    return _names.get(number, f"syscall_{number}")


def call(name: str, *arguments: int) -> int:
    """Make a system call from this thread and give its result.

    Arguments are integers (an address, for what is passed by pointer).

    Raises: OSError with the call's errno.
    """
    result: int = lib.ck_raw(NUMBERS[name], *arguments, *(0,) * (6 - len(arguments)))
    if -LAST_ERRNO <= result < 0:
        raise OSError(-result, f"{name}: {os.strerror(-result)}")
    return result


def refuse_nul(text: bytes, what: str) -> bytes:
    """The text with the NUL that ends it; one inside would cut it short, so it is refused."""
    if b"\0" in text:
        msg = f"{what} holds a NUL byte: {text!r}; a C string ends there, so remove it"
        raise DeclarationError(msg)
    return text + b"\0"
