"""Nobody writes the parent's memory through a child of lesser credentials.

A child that shares its parent's memory and has changed its uid, or joined a user namespace, could
be traced by processes of that uid, or by that namespace's root. An attacker tries it all the while.
"""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attacking import (
    SPAWNS,
    Victim,
    Waiting,
    attacker,
    changed,
    forks,
    hammer,
    lowered,
    namespace,
    outsider,
    see,
    victim,
)
from step_cases import NOBODY

from clonekit import Fd, Process, Program, spawn
from clonekit.linux.abi import call, lib
from clonekit.records import Call
from clonekit.steps import (
    execute,
    join_namespaces,
    new_session,
    set_capabilities,
    set_scheduler,
    system_call,
)
from clonekit.steps.step import KINDS, step

Need = Callable[[str], None]

__all__ = ["namespace", "outsider", "see", "victim"]  # fixtures

pytestmark = pytest.mark.usefixtures("no_hang")


@step(phase="prctl")
def undo_the_guard() -> Iterator[Call]:
    """What the library must never do; and linger."""
    yield Call("prctl", lib.PR_SET_DUMPABLE, 1, 0, 0, 0)
    yield Call("ppoll", 0, 0, struct.pack("<QQ", 0, 20_000_000), 0, 8)


del KINDS["undo_the_guard"]  # it is no step of the library


def test_the_attacker_writes_a_process_of_its_own_uid(built: Path, victim: Victim) -> None:
    """The control: whoever may be traced is written."""
    root = os.geteuid() == 0
    pid = os.fork()
    if pid == 0:
        if root:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            call("prctl", lib.PR_SET_DUMPABLE, 1)
        signal.pause()
        os._exit(1)
    try:
        with attacker(built, victim, pid, **({"uid": NOBODY} if root else {})) as written:
            assert written() == b"!"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert victim.intact


def test_the_attacker_writes_a_parent_that_opens_up_after_the_uid(
    built: Path, victim: Victim, outsider: dict[str, object]
) -> None:
    """The control: with the guard undone, it is our own memory that is written."""
    program = Program([*lowered(), undo_the_guard(), execute(["true"], env={})])
    with attacker(built, victim, **outsider):
        for _ in range(500):
            program.spawn().wait()
            if not victim.intact:
                break
    assert not victim.intact
    victim.page[:8] = victim.word
    assert call("prctl", lib.PR_GET_DUMPABLE) == 1


def test_the_attacker_writes_a_parent_that_opens_up_after_a_join(
    built: Path, victim: Victim, namespace: Process
) -> None:
    """The control, for a user namespace."""
    joined = join_namespaces(namespace.pidfd, "user")
    program = Program([joined, undo_the_guard(), execute(["true"], env={})])
    with attacker(built, victim, join=[(namespace.pidfd, ["user"])]):
        for _ in range(500):
            program.spawn().wait()
            if not victim.intact:
                break
    assert not victim.intact
    victim.page[:8] = victim.word
    assert call("prctl", lib.PR_GET_DUMPABLE) == 1


def test_no_process_of_the_new_uid_writes_our_memory(
    built: Path, victim: Victim, outsider: dict[str, object], see: int
) -> None:
    with attacker(built, victim, **outsider):
        hammer(victim, changed(see), [])


def test_spawns_in_other_threads_do_not_open_a_guarded_one(
    built: Path, victim: Victim, outsider: dict[str, object], see: int
) -> None:
    plain = Program([execute(["see", "-"], see, env={})])
    dropped = Program([set_capabilities([]), execute(["see", "-"], see, env={})])
    others = [
        lambda: plain.spawn().wait(),
        lambda: dropped.spawn().wait(),
        lambda: changed(see)[0].spawn().wait(),
    ]
    with attacker(built, victim, **outsider):
        hammer(victim, changed(see), others)


def test_a_fork_in_another_thread_does_not_open_a_guarded_one(
    built: Path, victim: Victim, outsider: dict[str, object], see: int
) -> None:
    with attacker(built, victim, **outsider):
        hammer(victim, changed(see), [forks])


@pytest.fixture
def apart_from_us() -> Iterator[dict[str, object]]:
    """Bind us and our children to one processor, and give an attacker another.

    The kernel wakes a vforking parent before it takes the parent's memory from the child. On one
    processor, and with a child that idles, the parent runs on and the child is left in between.
    """
    allowed = os.sched_getaffinity(0)
    if len(allowed) == 1:
        pytest.skip("it takes two processors")
    ours, other, *_ = sorted(allowed)
    os.sched_setaffinity(0, {ours})
    yield {"affinity": [other]}
    os.sched_setaffinity(0, allowed)


