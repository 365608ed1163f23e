"""Children that wait, in a storm: signals, threads, forks, and an interrupt at any line."""

from __future__ import annotations

import gc
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from threading import Event, Thread, main_thread
from types import FrameType
from typing import Any

import pytest
from parent_snapshot import children, content, descriptors, unchanged

import clonekit
from clonekit import Fd, Nascent, SpawnError, nascent
from clonekit.steps import change_directory, open_file, open_pipe, set_umask, system_call

MANY = 1000
SLACK = 40  # maps that the allocator and threads may have added; a leak adds one a child
HOME = str(Path(clonekit.__file__).parent)


def maps() -> int:
    return content("/proc/self/maps").count("\n")


def hammer(times: int, wrong: list[object]) -> None:
    """Make children, let them succeed and fail, and start them."""
    try:
        for n in range(times):
            with nascent(umask=n % 512) as child, open("/dev/zero", "rb") as zero:
                buffer = bytearray(b"....")
                assert child.do(system_call("getpid"), set_umask(n % 8)) == [child.pid, n % 512]
                kept = child.give(zero)
                assert child.syscall("read", kept, buffer, 4) == 4
                assert buffer == bytes(4)
                with pytest.raises(FileNotFoundError):
                    child.do(change_directory("/nonexistent"), set_umask(0))
                with pytest.raises(FileNotFoundError):
                    child.start(["/nonexistent"], fds={0: zero})
                with child.start(
                    ["sh", "-c", f"exit $(($(umask) + {n % 50}))"], fds={0: kept}
                ) as process:
                    assert process.wait().status == n % 8 + n % 50
    except BaseException as error:
        wrong.append(error)
        raise


