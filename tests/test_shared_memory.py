"""Memory that a suspended program is given, read and written by both sides when it runs."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import signal
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest
from suspending import PYTHON, compiled, maps, memory, suspended, symbol

from clonekit import DeclarationError, Process, Suspended
from clonekit.linux.abi import call

SIZE = 2 * mmap.PAGESIZE
AGREED = 0x6A0000000000
FUTEX_WAIT, FUTEX_WAKE = 0, 1

#: It adds one to the first word, waits for our turn, and ends with what it finds in the second.
BY_ARGUMENT = """
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    volatile unsigned long *shared = argc > 1 ? (void *)strtoul(argv[1], 0, 0) : (void *)AGREED;
    char turn;
    shared[0] += 1;
    if (write(1, "x", 1) != 1 || read(0, &turn, 1) != 1)
        return 1;
    return (int)shared[1];
}
"""
IN_PYTHON = """
import ctypes, os, sys
shared = (ctypes.c_ulong * 2).from_address(int(sys.argv[1], 0))
shared[0] += 1
os.write(1, b"x")
os.read(0, 1)
sys.exit(shared[1])
"""
#: The same without a C library: its memory comes by a register, and turns by a futex in it.
BY_REGISTER = """
#include <sys/syscall.h>
#ifdef __x86_64__
__asm__(".globl _start\\n_start: andq $-16, %rsp\\n call begin\\n hlt\\n");
static long make(long nr, long a, long b, long c)
{
    long result;
    register long r10 __asm__("r10") = 0;
    __asm__ volatile("syscall" : "=a"(result) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10)
                     : "rcx", "r11", "memory");
    return result;
}
#else
__asm__(".globl _start\\n_start: bl begin\\n brk #0\\n");
static long make(long nr, long a, long b, long c)
{
    register long x8 __asm__("x8") = nr, x0 __asm__("x0") = a, x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c, x3 __asm__("x3") = 0;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
}
#endif
int count = 1;
__attribute__((used)) void begin(volatile unsigned int *shared)
{
    shared[0] += count;
    __atomic_store_n(&shared[2], 1, __ATOMIC_RELEASE);
    make(SYS_futex, (long)&shared[2], 1, 1);
    while (__atomic_load_n(&shared[3], __ATOMIC_ACQUIRE) == 0)
        make(SYS_futex, (long)&shared[3], 0, 0);
    make(SYS_exit_group, shared[1], 0, 0);
}
"""


@pytest.fixture
def shared() -> Iterator[tuple[int, mmap.mmap]]:
    """A memfd and our mapping of it."""
    fd = os.memfd_create("shared", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    with mmap.mmap(fd, SIZE) as ours:
        yield fd, ours
    os.close(fd)


class Turns:
    """Two pipes: the program says that it has done its part, and is told that we have."""

    def __init__(self) -> None:
        self.ends = [*os.pipe2(os.O_CLOEXEC), *os.pipe2(os.O_CLOEXEC)]

    def fds(self) -> dict[int, int]:
        """The program's descriptors."""
        return {0: self.ends[0], 1: self.ends[3], 2: 2}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for end in self.ends:
            os.close(end)

    def its(self) -> None:
        """Wait until the program has done its part."""
        assert os.read(self.ends[2], 1) == b"x"

    def ours(self) -> None:
        """Tell it that we have done ours."""
        os.write(self.ends[1], b"x")


def both_write(process: Process, turns: Turns, ours: mmap.mmap) -> None:
    """The program has seen what we wrote before it began, we see its, and it sees ours."""
    turns.its()
    assert ours[:8] == struct.pack("<Q", 42)
    ours[8:16] = struct.pack("<Q", 77)
    turns.ours()
    assert process.wait().status == 77


ARGVS = ("static", "static-pie", "dynamic", "dynamic-pie", "python")


def program(kind: str, directory: Path) -> list[str | Path]:
    """A program that takes the address as its last argument."""
    if kind == "python":
        return [*PYTHON, "-c", IN_PYTHON]
    return [compiled(directory, BY_ARGUMENT, kind, f"-DAGREED={AGREED:#x}")]


@pytest.mark.parametrize("kind", ARGVS)
def test_a_program_is_told_the_address_by_an_argument(
    kind: str, shared: tuple[int, mmap.mmap], tmp_path: Path
) -> None:
    fd, ours = shared
    ours[:8] = struct.pack("<Q", 41)
    argv = [*program(kind, tmp_path), hex(AGREED)]
    with Turns() as turns, suspended(argv, fds=turns.fds()) as held:
        assert held.map(fd, SIZE, address=AGREED) == AGREED
        assert held.read(AGREED, 8) == ours[:8]
        files = [
            os.readlink(f"/proc/{held.pid}/fd/{n}") for n in os.listdir(f"/proc/{held.pid}/fd")
        ]
        assert not any("memfd" in file for file in files)
        with held.resume() as process:
            both_write(process, turns, ours)


