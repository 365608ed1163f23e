"""What a child asks of its parent, at a point of the order: it waits, and the parent acts."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from parent_snapshot import changes, snapshot

from clonekit import DeclarationError, Nascent, Program, Slot, SpawnError, nascent, spawn
from clonekit.records import Ask, Call
from clonekit.steps import execute, set_scheduler, set_umask
from clonekit.steps.step import KINDS, Step, step

if TYPE_CHECKING:
    from clonekit.records import Act, Asking, Records

TIMES = 3_000

pytestmark = pytest.mark.usefixtures("no_hang")


@step(phase="namespaces", asks=True)
def ask(act: Act) -> Records:
    """Ask for this."""
    number = Slot()
    yield Call("getpid", to=number)
    yield Ask("do something", act, number)


@step(phase="seccomp", asks=True)
def ask_awake(act: Act) -> Records:
    """Ask for this, and wait without a call."""
    number = Slot()
    yield Ask("do something", act, number, meanwhile=Call("getpid", to=number))


@step(phase="namespaces")
def ask_unannounced(act: Act) -> Records:
    """A step that does not say that it asks."""
    yield Ask("do something", act)


for _name in ("ask", "ask_awake", "ask_unannounced"):
    del KINDS[_name]  # they are no steps of the library


def program(*steps: Step, argv: str = "true", deadline: float | None = None) -> Program:
    return Program([*steps, execute([argv], env={"PATH": os.defpath})], deadline=deadline)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = snapshot(memory=False)
    yield
    changed = changes(before, snapshot(memory=False))
    assert changed.keys() <= {"status Threads", "status SigCgt"}  # of the tests' own threads


@pytest.mark.parametrize("asking", [ask, ask_awake])
def test_the_parent_acts_while_the_child_waits_on_its_memory(asking: Callable[[Act], Step]) -> None:
    seen = []

    def act(child: Asking) -> None:
        same = os.readlink(f"/proc/{child.pid}/exe") == os.readlink("/proc/self/exe")
        seen.append((child.pid, same, os.fstat(child.pidfd) is not None))

    with program(asking(act)).spawn() as process:
        assert seen == [(process.pid, True, True)]
        assert process.wait().status == 0


@pytest.mark.parametrize("asking", [ask, ask_awake])
def test_the_parent_knows_what_the_child_has_got(asking: Callable[[Act], Step]) -> None:
    seen: list[int] = []
    with program(asking(lambda child: seen.append(child.pid))).spawn() as process:
        assert seen == [process.pid]


def test_an_error_of_the_parents_is_that_of_the_step() -> None:
    def refuse(_: Asking) -> None:
        raise PermissionError(errno.EACCES, "not today")

    with pytest.raises(SpawnError, match="not today") as caught:
        program(set_umask(0), ask(refuse)).spawn()
    assert caught.value.errno == errno.EACCES
    assert caught.value.step.startswith("ask(")
    assert isinstance(caught.value.__cause__, PermissionError)


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_any_other_exception_passes_through(error: type[BaseException]) -> None:
    def fail(_: Asking) -> None:
        raise error

    with pytest.raises(error):
        program(ask(fail)).spawn()


def test_what_was_done_is_undone_when_a_later_step_fails() -> None:
    done: list[str] = []

    def does(name: str) -> Act:
        def act(_: Asking) -> Callable[[], object]:
            done.append(name)
            return lambda: done.append(f"not {name}")

        return act

    with pytest.raises(SpawnError):
        program(ask(does("one")), ask(does("two")), argv="/nonexistent").spawn()
    assert done == ["one", "two", "not two", "not one"]
    done.clear()
    program(ask(does("one")), ask(does("two"))).spawn().wait()
    assert done == ["one", "two"]


def test_an_undoing_that_is_interrupted_is_done_once_more_and_all_before_it() -> None:
    undone: list[str] = []

    def interrupted() -> None:
        undone.append("second")
        if undone.count("second") == 1:
            raise KeyboardInterrupt

    steps = [ask(lambda _: lambda: undone.append("first")), ask(lambda _: interrupted)]
    with pytest.raises(KeyboardInterrupt):
        program(*steps, argv="/nonexistent").spawn()
    assert undone == ["second", "second", "first"]


def test_what_was_done_is_undone_when_the_child_dies() -> None:
    done: list[str] = []

    def kill(child: Asking) -> Callable[[], object]:
        os.kill(child.pid, signal.SIGKILL)
        return lambda: done.append("undone")

    with pytest.raises(SpawnError) as caught:
        program(ask(kill)).spawn()
    assert caught.value.signal == signal.SIGKILL
    assert done == ["undone"]


def test_a_value_that_a_dead_child_never_makes_is_not_waited_for() -> None:
    @step(phase="seccomp", asks=True)
    def ask_and_die() -> Records:
        slot = Slot()

        def act(child: Asking) -> None:
            os.kill(child.pid, signal.SIGKILL)
            child.value(slot)

        yield Ask("wait in vain", act, slot, meanwhile=Call("pause", to=slot))

    del KINDS["ask_and_die"]
    with pytest.raises(SpawnError) as caught:
        program(ask_and_die()).spawn()
    assert caught.value.signal == signal.SIGKILL


def test_a_deadline_passes_while_the_parent_acts() -> None:
    with pytest.raises(TimeoutError):
        program(ask(lambda _: time.sleep(0.3)), deadline=0.1).spawn()


def test_explain_shows_what_the_parent_does() -> None:
    entries = program(set_umask(0), ask(lambda _: None)).explain()
    asked = [entry for entry in entries if "parent" in entry]
    assert [entry["text"] for entry in asked] == ["ask the parent: do something"]
    assert entries.index(asked[0]) == 1 + next(
        n for n, entry in enumerate(entries) if entry.get("syscall") == "getpid"
    )


def test_a_step_that_does_not_announce_its_question_is_refused() -> None:
    with pytest.raises(DeclarationError, match="asks=True"):
        program(ask_unannounced(lambda _: None))


def test_an_order_asks_too_and_may_be_given_again(child: Nascent) -> None:
    answers = [OSError(errno.EAGAIN, "later"), None]

    def act(asking: Asking) -> None:
        assert asking.pid == child.pid
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    with pytest.raises(OSError, match="later"):
        child.do(ask(act))
    child.do(ask(act))
    assert child.start(["true"]).wait().status == 0


def test_what_was_done_for_a_child_that_is_never_started_is_undone() -> None:
    done: list[str] = []
    with nascent() as child:
        child.do(ask(lambda _: lambda: done.append("undone")))
        assert done == []
    assert done == ["undone"]


def test_a_stopped_program_asks_nobody() -> None:
    with spawn(["sleep", "9"], suspended=True) as process:
        with pytest.raises(DeclarationError, match="between two orders"):
            process.do(ask(lambda _: None))
        process.kill()


def test_a_child_of_a_real_time_policy_is_answered(need: Callable[[str], None]) -> None:
    need("rtprio")
    real_time = set_scheduler("fifo", 1)
    with program(real_time, ask_awake(lambda _: None)).spawn() as process:
        assert process.wait().status == 0


def test_thousands_of_questions_from_many_threads_are_answered() -> None:
    wrong: list[BaseException] = []
    asked = []

    def repeat() -> None:
        try:
            mine = program(ask(lambda child: asked.append(child.pid)), ask_awake(asked.append))
            for _ in range(TIMES // 6):
                mine.spawn().wait()
        except BaseException as error:  # noqa: BLE001 - the test tells of it below
            wrong.append(error)

    threads = [threading.Thread(target=repeat) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(asked) == TIMES // 6 * 12
