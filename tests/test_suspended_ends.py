"""However a suspended process ends, or whoever drives it, nothing is left of it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from parent_snapshot import descriptors
from suspending import ends, suspended

from clonekit import Program, Slot, SpawnError, Suspended, nascent
from clonekit.linux.abi import call, lib
from clonekit.steps import (
    execute,
    new_session,
    open_file,
    open_pipe,
    set_gid,
    set_groups,
    set_no_new_privs,
    set_uid,
    set_umask,
    stop_at_exec,
    system_call,
    write,
)
from clonekit.steps.step import Step

SPAWNS = 300
SHORT = 0.05
F_SETSIG = 10
pytestmark = pytest.mark.usefixtures("no_hang")

OPERATIONS: dict[str, Callable[[Suspended], object]] = {
    "do": lambda held: held.do(set_umask(0)),
    "syscall": lambda held: held.syscall("getpid"),
    "buffer": lambda held: held.syscall("getcwd", bytearray(64), 64),
    "map": lambda held: held.map(memory_file(), 4096),
    "read": lambda held: held.read(held.registers["rsp" if "rsp" in held.registers else "sp"], 8),
    "write": lambda held: held.write(held.auxv()["phdr"], b"x"),
    "give": lambda held: held.give(0),
    "getfd": lambda held: os.close(held.getfd(0)),
    "resume": lambda held: held.resume().close(),
}
DRIVEN = {name: work for name, work in OPERATIONS.items() if name != "getfd"}


def memory_file() -> int:
    """A file in memory, which stays open: there is one."""
    global _memory
    if _memory < 0:
        _memory = os.memfd_create("shared")
        os.ftruncate(_memory, 4096)
    return _memory


_memory = -1


def gone(pid: int) -> bool:
    """Whether there is neither such a process nor a zombie."""
    return not os.path.exists(f"/proc/{pid}")


# ---- who drives it ----


@pytest.mark.parametrize("work", DRIVEN.values(), ids=DRIVEN)
def test_another_thread_may_not_drive_it(work: Callable[[Suspended], object]) -> None:
    memory_file()
    with suspended(["sleep", "1000"]) as held:
        told: list[BaseException] = []

        def run() -> None:
            try:
                work(held)
            except BaseException as error:  # noqa: BLE001 - it is what is asked for
                told.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert [type(error) for error in told] == [RuntimeError]
        assert "thread that made it" in str(told[0])
        assert held.syscall("getpid") == held.pid


def test_another_thread_may_kill_it() -> None:
    held = suspended(["sleep", "1000"])
    thread = threading.Thread(target=held.kill)
    thread.start()
    thread.join()
    assert gone(held.pid)
    assert ends() == []


def test_it_ends_with_the_thread_that_made_it() -> None:
    made: list[Suspended] = []
    thread = threading.Thread(target=lambda: made.append(suspended(["sleep", "1000"])))
    thread.start()
    thread.join()
    assert select.select(made, [], [], 60)[0] == made
    made.pop().kill()
    assert ends() == []


def test_a_block_leaves_nothing_of_one_that_was_not_resumed() -> None:
    before = descriptors()
    with suspended(["sleep", "1000"]) as held:
        held.give(0)
    assert gone(held.pid)
    with pytest.raises(KeyError), suspended(["sleep", "1000"]):
        raise KeyError
    suspended(["sleep", "1000"])  # a handle that is dropped
    assert ends() == []
    assert descriptors() == before
    held.kill()
    with pytest.raises(ValueError, match="holds no child"):
        held.syscall("getpid")


def test_a_copy_of_us_does_not_end_it() -> None:
    with suspended(["true"]) as held:
        pid = os.fork()
        if pid == 0:
            held.kill()
            os._exit(0)
        os.waitpid(pid, 0)
        with held.resume() as process:
            assert process.wait().status == 0


# ---- it is killed ----


@pytest.mark.parametrize("waits", [True, False], ids=["dead", "dying"])
@pytest.mark.parametrize("work", OPERATIONS.values(), ids=OPERATIONS)
def test_one_that_was_killed_is_an_error_that_says_so(
    work: Callable[[Suspended], object], *, waits: bool
) -> None:
    memory_file()
    before = descriptors()
    with suspended(["sleep", "1000"]) as held:
        os.kill(held.pid, signal.SIGKILL)
        if waits:
            select.select([held], [], [])
        with pytest.raises(ChildProcessError, match="SIGKILL") as told:
            work(held)
        assert isinstance(told.value, SpawnError)
        assert (told.value.errno, told.value.signal) == (errno.ECHILD, signal.SIGKILL)
    del told
    assert gone(held.pid)
    assert ends() == []
    assert descriptors() == before


def set_up() -> list[Step]:
    """Steps of a set-up, with those after which a parent's death is hard to see."""
    ids = [set_groups([]), set_gid(65534), set_uid(65534)] if os.geteuid() == 0 else []
    return [
        set_umask(0), new_session(), open_pipe("r", "w"), write(Slot("w"), b"x"), *ids,
        set_no_new_privs(),
    ]  # fmt: skip


