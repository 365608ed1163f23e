"""Faults while a child waits or carries out an order: of the child, of its parent, and in time."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from awaited import beside, late_at
from parent_snapshot import children, content, unchanged
from step_cases import NOBODY

from clonekit import Fd, Nascent, Program, Slot, nascent, spawn
from clonekit.linux.abi import call, lib
from clonekit.steps import (
    execute,
    open_file,
    place_descriptors,
    set_gid,
    set_groups,
    set_uid,
    set_umask,
    system_call,
    write,
)
from clonekit.steps.step import Step

AT_MOST = 60.0  # seconds in which what must end by itself has to
ME = [system_call("getpid", result="me")]
BLOCKS = system_call("ppoll", 0, 0, 0, 0, 8)
DIES = system_call("kill", Slot("me"), signal.SIGKILL)
Use = Callable[[list[Step]], object]
Orphans = Callable[[Callable[[], object]], list[str]]


def in_opening(steps: list[Step], **fields: Any) -> None:
    nascent(steps=[*ME, *steps], **fields).kill()


def in_order(steps: list[Step], **fields: Any) -> None:
    with nascent(**fields) as child:
        child.do(*ME, *steps)


def in_start(steps: list[Step], **fields: Any) -> None:
    with nascent(**fields) as child:
        child.start([*ME, *steps, place_descriptors({}), execute(["true"])])


def after_vector(steps: list[Step], **fields: Any) -> None:
    with nascent(**fields) as child:
        child.start([*ME, place_descriptors({}), *steps, execute(["true"])])


def in_spawn(steps: list[Step], deadline: float = AT_MOST) -> None:
    spawn(["true"], steps=[*ME, *steps], deadline=deadline)


def in_own_order(steps: list[Step], deadline: float = AT_MOST) -> None:
    Program([*ME, place_descriptors({}), *steps, execute(["true"])], deadline=deadline).spawn()


USES = (in_opening, in_order, in_start, after_vector, in_spawn, in_own_order)
every_use = pytest.mark.parametrize("use", USES)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A FIFO that nobody writes: to open it is to wait for ever."""
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


# ---- the parent dies ----


def left_of(parent: Callable[[], object]) -> list[str]:
    """The orphans that do not end by themselves when their parent has been killed in this call."""
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            parent()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    left = []
    for orphan in map(int, children()):
        pidfd = os.pidfd_open(orphan)
        if not select.select([pidfd], [], [], AT_MOST)[0]:
            left.append(content(f"/proc/{orphan}/comm") + content(f"/proc/{orphan}/syscall"))
            os.kill(orphan, signal.SIGKILL)
        os.waitpid(orphan, 0)
        os.close(pidfd)
    return left


@pytest.fixture
def orphans() -> Iterator[Orphans]:
    """`left_of`, where orphans become our children."""
    call("prctl", lib.PR_SET_CHILD_SUBREAPER, 1)
    yield left_of
    call("prctl", lib.PR_SET_CHILD_SUBREAPER, 0)


@every_use
@pytest.mark.parametrize("at", range(3))
def test_a_child_ends_with_its_parent_within_every_order(
    use: Use, at: int, orphans: Orphans
) -> None:
    def parent() -> None:
        kills = system_call("kill", os.getpid(), signal.SIGKILL)
        use([*[set_umask(0)] * at, kills, BLOCKS, set_umask(0)])

    assert [orphans(parent) for _ in range(10)] == [[]] * 10


@pytest.mark.parametrize("ids", [[set_groups([]), set_gid(NOBODY)], [set_uid(NOBODY)]])
@pytest.mark.parametrize("use", [in_start, after_vector, in_own_order])
def test_a_child_that_has_changed_its_ids_ends_with_its_parent_too(
    use: Use, ids: list[Step], need: Callable[[str], None], orphans: Orphans
) -> None:
    need("setuid")

    def parent() -> None:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        Thread(target=lambda: os.kill(os.getpid(), len(os.read(reader, 1)) * 9)).start()
        use([*ids, write(writer, b"."), BLOCKS])

    assert orphans(parent) == []


def between(operation: int) -> None:
    """Do many things to a child, and die before one of them."""
    child: Nascent | None = None

    def fails() -> None:
        with suppress(FileNotFoundError):
            child.start(["/nonexistent"])  # type: ignore[union-attr]

    operations: list[Callable[[], object]] = [
        lambda: child.do(set_umask(0)),  # type: ignore[union-attr]
        lambda: child.give(2),  # type: ignore[union-attr]
        fails,
        lambda: child.do(open_file("/dev/null")),  # type: ignore[union-attr]
        fails,
    ]
    child = nascent()
    for operate in operations[:operation]:
        operate()
    if operation == len(operations):
        Nascent._repair = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        fails()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("operation", range(6))
