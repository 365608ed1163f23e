"""What tests of attackers share: a victim's memory, an attacker, and spawns beside it."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from step_cases import NOBODY

from clonekit import Process, Program, nascent, spawn
from clonekit.linux.abi import call, lib
from clonekit.steps import (
    execute,
    new_session,
    set_gid,
    set_groups,
    set_oom_score_adj,
    set_parent_death_signal,
    set_uid,
    system_call,
)
from clonekit.steps.step import Step

Need = Callable[[str], None]

INTACT = 0x1234_5678_9ABC_DEF0
WRITTEN = 0x0BAD_0BAD_0BAD_0BAD
SPAWNS = 2_000


class Victim:
    """One word of our memory, on a page of its own."""

    def __init__(self) -> None:
        self.page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.page))
        self.word = struct.pack("<Q", INTACT)
        self.page[:8] = self.word

    @property
    def intact(self) -> bool:
        return self.page[:8] == self.word


@pytest.fixture
def victim() -> Victim:
    return Victim()


@contextmanager
def attacker(
    built: Path, victim: Victim, *pids: int, **declaration: object
) -> Iterator[Callable[[], bytes]]:
    """A process that attacks these, or us and each child that is being made.

    It gives a function that waits until something was written, and says `!`.
    """
    which = "only" if pids else "recent"
    program = os.open(built / "attack", os.O_RDONLY | os.O_CLOEXEC)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        process = spawn(
            ["attack", hex(victim.address), hex(WRITTEN), which, *map(str, pids or [os.getpid()])],
            executable=program, fds={1: writer, 2: 2},
            pdeathsig="KILL", env={}, **declaration,
        )  # fmt: skip
    finally:
        os.close(program)
        os.close(writer)
    with process:
        assert os.read(reader, 1) == b"."
        yield lambda: os.read(reader, 1)
        assert process.poll() is None, "the attacker is to live to the end"
    os.close(reader)


@pytest.fixture
def outsider(need: Need) -> dict[str, object]:
    """How an attacker is spawned that is of the uid that children change to."""
    need("setuid")
    return {"uid": NOBODY, "gid": NOBODY}


@pytest.fixture
def namespace(need: Need) -> Iterator[Process]:
    """A process in a user namespace of ours, whose root attackers are."""
    need("user")
    with spawn(
        ["sleep", "100000"], namespaces=["user"], uid_map=0, gid_map=0, pdeathsig="KILL"
    ) as holder:
        yield holder


def lowered() -> list[Step]:
    return [set_groups([]), set_gid(NOBODY), set_uid(NOBODY)]


@pytest.fixture
def see(built: Path) -> Iterator[int]:
    """A tiny program, by descriptor: whoever runs it may not be let into our directory."""
    fd = os.open(built / "see", os.O_RDONLY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


class Waiting:
    """Steps that a child carries out when it is started, after it has waited."""

    def __init__(self, *steps: Step) -> None:
        self.steps = steps

    def spawn(self) -> Process:
        with nascent() as child:
            child.syscall("getpid")
            return child.start(self.steps)


def hammer(
    victim: Victim,
    programs: Sequence[Program | Waiting],
    others: list[Callable[[], object]],
    spawns: int = SPAWNS,
) -> None:
    """Spawn these programs by thousands, beside threads that do other things."""
    stop = threading.Event()
    wrong: list[BaseException] = []

    def repeat(work: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                work()
        except BaseException as error:  # noqa: BLE001 - the test tells of it below
            wrong.append(error)

    threads = [threading.Thread(target=repeat, args=(work,)) for work in others]
    for thread in threads:
        thread.start()
    try:
        for _ in range(spawns // len(programs)):
            for program in programs:
                # An attacker that stops the program again and again need not be waited for.
                with contextlib.suppress(FileNotFoundError), program.spawn():
                    pass
                assert victim.page[:8] == victim.word, f"written beside {program!r}"
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert call("prctl", lib.PR_GET_DUMPABLE) == 1


def forks() -> None:
    """Fork in mid-spawn: the copy has its own memory, which is ours to trace."""
    pid = os.fork()
    if pid == 0:
        os._exit(call("prctl", lib.PR_GET_DUMPABLE))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def changed(see: int) -> list[Program]:
    """Programs of another uid: that succeed, that fail late, in sessions of their own."""
    last = execute(["see", "-"], see, env={})
    return [
        Program([*lowered(), last]),
        Program([new_session(), *lowered(), last]),
        Program([*lowered(), execute(["/nonexistent"], env={})]),
        Program([set_oom_score_adj(500), *lowered(), set_parent_death_signal("KILL"), last]),
        Program([system_call("setfsuid", NOBODY), *lowered(), last]),
    ]
