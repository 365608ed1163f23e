"""A compiled program of which one record is spoilt, each in its turn, in both of its parts.

What is spoilt is what the machine reads. What the library explains the program by stays as it was,
so that an error can be held against it.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from awaited import beside

from clonekit import Program
from clonekit.explain import rows
from clonekit.linux.abi import NUMBERS, ffi, lib

#: No system call has this number: the kernel answers ENOSYS.
NO_CALL = 0xFFFF
PAGE = os.sysconf("SC_PAGE_SIZE")
#: The descriptor by which a child says where it is; it has one number from its clone to its exec.
BELL = 60
AT_MOST = 30.0  # seconds until a child must have rung


class Spoiler:
    """A program, and its records as the machine reads them.

    Attributes:
        rows: all its records as `explain` has them, those of the first stage last.
        in_first: how many of them the child carries out on our memory.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.rows = rows(program)
        self.in_first = len(program)
        self._first = ffi.new("struct ck_record[]", len(program))
        ffi.memmove(self._first, program.records, len(program.records))
        program.struct.records = self._first
        self._records = [self._first[n] for n in range(len(program))]
        self._page = ffi.new("char[]", 2 * PAGE)
        if program.rest is not None:
            image = ffi.from_buffer(program.rest._image)
            self._rest = ffi.cast(
                "struct ck_record *", image + len(image) - len(program.rest.records)
            )
            self._records += [self._rest[n] for n in range(len(program.rest))]
        assert len(self._records) == len(self.rows)

    @contextmanager
    def spoilt(self, number: int, **fields: Any) -> Iterator[None]:
        """One record with other fields meanwhile."""
        record = self._records[number]
        size = ffi.sizeof("struct ck_record")
        before = bytes(ffi.buffer(ffi.addressof(record), size))
        for name, value in fields.items():
            setattr(record, name, value)
        try:
            yield
        finally:
            ffi.memmove(ffi.addressof(record), before, size)

    def absent(self, number: int) -> Any:
        """A call that the kernel does not have, in place of a record's."""
        return self.spoilt(number, nr=NO_CALL)

    def blocking(self, number: int) -> Any:
        """A call that rings the bell and then waits for ever, in place of a record."""
        address = lib.CK_PLAN_AT
        if number < self.in_first:
            address = int(ffi.cast("uintptr_t", self._page))
        return self.spoilt(
            number, kind=lib.CK_CALL, flags=0, nr=NUMBERS["write"], operand_kind=[0] * 6,
            operand=[BELL, address, 2 * PAGE, 0, 0, 0],
        )  # fmt: skip


@contextmanager
def bell() -> Iterator[int]:
    """A pipe that holds one page: who writes more wakes its reader, and waits. The reader."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PAGE)
    os.set_blocking(writer, True)
    os.dup2(writer, BELL, inheritable=False)
    os.close(writer)
    try:
        yield reader
    finally:
        os.close(reader)
        os.close(BELL)


@contextmanager
def if_rung(reader: int, act: Callable[[], object]) -> Iterator[list[int]]:
    """Do this in another thread, once, when the child has rung; a list has one item then."""
    rang: list[int] = []
    over, ends = os.pipe2(os.O_CLOEXEC)

    def wait() -> None:
        rang[:] = set(select.select([reader, over], [], [], AT_MOST)[0]) & {reader}
        if over in select.select([over], [], [], 0)[0]:
            return
        try:
            act()
        except BaseException:  # nobody else would end the wait
            for child in children():
                os.kill(child, signal.SIGKILL)
            raise

    try:
        with beside(wait):
            try:
                yield rang
            finally:
                os.close(ends)
    finally:
        os.close(over)
        while select.select([reader], [], [], 0)[0]:
            os.read(reader, 2 * PAGE)


@contextmanager
def when_rung(reader: int, act: Callable[[], object]) -> Iterator[None]:
    """Do this in another thread, once, when the child has rung: it must."""
    with if_rung(reader, act) as rang:
        yield
    assert rang, "the child never came to the record"


def signal_children(number: signal.Signals) -> None:
    """Send this signal to our child; what is spawned for it meanwhile, comes after it."""
    os.kill(children()[0], number)


def children(pid: int | str = "self") -> list[int]:
    """The children of a process of ours, of each of its threads."""
    found: list[int] = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(FileNotFoundError, ProcessLookupError):  # one that ends
            text = Path(f"/proc/{pid}/task/{thread}/children").read_text()
            found += map(int, text.split())
    return found
