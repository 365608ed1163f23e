"""Programs under a filter, that make calls and tell what came of them."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

from clonekit import Exit, Filter, spawn
from clonekit.linux.abi import NUMBERS

START = """
import ctypes, errno, os, signal, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def call(number, *arguments):
    result = libc.syscall(number, *map(ctypes.c_long, arguments))
    return errno.errorcode[ctypes.get_errno()] if result == -1 else result
"""


def run(filtered: Filter | bytes, code: str, **fields: Any) -> tuple[str, Exit]:
    """What a fresh interpreter under the filter prints, and how it ends."""
    reader, writer = os.pipe()
    try:
        with open(writer, "wb") as end:
            process = spawn(
                [sys.executable, "-c", START + code], fds={0: 0, 1: end, 2: 2},
                no_new_privs=True, seccomp=filtered, **fields,
            )  # fmt: skip
        with open(reader, closefd=False) as lines:
            return lines.read(), process.wait()
    finally:
        os.close(reader)


def outcomes(filtered: Filter | bytes, *calls: tuple[Any, ...], **fields: Any) -> list[int | str]:
    """What each of the calls, a name and arguments, gives under the filter."""
    numbered = [(NUMBERS.get(name, name), *arguments) for name, *arguments in calls]
    text, ended = run(filtered, f"for each in {numbered!r}: print(call(*each))", **fields)
    assert ended.status == 0
    return [int(line) if line.lstrip("-").isdigit() else line for line in text.splitlines()]


def errno_of(answers: set[int]) -> str:
    """The errno that is the only answer."""
    (answer,) = answers
    return errno.errorcode[answer & 0xFFFF]