def test_a_child_that_waits_ends_with_its_parent(operation: int, orphans: Orphans) -> None:
    assert orphans(lambda: between(operation)) == []


def test_many_children_end_with_their_parent(orphans: Orphans) -> None:
    def parent() -> None:
        waiting = [nascent() for _ in range(100)]
        os.kill(os.getpid(), len(waiting) and signal.SIGKILL)

    assert orphans(parent) == []


# ---- the child dies ----


@every_use
@pytest.mark.parametrize("at", range(3))
def test_a_child_that_is_killed_in_its_order_is_an_error_that_names_the_step(
    use: Use, at: int
) -> None:
    with unchanged():
        for _ in range(20):
            with pytest.raises(ChildProcessError) as caught:
                use([*[set_umask(0o22)] * at, DIES, set_umask(0o22)])
            assert str(caught.value).startswith("system_call(kill, $me, ")
            assert caught.value.signal == signal.SIGKILL  # type: ignore[attr-defined]


def test_a_child_that_is_killed_while_it_waits_is_an_error_at_the_next_order() -> None:
    with unchanged():
        for _ in range(50):
            with nascent() as child:
                os.kill(child.pid, signal.SIGKILL)
                select.select([child], [], [])
                with pytest.raises(ChildProcessError, match=f"child {child.pid}: killed by"):
                    child.do(system_call("lseek", Fd(2), 0, 0, tolerate=[29]))
                with pytest.raises(ValueError, match="holds no child"):
                    child.do(set_umask(0))


def test_a_child_may_be_killed_at_any_moment() -> None:
    with unchanged(), open("/dev/null", "rb") as null:
        order = system_call("lseek", Fd(null), 0, 0), set_umask(0)
        for _ in range(500):
            child = nascent()
            kill = partial(signal.pidfd_send_signal, child.pidfd, signal.SIGKILL)
            with beside(kill), pytest.raises(ChildProcessError, match="signal 9"):
                all(child.do(*order) for _ in count())


def test_a_child_may_be_killed_at_any_moment_of_its_start() -> None:
    with unchanged():
        for _ in range(500):
            child = nascent()
            with beside(partial(os.kill, child.pid, signal.SIGKILL)), suppress(ChildProcessError):
                process = child.start(["sleep", "1000"])
                assert process.wait().signal == signal.SIGKILL
                process.close()


def test_a_child_ends_with_the_thread_that_made_it() -> None:
    made: list[Nascent] = []
    with unchanged():
        for _ in range(50):
            with beside(lambda: made.append(nascent())):
                pass
            select.select(made, [], [])
            with pytest.raises(ChildProcessError, match="ends with the thread that made it"):
                made.pop().do(set_umask(0))


# ---- time ----


@every_use
def test_an_order_that_is_late_is_an_error_that_names_the_step(use: Use, fifo: Path) -> None:
    steps = [set_umask(0o22), open_file(fifo)]
    with unchanged():
        late_at("open_file(", lambda deadline: use(steps, deadline=deadline))  # type: ignore[call-arg]


def test_a_deadline_may_be_that_of_one_order(fifo: Path) -> None:
    with unchanged():
        lates: list[Callable[[Nascent], object]] = [
            lambda child: child.do(open_file(fifo), deadline=0.01),
            lambda child: child.syscall("ppoll", 0, 0, 0, 0, 8, deadline=0.01),
            lambda child: child.start(["true"], steps=[open_file(fifo)], deadline=0.01),
        ]
        for late in lates:
            with nascent() as child:
                child.do(set_umask(0), deadline=AT_MOST)
                with pytest.raises(TimeoutError):
                    late(child)
                assert child.pidfd == -1


@every_use
def test_a_child_that_is_stopped_is_late(use: Use) -> None:
    steps = [system_call("kill", Slot("me"), signal.SIGSTOP), set_umask(0)]
    with unchanged():
        late_at("system_call(kill", lambda deadline: use(steps, deadline=deadline))  # type: ignore[call-arg]


def test_a_child_that_was_stopped_and_goes_on_has_done_its_order() -> None:
    with unchanged(), nascent(umask=0o77) as child:
        stops = system_call("kill", child.pid, signal.SIGSTOP)
        for _ in range(50):

            def go_on(pidfd: int = child.pidfd) -> None:
                os.waitid(os.P_PIDFD, pidfd, os.WSTOPPED)
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)

            with beside(go_on):
                assert child.do(stops, set_umask(0o77)) == [0, 0o77]


# ---- our signals ----


@every_use
def test_ctrl_c_ends_a_child_that_blocks(use: Use) -> None:
    with unchanged():
        for _ in range(20):
            with pytest.raises(KeyboardInterrupt):
                use([system_call("kill", os.getpid(), signal.SIGINT), BLOCKS])
