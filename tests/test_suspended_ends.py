"""However a suspended process ends, or whoever drives it, nothing is left of it."""

from __future__ import annotations

import errno
import os
import select
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from awaited import late_at, told_in_mid_order
from parent_snapshot import descriptors
from suspending import OPERATIONS, ends, memory_file, set_up, suspended

from clonekit import Program, Slot, SpawnError, Suspended
from clonekit.steps import (
    execute,
    open_file,
    open_pipe,
    set_umask,
    stop_at_exec,
    system_call,
    write,
)
from clonekit.steps.step import Step

pytestmark = pytest.mark.usefixtures("no_hang")


def gone(pid: int) -> bool:
    """Whether there is neither such a process nor a zombie."""
    return not os.path.exists(f"/proc/{pid}")


# ---- who drives it ----


@pytest.mark.parametrize("work", OPERATIONS.values(), ids=OPERATIONS)
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
        with pytest.raises(ChildProcessError, match="killed by signal 9") as told:
            work(held)
        assert isinstance(told.value, SpawnError)
        assert told.value.phase != "clone"
        assert (told.value.errno, told.value.signal) == (errno.ECHILD, signal.SIGKILL)
    del told
    assert gone(held.pid)
    assert ends() == []
    assert descriptors() == before


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
    late: list[Suspended] = []

    def attempt(deadline: float) -> None:
        late.append(suspended(["true"]))
        late[-1].do(set_umask(0), open_file(tmp_path / "fifo", name="f"), deadline=deadline)

    assert "openat" in str(late_at("open_file(", attempt))
    assert ends() == []
    assert descriptors() == before
    for held in late:
        assert gone(held.pid)
        with pytest.raises(ValueError, match="holds no child"):
            held.fileno()


def test_a_handler_that_raises_ends_it() -> None:
    def handler() -> None:
        raise KeyError

    held = suspended(["true"])
    with told_in_mid_order(handler) as waits, pytest.raises(KeyError):
        held.do(*waits)
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
