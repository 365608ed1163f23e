"""What else a program's file wants to be there: a script's interpreter, a binary's loader."""

from __future__ import annotations

import os
import stat
import struct

HEAD = 4096
LINE = 256  # BINPRM_BUF_SIZE
PT_INTERP = 3
MOST = 5  # how many scripts may be scripts of each other


def interpreter_of(path: bytes) -> bytes:
    """The interpreter or loader that a regular file names, as the kernel reads it; or nothing.

    See: execve(2), elf(5).
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - pathlib is slow to import
        return b""
    with open(path, "rb") as file:  # noqa: PTH123 - likewise
        head = file.read(HEAD)
    if head.startswith(b"#!"):
        line = head[2:LINE].partition(b"\n")[0]
        return next(iter(line.replace(b"\t", b" ").strip(b" ").split(b" ")))
    return loader_of(head) if head.startswith(b"\x7fELF") else b""


def loader_of(head: bytes) -> bytes:
    """The loader that a binary of this machine's byte order names at its beginning."""
    wide = head[4:5] == b"\2"
    try:
        (table,) = struct.unpack_from("<Q" if wide else "<I", head, 32 if wide else 28)
        size, count = struct.unpack_from("<HH", head, 54 if wide else 42)
        for at in range(table, table + size * count, size):
            if struct.unpack_from("<I", head, at) == (PT_INTERP,):
                form = "<8xQ16xQ" if wide else "<4xI8xI"
                place, length = struct.unpack_from(form, head, at)
                return head[place : place + length].rstrip(b"\0")
    except (struct.error, ValueError):
        pass
    return b""


def missing_for(path: bytes) -> tuple[bytes, bytes] | None:
    """A file on the way from this one, which is there, and what it names, which is not."""
    try:
        for _ in range(MOST):
            named = interpreter_of(path)
            if not named:
                return None
            if not os.path.exists(named):  # noqa: PTH110 - pathlib is slow to import
                return path, named
            path = named
    except OSError:
        pass
    return None