def kills_itself() -> list[Step]:
    return [system_call("getpid", result="me"), system_call("kill", Slot("me"), signal.SIGKILL)]


@pytest.mark.parametrize("at", range(len(set_up()) + 1))
def test_one_that_is_killed_in_its_set_up_is_an_error_that_names_the_step(at: int) -> None:
    steps = set_up()
    steps[at:at] = kills_itself()
    with pytest.raises(ChildProcessError) as told:
        Program([*steps, stop_at_exec(), execute(["true"])]).spawn()
    assert isinstance(told.value, SpawnError)
    assert (str(told.value.step)[:17], told.value.signal) == ("system_call(kill,", signal.SIGKILL)
    assert ends() == []


@pytest.mark.parametrize("at", range(5))
def test_one_that_is_killed_in_an_order_is_an_error_that_names_the_step(at: int) -> None:
    steps = [set_umask(0), open_pipe("r", "w"), write(Slot("w"), b"x"), open_file("/", name="n")]
    steps[at:at] = kills_itself()
    with suspended(["true"]) as held, pytest.raises(ChildProcessError) as told:
        held.do(*steps)
    assert isinstance(told.value, SpawnError)
    assert (str(told.value.step)[:17], told.value.signal) == ("system_call(kill,", signal.SIGKILL)
    assert ends() == []


def test_a_call_that_blocks_past_its_deadline_ends_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = descriptors()
    held = suspended(["true"])
    with pytest.raises(TimeoutError, match="openat") as told:
        held.do(set_umask(0), open_file(tmp_path / "fifo", name="f"), deadline=SHORT)
    assert isinstance(told.value, SpawnError)
    assert str(told.value.step).startswith("open_file(")
    assert gone(held.pid)
    assert ends() == []
    assert descriptors() == before
    with pytest.raises(ValueError, match="holds no child"):
        held.fileno()


def test_a_handler_that_raises_ends_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")

    def handler(*_: object) -> None:
        raise KeyError

    earlier = signal.signal(signal.SIGALRM, handler)
    try:
        held = suspended(["true"])
        signal.setitimer(signal.ITIMER_REAL, SHORT)
        with pytest.raises(KeyError):
            held.do(open_file(tmp_path / "fifo", name="f"))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
    assert gone(held.pid)
    assert ends() == []


def test_where_sigchld_is_ignored_it_is_the_same() -> None:
    earlier = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with suspended(["true"]) as held:
            assert held.syscall("getpid") == held.pid
            held.resume().wait()
        with suspended(["true"]) as held:
            os.kill(held.pid, signal.SIGKILL)
            with pytest.raises(ChildProcessError):
                held.syscall("getpid")
    finally:
        signal.signal(signal.SIGCHLD, earlier)
    assert ends() == []


# ---- we are killed ----

CALLER = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_suspended_ends import caller
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
    thread.start()
    try:
        for n in range(SPAWNS):
            with suspended(["true"], sigignore=["USR1"]) as held:
                assert held.syscall("getpid") == held.pid
                for work in list(DRIVEN.values())[: n % len(DRIVEN)]:
                    work(held)
                if n % len(DRIVEN) < len(DRIVEN) - 1:
                    with held.resume() as process:
                        assert process.wait().status == 0
    finally:
        stop.set()
        thread.join()
        signal.signal(signal.SIGUSR1, earlier)
    assert count > SPAWNS
    assert ends() == []
    assert descriptors() == before


def test_our_own_memory_is_not_what_is_read() -> None:
    here = ctypes.create_string_buffer(b"ours")
    with suspended(["true"]) as held:
        try:
            assert held.read(ctypes.addressof(here), 4) != b"ours"
        except OSError as error:
            assert error.errno in {errno.EIO, errno.EFAULT}
