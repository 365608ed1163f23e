"""Whatever fails of a whole container, the error names the step, and nothing is left of it.

Each record of each part fails once, and once the child is killed there.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from contained import (
    WAYS,
    apart_from_the_host,
    await_cables,
    container,
    leaving_nothing,
    make_root,
    refuse_missing,
)
from spoiling import BELL, Spoiler, bell, children, if_rung, signal_children, when_rung
from step_cases import apart

from clonekit import SpawnError
from clonekit.rtnl import Rtnl

every_way = pytest.mark.parametrize("way", WAYS)
pytestmark = pytest.mark.usefixtures("no_hang")

#: Before, amid and after the mounts, and in the first stage.
STOPPED_IN = {"namespaces", "mounts", "vector", "init", "seccomp"}
Faults = Callable[[Spoiler, int, Callable[[], None]], None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root file system that every user may enter."""
    for directory in (tmp_path, *list(tmp_path.parents)[:2]):
        directory.chmod(0o755)
    return make_root(tmp_path / "root")


def try_faults(way: str, root: Path, faults: Faults, **fields: Any) -> None:
    """Make a container, and then do this to it, where the host does not notice."""
    with apart_from_the_host(way) as group, bell() as reader:
        fds = {0: 0, 1: 1, 2: 2, BELL: BELL}
        spec = container(way, root, group, fds=fds, **fields)
        spoiler = Spoiler(spec.program())
        with spoiler.program.spawn() as process:
            assert process.wait().status == 0
        if way == "by its parent":
            await_cables()
        with leaving_nothing(root, group) as check:
            faults(spoiler, reader, check)


def caught(spoiler: Spoiler) -> SpawnError:
    """What the spawn fails with."""
    try:
        with spoiler.program.spawn() as process:
            ended = process.wait()
    except SpawnError as error:
        return error
    msg = f"it began, and ended with {ended}"
    raise AssertionError(msg)


def named(error: SpawnError, row: dict[str, Any]) -> None:
    """An error is about this record."""
    shown = {
        "step": row["step"], "step_number": row["step_number"], "phase": row["phase"],
        "syscall": row.get("syscall", ""), "arguments": row["text"],
    }  # fmt: skip
    assert {name: getattr(error, name) for name in shown} == shown


def numbers(spoiler: Spoiler) -> Iterator[int]:
    """Each record; of the mounts, behind a cable that takes long to be undone, some."""
    asked = any("network" in row["text"] for row in spoiler.rows if "parent" in row)
    for number, row in enumerate(spoiler.rows):
        if not (asked and row["phase"] == "mounts" and number % 16):
            yield number


def fail_each(spoiler: Spoiler, _: int, check: Callable[[], None]) -> None:
    """Each system call fails."""
    assert len(spoiler.rows) > 200
    for number in numbers(spoiler):
        if "syscall" not in spoiler.rows[number]:
            continue
        with spoiler.absent(number):
            error = caught(spoiler)
        named(error, spoiler.rows[number])
        assert error.errno == errno.ENOSYS
        check()


def kill_at_each(spoiler: Spoiler, reader: int, check: Callable[[], None]) -> None:
    """The child is killed at each record, but the exec: then the program has begun."""
    for number in numbers(spoiler):
        row = spoiler.rows[number]
        if row["phase"] == "exec":
            continue
        with spoiler.blocking(number), when_rung(reader, partial(signal_children, signal.SIGKILL)):
            error = caught(spoiler)
        named(error, row)
        assert (error.errno, error.signal) == (errno.ECHILD, signal.SIGKILL)
        check()


@every_way
def test_an_error_at_any_call_names_its_step_and_leaves_nothing(way: str, root: Path) -> None:
    refuse_missing(way)
    assert apart(lambda: try_faults(way, root, fail_each)) == ""


@every_way
def test_a_kill_at_any_record_names_its_step_and_leaves_nothing(way: str, root: Path) -> None:
    refuse_missing(way)
    assert apart(lambda: try_faults(way, root, kill_at_each)) == ""


