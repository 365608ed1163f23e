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
from containers import (
    WAYS,
    apart_from_the_host,
    await_cables,
    container,
    leaving_nothing,
    make_root,
    refuse_missing,
)
from spoiling import BELL, Spoiler, bell, children, signal_children, when_rung
from step_cases import apart

from clonekit import SpawnError
from clonekit.explain import rows

every_way = pytest.mark.parametrize("way", WAYS)
pytestmark = pytest.mark.usefixtures("no_hang")

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
    raise AssertionError(f"it began, and ended with {ended}")


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
