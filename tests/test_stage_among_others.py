"""The first stage among others: forks, threads, a parent that dies, and whoever means it harm."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from parent_snapshot import children, content, descriptors, snapshot
from step_cases import NOBODY

from clonekit import Program, SpawnError, spawn
from clonekit.linux.abi import call, ffi, lib
from clonekit.stage import ANSWER_AT, REPORT, REPORT_AT
from clonekit.staged import first_stage, judge, place_taken, successor
from clonekit.steps import (
    disable_huge_pages,
    execute,
    place_descriptors,
    set_gid,
    set_groups,
    set_uid,
    set_umask,
    system_call,
    write,
)
from clonekit.steps.step import Step

BLOCKS = system_call("ppoll", 0, 0, 0, 0, 8)
ME = system_call("getpid", result="me")
LOADS = disable_huge_pages()
PATIENCE = 60  # seconds
MOST_COPIES = 64  # of us, each with pages of its own before long
MOST_BYTES = 16 << 10
PTRACE_SEIZE = 0x4206


def program(*steps: Step, argv: str = "true", deadline: float | None = None) -> Program:
    """A program of these steps, all in the first stage."""
    return Program([LOADS, *steps, execute([argv])], deadline=deadline)


def test_a_copy_of_us_that_was_forked_meanwhile_holds_nobody() -> None:
    """It has the pipe by which the end of the set-up is told."""
    forked: list[int] = []
    go_on = True

    def fork() -> None:
        while go_on and len(forked) < MOST_COPIES:  # a slow machine gets no more of them
            pid = os.fork()
            if pid == 0:
                signal.alarm(2 * PATIENCE)
                signal.pause()
            forked.append(pid)

    thread = threading.Thread(target=fork)
    thread.start()
    try:
        for _ in range(100):
            with program().spawn() as process:
                assert process.wait().status == 0
    finally:
        go_on = False
        thread.join()
        for pid in forked:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_a_step_that_closes_all_descriptors_does_not_end_the_wait_too_early() -> None:
    closes = system_call("close_range", 3, 0xFFFFFFFF, 0)
    for after in ([], [set_umask(0)]):
        vector = place_descriptors({0: 0, 1: 1, 2: 2})
        with program(vector, closes, *after, argv="true").spawn() as process:
            assert process.wait().status == 0


def test_thousands_are_spawned_from_many_threads() -> None:
    wrong: list[BaseException] = []
    before = snapshot()
    right, absent = program(), program(argv="/nonexistent")

    def repeat() -> None:
        try:
            for _ in range(300):
                with right.spawn() as process:
                    assert process.wait().status == 0
                with suppress(FileNotFoundError):
                    absent.spawn()
        except BaseException as error:  # noqa: BLE001 - the test tells of it below
            wrong.append(error)

    threads = [threading.Thread(target=repeat) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert (descriptors(), children()) == (before["descriptors"], before["children"])


# ---- the parent dies ----


@pytest.fixture
def subreaper() -> Iterator[None]:
    """Orphans become our children."""
    call("prctl", lib.PR_SET_CHILD_SUBREAPER, 1)
    yield
    call("prctl", lib.PR_SET_CHILD_SUBREAPER, 0)


def orphans(*steps: Step, deadline: float | None) -> list[int]:
    """What is left of a parent that is killed by one of these steps of its child."""
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            kills = system_call("kill", os.getpid(), signal.SIGKILL)
            steps = tuple(kills if step is KILLS else step for step in steps)
            Program([*steps, execute(["sleep", "1000"])], deadline=deadline).spawn()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    return [int(child) for child in children()]


KILLS = system_call("kill", 0, 0)


@pytest.mark.usefixtures("subreaper")
@pytest.mark.parametrize("steps", [(KILLS, LOADS), (LOADS, KILLS), (LOADS, set_umask(0), KILLS)])
def test_with_a_deadline_it_ends_with_its_parent(steps: tuple[Step, ...]) -> None:
    for _ in range(10):
        for pid in orphans(*steps, BLOCKS, deadline=PATIENCE):
            pidfd = os.pidfd_open(pid)
            assert select.select([pidfd], [], [], PATIENCE)[0], content(f"/proc/{pid}/comm")
            os.close(pidfd)
            os.waitpid(pid, 0)


@pytest.mark.usefixtures("subreaper")
@pytest.mark.parametrize("steps", [(KILLS, LOADS), (LOADS, KILLS), (set_umask(0), KILLS)])
def test_without_one_its_program_begins_as_that_of_any_spawn_does(steps: tuple[Step, ...]) -> None:
    for pid in orphans(*steps, deadline=None):
        while content(f"/proc/{pid}/comm") != "sleep\n":
            os.sched_yield()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# ---- who is hostile ----


def test_a_pid_that_is_told_is_believed_of_our_children_alone() -> None:
    plan = os.memfd_create("plan")
    for pid in (-1, 0, 1, os.getppid(), 1 << 30, (1 << 31) - 1):
        os.pwrite(plan, struct.pack("<i", pid), ANSWER_AT)
        told = place_taken(plan)
        assert told == max(0, pid)
        assert not told or successor(told) is None
    os.close(plan)


def test_whatever_it_says_of_itself_is_an_end_or_an_error() -> None:
    compiled, random = program(), Random(1)
    for _ in range(300):
        plan = os.memfd_create("plan", os.MFD_ALLOW_SEALING)
        os.write(plan, compiled.rest.plan({}))
        states = [random.choice([0, 1, 2, 3, random.getrandbits(32)]) for _ in range(3)]
        report = REPORT.pack(*states, random.getrandbits(64) - (1 << 63))
        os.pwrite(plan, report, REPORT_AT)
        os.pwrite(plan, random.randbytes(8), ANSWER_AT)
        with spawn(["true"]) as process, suppress(SpawnError, ChildProcessError):
            judge(compiled, process, plan, ended=random.random() < 0.9)
        os.close(plan)


def reaches(pid: int) -> list[str]:
    """How a process of our uid may reach into this one."""
    found = []
    pidfd = os.pidfd_open(pid)
    attempts: dict[str, Callable[[], object]] = {
        "pidfd_getfd": lambda: call("pidfd_getfd", pidfd, 0, 0),
        "ptrace": lambda: call("ptrace", PTRACE_SEIZE, pid, 0, 0),
        "mem": lambda: os.open(f"/proc/{pid}/mem", os.O_RDWR),
        "exe": lambda: os.readlink(f"/proc/{pid}/exe"),
        "fd": lambda: os.listdir(f"/proc/{pid}/fd"),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except PermissionError:
            continue
        found.append(name)
    os.close(pidfd)
    return found


@pytest.mark.parametrize("at", ["memory", "ids"])
def test_nobody_without_privilege_reaches_into_it(at: str) -> None:
    """By its own uid, before and after its ids have changed there."""
    root = os.geteuid() == 0
    ids = [set_groups([]), set_gid(NOBODY), set_uid(NOBODY)] if root else []
    reader, writer = os.pipe2(os.O_CLOEXEC)
    tells = [ME, write(writer, b"."), BLOCKS]
    steps = [*ids, LOADS, *tells] if at == "memory" else [LOADS, *ids, *tells]
    ended: list[BaseException] = []

    def work() -> None:
        try:
            Program([*steps, execute(["true"])], deadline=PATIENCE).spawn()
        except ChildProcessError as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    os.read(reader, 1)
    pid = int(children()[-1])
    attempt = os.fork()
    if attempt == 0:
        status = 99
        with suppress(BaseException):
            if root:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            status = len(reaches(pid))
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(attempt, 0)[1])
    os.kill(pid, signal.SIGKILL)
    thread.join()
    os.close(reader)
    os.close(writer)
    assert status == 0
    assert [str(error.step)[:17] for error in ended] == ["system_call(ppoll"]  # type: ignore[attr-defined]


def test_its_file_is_changed_by_nobody_and_for_root_not_read() -> None:
    """Not to be readable is what keeps it from being traced from its first instruction on."""
    fd = first_stage()
    status = os.fstat(fd)
    assert status.st_mode & 0o777 == (0o111 if os.geteuid() == 0 else 0o555)
    assert fd > 2
    seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    assert seals & fcntl.F_SEAL_WRITE
    assert seals & fcntl.F_SEAL_GROW
    os.close(fd)


def test_its_program_is_small_static_and_never_both_writable_and_executable(
    tmp_path: Path,
) -> None:
    size = ffi.new("uint64_t *")
    image = bytes(ffi.buffer(lib.ck_stage_image(size), size[0]))
    assert len(image) < MOST_BYTES
    (tmp_path / "stage").write_bytes(image)

    def told(option: str) -> str:
        return subprocess.run(
            ["readelf", "--wide", option, tmp_path / "stage"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    segments = told("--program-headers")
    assert "INTERP" not in segments
    assert "DYNAMIC" not in segments
    assert "There are no relocations" in told("--relocs")
    flags = re.findall(r"^  (?:LOAD|GNU_STACK) .* ([RWE ]{3}) 0x", segments, re.MULTILINE)
    assert flags
    assert not [each for each in flags if "W" in each and "E" in each]
    assert " UND " not in re.sub(r"^ +0: .*$", "", told("--symbols"), flags=re.MULTILINE)