def in_threads(number: int, work: Callable[[int], object]) -> None:
    threads = [Thread(target=work, args=(n,)) for n in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_with_children_of_their_own_do_not_disturb_each_other() -> None:
    wrong: list[object] = []
    hammer(5, wrong)
    gc.collect()
    before, mapped = descriptors(), maps()
    in_threads(2, lambda _: hammer(200, wrong))
    assert wrong == []
    assert children() == []
    gc.collect()
    assert descriptors() == before
    assert maps() - mapped < SLACK


@contextmanager
def signalled() -> Iterator[list[int]]:
    """Signals to this thread, one after another, until the block ends."""
    seen: list[int] = []
    stop = Event()
    here = main_thread().ident
    assert here is not None

    def send() -> None:
        while not stop.is_set():
            signal.pthread_kill(here, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    thread = Thread(target=send)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def test_signals_whose_handlers_do_not_raise_harm_nothing() -> None:
    wrong: list[object] = []
    with signalled() as seen:
        hammer(60, wrong)
    assert wrong == []
    assert len(seen) > 100
    assert children() == []


def test_a_thousand_children_wait_at_once() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 3 * MANY:
        pytest.skip(f"the hard limit of descriptors is {hard}")
    gc.collect()
    before, mapped = descriptors(), maps()
    resource.setrlimit(resource.RLIMIT_NOFILE, (3 * MANY, hard))
    try:
        waiting = [nascent() for _ in range(MANY)]
        assert [child.do(set_umask(n % 512)) >= 0 for n, child in enumerate(waiting)].count(
            True
        ) == MANY
        masks: dict[int, int] = {}

        def drive(part: int) -> None:
            for n in range(part, MANY, 4):
                masks[n] = waiting[n].do(open_file("/dev/null"), set_umask(0))[1]

        in_threads(4, drive)
        assert [masks.get(n) for n in range(MANY)] == [n % 512 for n in range(MANY)]
        for child in waiting[::10]:
            with child.start(["true"]) as process:
                assert process.wait().status == 0
        for child in waiting[1::2]:
            child.kill()
        for child in waiting:
            child.kill()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert children() == []
    assert descriptors() == before
    assert maps() - mapped < SLACK


@pytest.mark.parametrize("leave", ["drop", "kill", "exit"])
def test_a_copy_of_us_that_leaves_its_handle_leaves_the_child(leave: str) -> None:
    with unchanged(), nascent() as child:
        held: list[Nascent] = [child]
        for _ in range(5):
            pid = os.fork()
            if pid == 0:
                if leave == "kill":
                    child.kill()
                elif leave == "exit":
                    child.__exit__(None, None, None)
                held.clear()
                del child
                gc.collect()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            assert child.syscall("getpid") == child.pid


def test_a_copy_of_us_cannot_drive_the_child() -> None:
    with unchanged(), nascent() as child, open("/dev/null", "rb") as null:
        pid = os.fork()
        if pid == 0:
            try:
                child.do(system_call("lseek", Fd(null), 0, 0), deadline=0.05)
            except TimeoutError:
                os._exit(1)  # it has waited for a child that does not see its memory, and killed it
            except BaseException:  # noqa: BLE001 - any other refusal will do
                os._exit(0)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        with open("/dev/zero", "rb") as zero:
            fetched = child.give(zero).fetch()
            assert os.readlink(f"/proc/self/fd/{fetched}") == "/dev/zero"
            os.close(fetched)


def test_a_dropped_handle_leaves_no_child() -> None:
    with unchanged():
        for _ in range(50):
            nascent().do(open_pipe("r", "w"))
            assert children() == []


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the collector has an order of its own
def test_a_handle_in_a_cycle_leaves_no_child_when_that_is_collected() -> None:
    with unchanged():
        for _ in range(50):
            kept: list[object] = [nascent()]
            kept.append(kept)
        del kept
        gc.collect()
        assert children() == []


class Interrupted(BaseException):
    """What a handler raises."""


def handled_at(
    line: int, work: Callable[[], object], handler: Callable[[], object], files: str = HOME
) -> bool:
    """Do this, and something else before a line of the library, by its number; if there is one.

    Not in a destructor, where Python itself loses what is raised.
    """
    left = count(line, -1)
    handled = False

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal handled
        if not frame.f_code.co_filename.startswith(files) or frame.f_code.co_name == "__del__":
            return None
        if event == "line" and next(left) == 0:
            sys.settrace(None)
            handled = True
            handler()
        return trace

    sys.settrace(trace)
    try:
        with suppress(Interrupted):
            work()
    finally:
        sys.settrace(None)
    return handled


def interrupted_at(line: int, work: Callable[[], object]) -> bool:
    """Do this and raise before a line of the library, by its number; whether there was one."""

    def raises() -> None:
        raise Interrupted

    return handled_at(line, work, raises)


def test_an_interrupt_at_any_line_of_an_order_leaves_a_child_that_is_whole_or_none() -> None:
    with open("/dev/null", "rb") as null, open("/dev/zero", "rb") as zero:
        sleeps = system_call("nanosleep", struct.pack("<qq", 0, 1_000_000), 0)
        order = sleeps, system_call("dup", Fd(null)), open_file("/etc/passwd"), set_umask(0)
        for line in count():
            with unchanged():
                child = nascent()
                went_on = not interrupted_at(line, partial(child.do, *order))
                if child.pidfd >= 0:
                    assert (line, child.do(set_umask(3), set_umask(7))[1]) == (line, 3)
                    assert (line, child.do(set_umask(5))) == (line, 7)
                    fetched = child.give(zero).fetch()
                    assert os.readlink(f"/proc/self/fd/{fetched}") == "/dev/zero"
                    os.close(fetched)
                    with child.start(["true"]) as process:
                        assert process.wait().status == 0
                child.kill()
            if went_on:
                break
        assert line > 100


def holds(child: Nascent) -> None:
    """An order that succeeds, and one that fails and is repaired."""
    assert child.do(set_umask(0), open_file("/etc/passwd"))[0] >= 0
    with pytest.raises(FileNotFoundError):
        child.start(["/nonexistent"])


@pytest.mark.parametrize("module", ["waiting.py", "driven.py"])
def test_a_handler_may_kill_the_child_at_any_line_that_drives_it(module: str) -> None:
    """What it takes away is not used by the lines after it: they say that the child is gone."""
    for line in count():
        with unchanged():
            child = nascent()

            def drive(child: Nascent = child) -> None:
                with suppress(ValueError, SpawnError):
                    holds(child)

            went_on = not handled_at(line, drive, child.kill, f"{HOME}/{module}")
            assert (child.pidfd < 0) != went_on, line
            child.kill()
        if went_on:
            break
    assert line > 50


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # sockets left open
def test_an_interrupt_at_any_line_of_the_making_leaves_no_child() -> None:
    nascent(umask=0).kill()
    before = descriptors()
    gc.freeze()  # what the other tests have left need not be looked through each time
    for line in count():
        went_on = not interrupted_at(line, lambda: nascent(umask=0).kill())
        gc.collect()
        assert (children(), line) == ([], line)
        if went_on:
            break
    gc.unfreeze()
    assert line > 100
    # Between the call that makes a descriptor and the line that keeps it, nobody can close it.
    assert len(descriptors()) <= len(before) + 1