def test_a_program_has_it_at_an_address_that_both_agreed_on(
    shared: tuple[int, mmap.mmap], tmp_path: Path
) -> None:
    fd, ours = shared
    ours[:8] = struct.pack("<Q", 41)
    with Turns() as turns, suspended(program("dynamic", tmp_path), fds=turns.fds()) as held:
        held.map(fd, SIZE, address=AGREED)
        with held.resume() as process:
            both_write(process, turns, ours)


def test_a_program_without_a_library_is_told_the_address_by_a_register(
    shared: tuple[int, mmap.mmap], tmp_path: Path
) -> None:
    if platform.machine() not in {"x86_64", "aarch64"}:
        pytest.skip("no code for this machine")
    fd, ours = shared
    ours[:4] = struct.pack("<I", 41)
    bare = compiled(tmp_path, BY_REGISTER, "bare")
    words = (ctypes.c_uint * 4).from_buffer(ours)
    at = address_of_words(words)
    with suspended([bare]) as held:
        assert held.read(symbol(bare, "count"), 4) == bytes([1, 0, 0, 0])
        first = "rdi" if "rdi" in held.registers else "x0"
        held.set_registers(**{first: held.map(fd, SIZE)})
        with held.resume() as process:
            while words[2] == 0:
                wait_on(at + 8)
            assert words[0] == 42
            words[1] = 77
            words[3] = 1
            call("futex", at + 12, FUTEX_WAKE, 1, 0, 0, 0)
            assert process.wait().status == 77
    del words


def address_of_words(words: ctypes.Array[ctypes.c_uint]) -> int:
    return ctypes.addressof(words)


def wait_on(address: int) -> None:
    """Sleep while this word is 0."""
    with suppress(BlockingIOError, InterruptedError):
        call("futex", address, FUTEX_WAIT, 0, 0, 0, 0)


def test_several_programs_share_it(shared: tuple[int, mmap.mmap]) -> None:
    fd, ours = shared
    argv: list[str | Path] = [*PYTHON, "-c", IN_PYTHON, hex(AGREED)]
    for n in range(3):
        ours[8:16] = struct.pack("<Q", n)
        with Turns() as turns, suspended(argv, fds=turns.fds()) as held:
            held.map(fd, SIZE, address=AGREED)
            with held.resume() as process:
                turns.its()
                turns.ours()
                assert process.wait().status == n
        assert ours[:8] == struct.pack("<Q", n + 1)


def test_what_is_mapped_already_is_not_replaced(shared: tuple[int, mmap.mmap]) -> None:
    fd, _ = shared
    with suspended(["true"]) as held:
        before = memory(held.pid)
        for row in before:
            with pytest.raises(FileExistsError, match="mmap"):
                held.map(fd, SIZE, address=int(row.split("-")[0], 16))
        assert memory(held.pid) == before
        for wrong in ({"offset": 1}, {"address": 1}, {"address": 0}, {"size": 0}, {"size": "4"}):
            with pytest.raises(DeclarationError, match="give"):
                held.map(fd, **{"size": SIZE, **wrong})  # type: ignore[arg-type]


def test_a_private_mapping_is_the_programs_own(shared: tuple[int, mmap.mmap]) -> None:
    fd, ours = shared
    with suspended(["true"]) as held:
        at = held.map(fd, mmap.PAGESIZE, shared=False, offset=mmap.PAGESIZE)
        held.write(at, b"its")
        assert ours[mmap.PAGESIZE : mmap.PAGESIZE + 3] == bytes(3)
        assert held.read(at, 3) == b"its"
        shared_at = held.map(fd, mmap.PAGESIZE, offset=mmap.PAGESIZE)
        held.write(shared_at, b"our")
        assert ours[mmap.PAGESIZE : mmap.PAGESIZE + 3] == b"our"


@pytest.mark.parametrize(
    ("protection", "shown"), [("r", "r--s"), ("rw", "rw-s"), ("rx", "r-xs"), ("", "---s")]
)
def test_its_rights_are_those_that_were_asked_for(
    protection: str, shown: str, shared: tuple[int, mmap.mmap]
) -> None:
    with suspended(["true"]) as held:
        held.map(shared[0], SIZE, address=AGREED, protection=protection)
        rows = {row.split("-")[0]: row.split()[1] for row in maps(held.pid)}
        assert rows[f"{AGREED:x}"] == shown


def test_a_program_that_writes_where_it_may_only_read_is_killed(
    shared: tuple[int, mmap.mmap], tmp_path: Path
) -> None:
    argv = [*program("static", tmp_path), hex(AGREED)]

    with Turns() as turns, suspended(argv, fds=turns.fds(), rlimits={"core": 0}) as held:
        held.map(shared[0], SIZE, address=AGREED, protection="r")
        with held.resume() as process:
            assert process.wait().signal == signal.SIGSEGV
    assert shared[1][:8] == bytes(8)


def test_a_file_that_may_not_be_written_is_not_mapped_for_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(SIZE))
    with open(tmp_path / "file", "rb") as file, suspended(["true"]) as held:
        with pytest.raises(PermissionError, match="mmap"):
            held.map(file, SIZE)
        assert isinstance(held, Suspended)
        assert held.read(held.map(file, SIZE, protection="r"), SIZE) == bytes(SIZE)