def kill_the_program(spoiler: Spoiler, reader: int, check: Callable[[], None]) -> None:
    """Not init is killed, but its child, which is to become the program."""
    for number in range(len(spoiler.rows))[-4:]:
        row = spoiler.rows[number]
        if row["step"] == "run_init()":
            continue
        with spoiler.blocking(number), when_rung(reader, kill_grandchild):
            if row["phase"] == "exec":
                with spoiler.program.spawn() as process:
                    assert process.wait().status == 128 + signal.SIGKILL
            else:
                error = caught(spoiler)
                named(error, row)
                assert (error.errno, error.signal) == (errno.ECHILD, signal.SIGKILL)
        check()


def kill_grandchild() -> None:
    """Kill the only child of our only child."""
    (init,) = children()
    (program,) = children(init)
    os.kill(program, signal.SIGKILL)


def test_a_kill_of_what_init_is_to_begin_is_an_error_too(root: Path) -> None:
    refuse_missing("by itself")
    assert apart(lambda: try_faults("by itself", root, kill_the_program)) == ""


def stop_at_some(spoiler: Spoiler, reader: int, check: Callable[[], None]) -> None:
    """The child is stopped at one record of some phases, and never goes on."""
    phases = {row["phase"]: number for number, row in enumerate(spoiler.rows)}
    stop = partial(signal_children, signal.SIGSTOP)
    for phase in STOPPED_IN & phases.keys():
        number = phases[phase]
        for deadline in (0.5, 5.0, 50.0):  # a slow machine needs longer to come there
            spoiler.program.setup.deadline = deadline
            with spoiler.blocking(number), if_rung(reader, stop) as rang:
                error = caught(spoiler)
            assert isinstance(error, TimeoutError)
            check()
            if rang:
                break
        named(error, spoiler.rows[number])


@pytest.mark.parametrize("way", WAYS[:3])
def test_a_child_that_is_stopped_is_late_and_leaves_nothing(way: str, root: Path) -> None:
    refuse_missing(way)
    assert apart(lambda: try_faults(way, root, stop_at_some, deadline=0.5)) == ""


def refuse_each(spoiler: Spoiler, _: int, check: Callable[[], None]) -> None:
    """The parent cannot do what it is asked for; and it can, and is told that it could not."""
    asks = spoiler.program.setup.assembler.asks
    waits = [n for n, row in enumerate(spoiler.rows) if row["text"].startswith("wait for")]
    assert waits
    for number in waits:
        act = asks[number].act

        def fail(_: object) -> None:
            raise OSError(errno.ENOLINK, "spoilt")

        asks[number].act = fail
        error = caught(spoiler)
        asks[number].act = act
        named(error, spoiler.rows[number])
        assert error.errno == errno.ENOLINK
        check()


@pytest.mark.parametrize("way", WAYS[1:3])
def test_a_parent_that_cannot_do_what_is_asked_names_the_step_and_leaves_nothing(
    way: str, root: Path
) -> None:
    refuse_missing(way)
    assert apart(lambda: try_faults(way, root, refuse_each)) == ""


def refuse_each_request(spoiler: Spoiler, _: int, check: Callable[[], None]) -> None:
    """One request after the other of those that make the network fails."""
    ask = Rtnl._ask
    left = 0

    def spoilt(self: Rtnl, *arguments: Any) -> bytes:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOLINK, "spoilt")
        return ask(self, *arguments)

    Rtnl._ask = spoilt  # type: ignore[method-assign]
    for number in range(1, 9):
        left = number
        error = caught(spoiler)
        assert error.step.startswith("furnish_network(")
        assert (error.errno, error.strerror) == (errno.ENOLINK, "spoilt")
        left = 0
        await_cables()
        check()
    left = 100
    spoiler.program.spawn().wait()
    assert 0 < left < 100 - number
    await_cables()


def test_a_request_for_an_interface_that_fails_leaves_none(root: Path) -> None:
    refuse_missing(WAYS[2])
    assert apart(lambda: try_faults(WAYS[2], root, refuse_each_request)) == ""
