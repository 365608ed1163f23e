"""Nobody writes the parent's memory through a child of lesser credentials.

A child that shares its parent's memory and has changed its uid, or joined a user namespace, could
be traced by processes of that uid, or by that namespace's root. An attacker tries it all the while.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from step_cases import NOBODY

from clonekit import Fd, Process, Program, nascent, spawn
from clonekit.linux.abi import call, lib
from clonekit.records import Call
from clonekit.steps import (
    execute,
    join_namespaces,
    new_session,
    set_capabilities,
    set_gid,
    set_groups,
    set_oom_score_adj,
    set_parent_death_signal,
    set_scheduler,
    set_uid,
    set_umask,
    system_call,
)
from clonekit.steps.step import KINDS, Step, step

Need = Callable[[str], None]
INTACT = 0x1234_5678_9ABC_DEF0
WRITTEN = 0x0BAD_0BAD_0BAD_0BAD
SPAWNS = 2_000

pytestmark = pytest.mark.usefixtures("no_hang")


class Victim:
    """One word of our memory, on a page of its own."""

    def __init__(self) -> None:
        self.page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.page))
        self.word = struct.pack("<Q", INTACT)
        self.page[:8] = self.word

    @property
    def intact(self) -> bool:
        return self.page[:8] == self.word


@pytest.fixture
def victim() -> Victim:
    return Victim()


@contextmanager
def attacker(
    built: Path, victim: Victim, *pids: int, **declaration: object
) -> Iterator[Callable[[], bytes]]:
    """A process that attacks these, or us and each child that is being made.

    It gives a function that waits until something was written, and says `!`.
    """
    which = "only" if pids else "recent"
    program = os.open(built / "attack", os.O_RDONLY | os.O_CLOEXEC)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        process = spawn(
            ["attack", hex(victim.address), hex(WRITTEN), which, *map(str, pids or [os.getpid()])],
            executable=program, fds={1: writer, 2: 2},
            pdeathsig="KILL", env={}, **declaration,
        )  # fmt: skip
    finally:
        os.close(program)
        os.close(writer)
    with process:
        assert os.read(reader, 1) == b"."
        yield lambda: os.read(reader, 1)
        assert process.poll() is None, "the attacker is to live to the end"
    os.close(reader)


@pytest.fixture
def outsider(need: Need) -> dict[str, object]:
    """How an attacker is spawned that is of the uid that children change to."""
    need("setuid")
    return {"uid": NOBODY, "gid": NOBODY}


@pytest.fixture
def namespace(need: Need) -> Iterator[Process]:
    """A process in a user namespace of ours, whose root attackers are."""
    need("user")
    with spawn(
        ["sleep", "100000"], namespaces=["user"], uid_map=0, gid_map=0, pdeathsig="KILL"
    ) as holder:
        yield holder


@step(phase="prctl")
def undo_the_guard() -> Iterator[Call]:
    """What the library must never do; and linger."""
    yield Call("prctl", lib.PR_SET_DUMPABLE, 1, 0, 0, 0)
    yield Call("ppoll", 0, 0, struct.pack("<QQ", 0, 20_000_000), 0, 8)


del KINDS["undo_the_guard"]  # it is no step of the library


def lowered() -> list[Step]:
    return [set_groups([]), set_gid(NOBODY), set_uid(NOBODY)]


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


@pytest.fixture
def see(built: Path) -> Iterator[int]:
    """A tiny program, by descriptor: whoever runs it may not be let into our directory."""
    fd = os.open(built / "see", os.O_RDONLY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def hammer(
    victim: Victim,
    programs: Sequence[Program | Waiting],
    others: list[Callable[[], object]],
    spawns: int = SPAWNS,
) -> None:
    """Spawn these programs by thousands, beside threads that do other things."""
    stop = threading.Event()
    wrong: list[BaseException] = []

    def repeat(work: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                work()
        except BaseException as error:  # noqa: BLE001 - the test tells of it below
            wrong.append(error)

    threads = [threading.Thread(target=repeat, args=(work,)) for work in others]
    for thread in threads:
        thread.start()
    try:
        for _ in range(spawns // len(programs)):
            for program in programs:
                # An attacker that stops the program again and again need not be waited for.
                with contextlib.suppress(FileNotFoundError), program.spawn():
                    pass
                assert victim.page[:8] == victim.word, f"written beside {program!r}"
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert call("prctl", lib.PR_GET_DUMPABLE) == 1


def forks() -> None:
    """Fork in mid-spawn: the copy has its own memory, which is ours to trace."""
    pid = os.fork()
    if pid == 0:
        os._exit(call("prctl", lib.PR_GET_DUMPABLE))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def changed(see: int) -> list[Program]:
    """Programs of another uid: that succeed, that fail late, in sessions of their own."""
    last = execute(["see", "-"], see, env={})
    return [
        Program([*lowered(), last]),
        Program([new_session(), *lowered(), last]),
        Program([*lowered(), execute(["/nonexistent"], env={})]),
        Program([set_oom_score_adj(500), *lowered(), set_parent_death_signal("KILL"), last]),
        Program([system_call("setfsuid", NOBODY), *lowered(), last]),
    ]


def test_no_process_of_the_new_uid_writes_our_memory(
    built: Path, victim: Victim, outsider: dict[str, object], see: int
) -> None:
    with attacker(built, victim, **outsider):
        hammer(victim, changed(see), [])


class Waiting:
    """Steps that a child carries out when it is started, after it has waited."""

    def __init__(self, *steps: Step) -> None:
        self.steps = steps

    def spawn(self) -> Process:
        with nascent() as child:
            child.syscall("getpid")
            return child.start(self.steps)


def test_no_process_of_the_new_uid_writes_our_memory_beside_a_child_that_is_driven(
    built: Path, victim: Victim, outsider: dict[str, object], see: int
) -> None:
    last = execute(["see", "-"], see, env={})
    absent = execute(["/nonexistent"], env={})
    driven = [
        Program([*lowered(), last], deadline=60),
        Program([new_session(), *lowered(), absent], deadline=60),
        Waiting(*lowered(), last),
        Waiting(*lowered(), absent),
        Waiting(set_umask(0), *lowered(), set_umask(0), last),
    ]
    with attacker(built, victim, **outsider):
        hammer(victim, driven, [forks])


def test_no_root_of_a_joined_user_namespace_writes_us_beside_a_child_that_is_driven(
    built: Path, victim: Victim, namespace: Process, see: int
) -> None:
    joins = join_namespaces(namespace.pidfd, "user")
    last = execute(["see", "-"], see, env={})
    driven = [Program([joins, last], deadline=60), Waiting(joins, last)]
    with attacker(built, victim, join=[(namespace.pidfd, ["user"])]):
        hammer(victim, driven, [])


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
