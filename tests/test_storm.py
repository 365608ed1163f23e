"""Spawns in a storm: other threads open, close, allocate, fork and send signals all the while."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from step_cases import refusing

from clonekit import Process, Program, Slot
from clonekit.steps import (
    execute,
    install_seccomp_filter,
    new_session,
    open_pipe,
    place_descriptors,
    set_capabilities,
    set_no_new_privs,
    set_rlimit,
)
from clonekit.steps.step import Step

SPAWNERS = 3
SOURCES = 6
VECTORS = 48
SLACK = 200  # maps that threads and the allocator may have added; a leak adds one a spawn


def opens_and_closes(stop: threading.Event) -> None:
    """Descriptors come and go, at the lowest numbers and at high ones."""
    while not stop.is_set():
        fds = [*os.pipe(), os.open("/dev/zero", os.O_RDONLY)]
        os.set_inheritable(fds[0], 1)
        fds.append(os.dup2(fds[2], random.randrange(900, 1000)))
        for fd in set(fds):
            os.close(fd)


def allocates(stop: threading.Event) -> None:
    """Memory comes and goes, with the maps that it takes."""
    while not stop.is_set():
        blocks = [bytearray(random.randrange(1, 1 << 20)) for _ in range(16)]
        del blocks


def signals_thread(stop: threading.Event) -> None:
    """The spawning threads' process gets signals, and so do its threads."""
    main = threading.main_thread().ident
    assert main is not None
    while not stop.is_set():
        signal.pthread_kill(main, signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR2)
        for thread in threading.enumerate():
            if thread.name == "spawner" and thread.ident and thread.is_alive():
                signal.pthread_kill(thread.ident, signal.SIGUSR1)


@contextmanager
def beside(*works: tuple[Any, ...]) -> Iterator[None]:
    """A thread for each function and its arguments, after an event, until the block ends."""
    stop = threading.Event()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(interval / 50)  # else whoever spawns waits most of the time for the rest
    threads = [threading.Thread(target=work, args=(stop, *args)) for work, *args in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)


@contextmanager
def storm() -> Iterator[None]:
    """Threads that do all of this until the block ends."""
    before = {
        number: signal.signal(number, lambda *_: None)
        for number in (signal.SIGUSR1, signal.SIGUSR2)
    }
    try:
        with beside((opens_and_closes,), (allocates,), (signals_thread,)):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def expected(vector: dict[int, int]) -> list[str]:
    files = {to: os.fstat(source) for to, source in vector.items()}
    return [f"{to}:{file.st_dev}:{file.st_ino}" for to, file in files.items()] or ["-"]


def more_steps(n: int) -> list[Step]:
    """Now and then a program does more than place descriptors."""
    return [
        [],
        [new_session(), set_rlimit("core", 0)],
        [open_pipe("r", "w"), set_capabilities([])],
        [set_no_new_privs(), install_seccomp_filter(refusing({"acct": 1}))],
    ][n % 4]


@pytest.fixture
def sources(tmp_path: Path) -> Iterator[list[int]]:
    """Files of ours that programs are given, at numbers that nothing in the storm takes."""
    fds = []
    for n in range(SOURCES):
        fd = os.open(tmp_path / str(n), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fds.append(os.dup2(fd, 600 + n, inheritable=False))
        os.close(fd)
    yield fds
    for fd in fds:
        os.close(fd)


def spawners(see: str, sources: list[int], seed: int) -> list[Callable[[], Process]]:
    """Programs for random vectors, some with numbers and some with slots."""
    random_ = random.Random(seed)
    made: list[Callable[[], Process]] = []
    for n in range(VECTORS):
        numbers = random_.sample([*range(12), *sources, *range(590, 600)], random_.randrange(9))
        vector = {number: random_.choice(sources) for number in numbers}
        given: dict[int, object] = dict(vector)
        slots = {}
        if n % 3 == 0:
            slots = {f"s{fd}": fd for fd in sorted(set(vector.values()))}
            given = {to: Slot(f"s{fd}") for to, fd in vector.items()}
        last = execute([see, *expected(vector)], env={})
        program = Program([*more_steps(n), place_descriptors(given), last])
        made.append(lambda program=program, slots=slots: program.spawn(**slots))
    return made


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.long)])
@pytest.mark.usefixtures("no_hang")
def test_the_vector_is_exact_and_nothing_leaks_in_a_storm(
    count: int, built: Path, sources: list[int]
) -> None:
    programs = [spawners(str(built / "see"), sources, seed) for seed in range(SPAWNERS)]
    wrong: list[object] = []
    seed = random.randrange(1 << 32)

    def work(number: int, times: int) -> None:
        random_ = random.Random(seed + number)
        for _ in range(times):
            try:
                ended = random_.choice(programs[number])().wait()
            except BaseException as error:
                wrong.append(error)
                raise
            if ended.status != 0:
                wrong.append(ended)

    with storm():
        work(0, 100)
    gc.collect()
    descriptors, maps = open_files(), count_of_maps()
    with storm():
        each = count // SPAWNERS
        others = [
            threading.Thread(target=work, args=(n, each), name="spawner")
            for n in range(1, SPAWNERS)
        ]
        for thread in others:
            thread.start()
        work(0, count - each * (SPAWNERS - 1))
        for thread in others:
            thread.join()
    gc.collect()
    assert wrong == []
    assert open_files() == descriptors
    assert count_of_maps() - maps < SLACK
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)


def open_files() -> dict[str, str]:
    """Our descriptors and what they are."""
    own = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            own[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the directory itself
            continue
    return own


def count_of_maps() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.usefixtures("no_hang")
def test_failures_leak_nothing_in_a_storm(tmp_path: Path) -> None:
    program = Program([open_pipe("r", "w"), set_capabilities([]), execute([tmp_path / "absent"])])
    descriptors = open_files()
    with storm():
        for _ in range(500):
            with pytest.raises(FileNotFoundError):
                program.spawn()
    gc.collect()
    assert open_files() == descriptors
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)


@pytest.mark.usefixtures("no_hang")
def test_a_storm_would_be_seen_in_a_program_that_inherits(built: Path) -> None:
    """The control: without a table of its own, a program does see what other threads open."""
    program = Program([place_descriptors("inherit"), execute([str(built / "see"), "-"], env={})])
    with storm():
        assert any(program.spawn().wait().status == 1 for _ in range(5_000))
