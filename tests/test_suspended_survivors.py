"""We are killed, or get hundreds of signals, while a process is suspended."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from parent_snapshot import descriptors
from suspending import OPERATIONS, ends, memory_file, set_up, suspended

from clonekit import Program, Suspended, nascent
from clonekit.linux.abi import call, lib
from clonekit.steps import (
    execute,
    stop_at_exec,
    write,
)

SPAWNS = 300
F_SETSIG = 10
pytestmark = pytest.mark.usefixtures("no_hang")

CALLER = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_suspended_survivors import caller
caller(sys.argv[2], int(sys.argv[3]))
"""


def caller(way: str, at: int) -> None:
    """A process that kills itself after so many operations; its child's program would print."""
    argv = ["sh", "-c", "echo ran; read line"]
    end = write(deadly(), b"x")
    left = at

    def point() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def drive(held: Suspended) -> None:
        point()
        for work in ("do", "syscall", "buffer", "map", "read", "give"):
            OPERATIONS[work](held)
            point()
        held.do(end) if left == 0 else None
        point()
        held.resume()
        print("resumed", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    steps = set_up()
    if way in {"set-up", "order"}:
        steps.insert(at, end)
    if way in {"set-up", "spawn"}:
        made = Program([*steps, stop_at_exec(), execute(argv)]).spawn()
        drive(made)  # type: ignore[arg-type]
    child = nascent()
    last = next((n for n, step in enumerate(steps) if step.phase == "ids"), len(steps))
    for step in steps[:last]:
        child.do(step)
        point()
    drive(child.start([*steps[last:], stop_at_exec(), execute(argv)]))  # type: ignore[arg-type]


def deadly() -> int:
    """A pipe that ends us when somebody writes to it, whatever his ids: fcntl F_SETSIG."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    fcntl.fcntl(reader, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(reader, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(reader, fcntl.F_SETFL, fcntl.fcntl(reader, fcntl.F_GETFL) | os.O_ASYNC)
    return writer


@pytest.fixture
def adopts() -> Iterator[None]:
    """Whoever loses its parent among our descendants becomes our child."""
    call("prctl", lib.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    call("prctl", lib.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def orphans(way: str, at: int) -> tuple[str, list[int]]:
    """What a caller and its child print that is killed there, and how its children end."""
    command = [sys.executable, "-c", CALLER, os.path.dirname(__file__), way, str(at)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.wait() == -signal.SIGKILL
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()  # a program that was resumed ends now
        found = ends()
        return process.stdout.read().decode(), found


WAYS = {"set-up": len(set_up()) + 1, "spawn": 8, "order": len(set_up()) + 1, "nascent": 12}


@pytest.mark.usefixtures("adopts")
@pytest.mark.parametrize(
    ("way", "at"), [(way, at) for way, count in WAYS.items() for at in range(count)]
)
def test_where_we_are_killed_nothing_remains_that_was_not_resumed(way: str, at: int) -> None:
    text, found = orphans(way, at)
    assert text == ""
    assert all(how != 0 for how in found), found
    assert way == "set-up" or found == [-signal.SIGKILL]


@pytest.mark.usefixtures("adopts")
@pytest.mark.parametrize("way", ["spawn", "nascent"])
def test_where_we_are_killed_after_it_was_resumed_it_goes_on(way: str) -> None:
    text, found = orphans(way, 100)
    assert sorted(text.split()) == ["ran", "resumed"]
    assert found == [1]  # of `read`, at the end of its input


def test_hundreds_in_a_storm_of_signals_are_whole_and_leave_nothing() -> None:
    main = threading.get_ident()
    stop = threading.Event()
    count = 0

    def handler(*_: object) -> None:
        nonlocal count
        count += 1

    def storm() -> None:
        while not stop.is_set():
            signal.pthread_kill(main, signal.SIGUSR1)

    earlier = signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=storm)
    memory_file()
    before = descriptors()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(interval / 50)  # else we wait most of the time for the other thread
    thread.start()
    try:
        for n in range(SPAWNS):
            with suspended(["true"], sigignore=["USR1"]) as held:
                assert held.syscall("getpid") == held.pid
                for work in list(OPERATIONS.values())[: n % len(OPERATIONS)]:
                    work(held)
                if n % len(OPERATIONS) < len(OPERATIONS) - 1:
                    with held.resume() as process:
                        assert process.wait().status == 0
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
        signal.signal(signal.SIGUSR1, earlier)
    assert count > SPAWNS
    assert ends() == []
    assert descriptors() == before
