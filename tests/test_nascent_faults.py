"""Faults while a child waits or carries out an order: of the child, of its parent, and in time."""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from parent_snapshot import children, content, descriptors, unchanged
from step_cases import NOBODY

from clonekit import ChildFd, Fd, Nascent, Process, Slot, nascent, spawn
from clonekit.linux.abi import call, lib
from clonekit.steps import (
    execute,
    open_file,
    place_descriptors,
    set_gid,
    set_groups,
    set_no_new_privs,
    set_uid,
    set_umask,
    system_call,
)
from clonekit.steps.step import Step

pytestmark = pytest.mark.usefixtures("no_hang")

AT_MOST = 10.0  # seconds in which what must end by itself has to
SLACK = 40  # maps that the allocator may have added; a leak adds one a child
ME = [system_call("getpid", result="me")]
DIES = system_call("kill", Slot("me"), signal.SIGKILL)
Use = Callable[[list[Step]], object]


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


USES = (in_opening, in_order, in_start, after_vector, in_spawn)
every_use = pytest.mark.parametrize("use", USES)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A FIFO that nobody writes: to open it is to wait for ever."""
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def maps() -> int:
    return content("/proc/self/maps").count("\n")


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
def orphans() -> Iterator[Callable[[Callable[[], object]], list[str]]]:
    """`left_of`, where orphans become our children."""
    call("prctl", lib.PR_SET_CHILD_SUBREAPER, 1)
    yield left_of
    call("prctl", lib.PR_SET_CHILD_SUBREAPER, 0)


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@every_use
@pytest.mark.parametrize("at", range(3))
def test_a_child_ends_with_its_parent_within_every_order(
    use: Use, at: int, fifo: Path, orphans: Callable[[Callable[[], object]], list[str]]
) -> None:
    def parent() -> None:
        kills = [system_call("kill", os.getpid(), signal.SIGKILL), open_file(fifo)]
        use([*[set_umask(0)] * at, *kills, set_umask(0)])

    assert [orphans(parent) for _ in range(10)] == [[]] * 10


@pytest.mark.parametrize("names", ["ids", "groups"])
def test_a_child_that_has_changed_its_ids_ends_with_its_parent_too(
    names: str,
    fifo: Path,
    need: Callable[[str], None],
    orphans: Callable[[Callable[[], object]], list[str]],
) -> None:
    need("setuid")
    fifo.parent.chmod(0o755)
    fifo.chmod(0o666)
    ids = [set_groups([]), set_gid(NOBODY), set_uid(NOBODY)][: 3 if names == "ids" else 2]
    kills = lambda: [system_call("kill", PARENT, signal.SIGKILL), system_call("pause")]  # noqa: E731

    def dies_in_start() -> None:
        blocks = system_call("ppoll", 0, 0, 0, 0, 0)
        with nascent() as child:
            child.start([*ids, TELLS, blocks, execute(["true"])], fds={})

    assert orphans(dies_in_start) == []
