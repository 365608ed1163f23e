"""What the tests of suspended processes share: C programs, a start in that state, what is left."""

from __future__ import annotations

import functools
import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from parent_snapshot import children

from clonekit import Slot, Suspended, spawn
from clonekit.steps import (
    new_session,
    open_pipe,
    set_gid,
    set_groups,
    set_no_new_privs,
    set_uid,
    set_umask,
    write,
)
from clonekit.steps.step import Step

#: How each kind of program is compiled.
KINDS = {
    "static": ["-static"],
    "static-pie": ["-static-pie"],
    "dynamic": ["-no-pie"],
    "dynamic-pie": ["-pie", "-fPIE"],
    "bare": ["-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector"],
}
PATIENCE = 60  # seconds after which what should have ended is said to be stuck
PYTHON = (sys.executable, "-I", "-S")


def compiled(directory: Path, source: str, kind: str = "static", *options: str) -> Path:
    """A program of this source and kind."""
    target = directory / f"made-{kind}"
    command: list[str | Path] = [
        "gcc",
        "-O2",
        "-Wall",
        "-Werror",
        "-x",
        "c",
        "-",
        "-o",
        target,
        *KINDS[kind],
    ]
    subprocess.run([*command, *options], input=source, text=True, check=True)
    return target


def symbol(program: Path, name: str) -> int:
    """The address of a symbol in a file."""
    rows = subprocess.run(["nm", program], capture_output=True, text=True, check=True).stdout
    return next(int(row.split()[0], 16) for row in rows.splitlines() if row.split()[-1] == name)


def entry(program: Path) -> int:
    """e_entry of a file."""
    return int.from_bytes(program.read_bytes()[24:32], "little")


def suspended(argv: list[str | Path], **declaration: object) -> Suspended:
    """A process that is suspended."""
    held = spawn(argv, suspended=True, **declaration)
    assert isinstance(held, Suspended)
    return held


def printed(
    argv: list[str | Path], change: Callable[[Suspended], object], **declaration: object
) -> str:
    """What a program prints that was suspended, changed, and resumed, and then ended well."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(reader, errors="replace") as told:
        try:
            with suspended(argv, fds={0: 0, 1: writer, 2: writer}, **declaration) as held:
                change(held)
                process = held.resume()
        finally:
            os.close(writer)
        with process:
            text = told.read()
            assert process.wait().status == 0, text
    return text


def status(pid: int, name: str) -> str:
    """A line of /proc/PID/status."""
    with open(f"/proc/{pid}/status", errors="replace") as file:
        return next(row.partition(":")[2].strip() for row in file if row.startswith(f"{name}:"))


def mask(*numbers: int) -> str:
    """A set of signals as /proc shows it."""
    return f"{sum(1 << number - 1 for number in numbers):016x}"


def maps(pid: int) -> list[str]:
    """The mappings of a process."""
    with open(f"/proc/{pid}/maps", errors="surrogateescape") as file:
        return file.read().splitlines()


def memory(pid: int) -> dict[str, bytes]:
    """Every byte of the mappings that can be read, but for what the kernel itself writes."""
    found = {}
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        for row in maps(pid):
            where, rights, *_ = row.split()
            if rights[0] == "r" and "[vvar" not in row:
                start, end = (int(part, 16) for part in where.split("-"))
                found[row] = os.pread(file.fileno(), end - start, start)
    return found


def ends() -> list[int]:
    """How each child of ours ends: as `Exit.returncode`. All of them end, or it is an error."""
    found: list[int] = []
    while True:
        try:
            seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return sorted(found)
        if seen is None:
            wait_for_some_end()
        else:
            found.append(seen.si_status if seen.si_code == os.CLD_EXITED else -seen.si_status)


def wait_for_some_end() -> None:
    """Sleep until a child has ended; name those that do not."""
    pids = [int(pid) for pid in children()]
    pidfds = [os.pidfd_open(pid) for pid in pids]
    ready, _, _ = select.select(pidfds, [], [], PATIENCE)
    for pidfd in pidfds:
        os.close(pidfd)
    assert ready, [(pid, status(pid, "Name"), status(pid, "State")) for pid in pids]


@functools.cache
def memory_file() -> int:
    """A file in memory, which stays open: there is one."""
    fd = os.memfd_create("shared")
    os.ftruncate(fd, 4096)
    return fd


def stack(held: Suspended) -> int:
    """Where its stack ends: its argc is there."""
    return held.registers["rsp" if "rsp" in held.registers else "sp"]


#: Whatever only the thread may do that made it.
OPERATIONS: dict[str, Callable[[Suspended], object]] = {
    "do": lambda held: held.do(set_umask(0)),
    "syscall": lambda held: held.syscall("getpid"),
    "buffer": lambda held: held.syscall("getcwd", bytearray(64), 64),
    "map": lambda held: held.map(memory_file(), 4096),
    "read": lambda held: held.read(stack(held), 8),
    "write": lambda held: held.write(stack(held) - 8, b"below it"),
    "give": lambda held: held.give(0),
    "resume": lambda held: held.resume().close(),
}


def set_up() -> list[Step]:
    """Steps of a set-up, with those after which a parent's death is hard to see."""
    ids = [set_groups([]), set_gid(65534), set_uid(65534)] if os.geteuid() == 0 else []
    return [
        set_umask(0), new_session(), open_pipe("r", "w"), write(Slot("w"), b"x"), *ids,
        set_no_new_privs(),
    ]  # fmt: skip