def linger(victim: Victim, program: Program) -> None:
    """Spawn, and keep the processor from the child for a while."""
    for _ in range(SPAWNS // 10):
        with program.spawn():
            for _ in range(3_000):
                pass
        assert victim.intact


def test_a_child_of_another_uid_has_left_our_memory_before_it_is_opened(
    built: Path,
    victim: Victim,
    outsider: dict[str, object],
    see: int,
    apart_from_us: dict[str, object],
) -> None:
    steps = [set_scheduler("idle"), *lowered(), execute(["see", "-"], see, env={})]
    with attacker(built, victim, **outsider, **apart_from_us):
        linger(victim, Program(steps))
        linger(victim, Program([new_session(), *steps]))


def test_a_child_that_joined_has_left_our_memory_before_it_is_opened(
    built: Path, victim: Victim, namespace: Process, see: int, apart_from_us: dict[str, object]
) -> None:
    joined = join_namespaces(namespace.pidfd, "user")
    steps = [set_scheduler("idle"), joined, execute(["see", "-"], see, env={})]
    with attacker(built, victim, join=[(namespace.pidfd, ["user"])], **apart_from_us):
        linger(victim, Program(steps))
        linger(victim, Program([new_session(), *steps]))


@pytest.fixture
def interrupted(built: Path, apart_from_us: dict[str, object]) -> Iterator[dict[str, object]]:
    """An attacker's processor, interrupted all the while.

    The kernel looks at the memory first and at the credentials then. Where it is held in between, a
    child that exists already may change its credentials meanwhile.
    """
    (processor,) = apart_from_us["affinity"]  # type: ignore[misc]
    reader, writer = os.pipe2(os.O_CLOEXEC)
    process = spawn(
        [str(built / "interrupt"), str(processor)], fds={1: writer, 2: 2}, pdeathsig="KILL", env={}
    )
    os.close(writer)
    with process:
        begun = os.read(reader, 1)
        os.close(reader)
        if not begun:
            pytest.skip("the kernel lets us not interrupt a processor (perf_event_open)")
        yield apart_from_us


def test_an_attacker_that_is_checked_while_a_waiting_child_joins_writes_nothing(
    built: Path, victim: Victim, namespace: Process, see: int, interrupted: dict[str, object]
) -> None:
    joins = join_namespaces(namespace.pidfd, "user")
    waiting = Waiting(joins, execute(["see", "-"], see, env={}))
    with attacker(built, victim, join=[(namespace.pidfd, ["user"])], **interrupted):
        hammer(victim, [waiting], [], 2 * SPAWNS)


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes capabilities that an attacker lacks")
def test_an_attacker_that_is_checked_while_capabilities_are_given_up_writes_nothing(
    built: Path, victim: Victim, see: int, interrupted: dict[str, object]
) -> None:
    waiting = Waiting(set_capabilities([]), execute(["see", "-"], see, env={}))
    with attacker(built, victim, capabilities=[], **interrupted):
        hammer(victim, [waiting], [], 2 * SPAWNS)


def test_no_root_of_a_joined_user_namespace_writes_our_memory(
    built: Path, victim: Victim, namespace: Process, see: int
) -> None:
    joined = [
        Program([join_namespaces(namespace.pidfd, "user"), execute(["see", "-"], see, env={})]),
        Program(
            [
                new_session(),
                join_namespaces(namespace.pidfd, "user"),
                execute(["see", "-"], see, env={}),
            ]
        ),
        Program([join_namespaces(namespace.pidfd, "user"), execute(["/nonexistent"], env={})]),
        Program(
            [
                system_call("setns", Fd(namespace.pidfd), lib.CLONE_NEWUSER),
                execute(["see", "-"], see, env={}),
            ]
        ),
    ]
    plain = Program([execute(["see", "-"], see, env={})])
    with attacker(built, victim, join=[(namespace.pidfd, ["user"])]):
        hammer(victim, joined, [lambda: plain.spawn().wait()])


def test_the_joined_namespaces_root_attacks_in_vain_while_others_fork(
    built: Path, victim: Victim, namespace: Process, see: int
) -> None:
    joined = Program([join_namespaces(namespace.pidfd, "user"), execute(["see", "-"], see, env={})])
    with attacker(built, victim, join=[(namespace.pidfd, ["user"])]):
        hammer(victim, [joined], [forks])
