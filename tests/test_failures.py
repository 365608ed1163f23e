"""Whatever fails, the error says which call of which step, and the parent is as it was."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import stracing
from parent_snapshot import changes, snapshot
from step_cases import CASES, NOBODY, WITHOUT_CASES, Case, Room
from stracing import Outcome, Worker, begin, finish, of_case, prepare, spawn_ready, warm_worker

from clonekit import Program, Slot, Spec
from clonekit.linux.abi import call, lib
from clonekit.records import Call, Scratch
from clonekit.steps import execute, open_file, open_memory, system_call, write
from clonekit.steps.step import KINDS, step

SUCCEEDING = [case for case in CASES if not case.fails]
Row = dict[str, Any]
Make = Callable[..., tuple[Program, dict[str, int]]]


class Workers:
    """One process for each set of calls that a filter refuses it."""

    def __init__(self, path: Path, see: Path) -> None:
        self.path, self.see = path, see
        self._workers: dict[tuple[tuple[str, int], ...], Worker] = {}

    def of(self, refused: Mapping[str, int]) -> Worker:
        """The process under this filter, after its first spawns."""
        key = tuple(refused.items())
        worker = self._workers.get(key)
        if worker is None or not worker.lives:
            worker = self._workers[key] = warm_worker(self.path, self.see, begin, dict(refused))
        return worker

    def spawn(
        self,
        make: Make,
        arguments: tuple[object, ...] = (),
        refused: Mapping[str, int] | None = None,
        *,
        inject: str = "",
        behind: int = 0,
        how: Callable[..., list[Outcome]] = spawn_ready,
    ) -> tuple[Outcome, list[Row]]:
        """Spawn a program once, perhaps while strace spoils a call of the child's.

        Asserts that the parent is as it was. `behind` is how many of these calls the parent makes
        first, so that strace spoils none that matters to it.
        """
        worker = self.of(refused or {})
        rows = worker.run(prepare, make, arguments, self.path, self.see)
        assert not isinstance(rows, str), rows
        try:
            if inject:
                with worker.watched(f"--inject={inject}"):
                    outcomes = worker.run(how, (inject.partition(":")[0], behind))
            else:
                outcomes = worker.run(how)
        finally:
            changed = worker.run(finish) if worker.lives else "the worker's end"
        assert changed == {}
        (outcome,) = outcomes
        return outcome, rows

    def close(self) -> None:
        """End them all."""
        for worker in self._workers.values():
            worker.close()


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Iterator[Workers]:
    """The processes that spawn."""
    path = tmp_path_factory.mktemp("rooms")
    path.chmod(0o711)
    workers = Workers(path, built / "see")
    yield workers
    workers.close()


@pytest.fixture
def strace() -> None:
    """Skip where strace cannot watch; CI installs it."""
    if reason := stracing.missing_strace():
        pytest.skip(reason)


def assert_names(error: Row | None, row: Row, number: int) -> None:
    """Whether an error is about this record and says why."""
    assert error is not None, f"{row['text']} did not fail"
    shown = {
        "step": row["step"], "step_number": row["step_number"], "phase": row["phase"],
        "syscall": row["syscall"], "arguments": row["text"], "errno": number,
    }  # fmt: skip
    assert {name: error[name] for name in shown} == shown


def calls(rows: list[Row]) -> Iterator[tuple[int, str, int]]:
    """Each system call: the number of its record, its name, how many of that name with it."""
    counts: dict[str, int] = {}
    for number, row in enumerate(rows):
        if name := row.get("syscall"):
            counts[name] = counts.get(name, 0) + 1
            yield number, name, counts[name]
        if row["step"] == "load_first_stage()" and name == "execveat":
            for own in stracing.OF_STAGE:
                counts[own] = counts.get(own, 0) + 1


# ---- the snapshot ----


def set_by_prctl(option: int, value: int) -> None:
    """A setting of this process, or of its memory."""
    call("prctl", option, value, 0, 0, 0)


def write_setting(name: str, text: str) -> None:
    """Write a file of /proc/self."""
    Path(f"/proc/self/{name}").write_text(text)


def lower_limit() -> None:
    """Allow one descriptor less."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))


def leave_zombie() -> None:
    """Have a child that has ended."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def map_memory() -> None:
    """Map a page, for good."""
    KEPT.append(mmap.mmap(-1, mmap.PAGESIZE))


KEPT: list[mmap.mmap] = []
CHANGES: dict[str, tuple[Callable[..., object], tuple[object, ...]]] = {
    "descriptors": (os.pipe, ()),
    "inheritable": (os.set_inheritable, (0, False)),
    "prctl dumpable": (set_by_prctl, (lib.PR_SET_DUMPABLE, 0)),
    "prctl thp_disable": (set_by_prctl, (lib.PR_SET_THP_DISABLE, 1)),
    "prctl mdwe": (set_by_prctl, (lib.PR_SET_MDWE, 1)),
    "oom_score_adj": (write_setting, ("oom_score_adj", "900")),
    "coredump_filter": (write_setting, ("coredump_filter", "0x11")),
    "mappings": (map_memory, ()),
    "status SigBlk": (signal.pthread_sigmask, (signal.SIG_BLOCK, [signal.SIGUSR1])),
    "handlers": (signal.signal, (signal.SIGUSR1, signal.SIG_IGN)),
    "status Umask": (os.umask, (0o077,)),
    "cwd": (os.chdir, ("/proc",)),
    "limits": (lower_limit, ()),
    "status NoNewPrivs": (set_by_prctl, (lib.PR_SET_NO_NEW_PRIVS, 1)),
    "children": (leave_zombie, ()),
    "ended child": (leave_zombie, ()),
}


def changed_by(change: Callable[..., object], arguments: tuple[object, ...]) -> list[str]:
    """What a snapshot says that this changes."""
    before = snapshot(memory=True)
    change(*arguments)
    return list(changes(before, snapshot(memory=True)))


@pytest.mark.parametrize("name", CHANGES)
def test_snapshot_notices(name: str) -> None:
    worker = Worker()
    try:
        assert name in worker.run(changed_by, *CHANGES[name])
    except AssertionError as error:
        if "Errno 22" in str(error):
            pytest.skip(f"{name}: this kernel has it not")
        raise
    finally:
        worker.close()


# ---- by nature ----


@pytest.mark.usefixtures("needs")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_parent_is_the_same_after(case: Case, workers: Workers) -> None:
    outcome, _ = workers.spawn(of_case, (str(case),), case.refused)
    if not case.fails:
        assert outcome.error is None
        assert outcome.ended
        return
    assert outcome.error
    assert outcome.error["errno"] in case.fails
    assert type(OSError(outcome.error["errno"], "")).__name__ in outcome.error["classes"]
    assert outcome.error["phase"] in {KINDS[case.step].phase, "clone"}


def test_every_step_fails_somewhere() -> None:
    assert {case.step for case in CASES if case.fails} == KINDS.keys() - WITHOUT_CASES


# ---- by injection ----


@pytest.mark.usefixtures("strace", "needs")
@pytest.mark.parametrize("case", [case for case in SUCCEEDING if case.step != "execute"], ids=str)
def test_each_record_that_fails_is_named(case: Case, workers: Workers) -> None:
    outcome, rows = workers.spawn(of_case, (str(case),), case.refused)
    assert outcome.error is None
    for number, name, count in calls(rows):
        if rows[number]["step"].startswith(f"{case.step}("):
            inject = f"{name}:error=EPERM:when={count}"
            outcome, same = workers.spawn(
                of_case, (str(case),), case.refused, inject=inject, behind=count
            )
            assert_names(outcome.error, same[number], errno.EPERM)


ABSENT = ":".join(f"/nonexistent/{n}" for n in range(3))


def absent_everywhere(_: Room) -> tuple[Program, dict[str, int]]:
    """A program that no directory of PATH has."""
    return Program([execute(["absent"], env={"PATH": ABSENT})]), {}


@pytest.mark.usefixtures("strace")
def test_each_candidate_that_fails_otherwise_is_named(workers: Workers) -> None:
    outcome, rows = workers.spawn(absent_everywhere)
    found = [(rows[number], count) for number, _, count in calls(rows)]
    candidates = [(row, count) for row, count in found if "candidate" in row]
    assert len(candidates) == ABSENT.count(":") + 1
    assert_names(outcome.error, candidates[-1][0], errno.ENOENT)
    for row, count in candidates:
        outcome, _ = workers.spawn(
            absent_everywhere, inject=f"execve:error=EACCES:when={count}", behind=count
        )
        assert_names(outcome.error, row, errno.EACCES)


def by_descriptor(room: Room) -> tuple[Program, dict[str, int]]:
    """A program given by descriptor."""
    return Program([execute(["true"], executable=room.open("/bin/true"))]), {}


@pytest.mark.usefixtures("strace")
def test_an_exec_by_descriptor_that_fails_is_named(workers: Workers) -> None:
    outcome, rows = workers.spawn(by_descriptor)
    assert outcome.error is None
    outcome, rows = workers.spawn(by_descriptor, inject="execveat:error=EACCES:when=1")
    assert_names(outcome.error, rows[-1], errno.EACCES)


#: Calls that the spawning process makes itself while strace watches, and more than it makes.
PARENTS_OWN = {
    "close": errno.EBADF, "fcntl": errno.EBADF, "openat": errno.EFAULT, "prctl": errno.EINVAL,
    "rt_sigprocmask": errno.EINVAL, "write": errno.EBADF,
}  # fmt: skip
MORE = 32


def padding() -> Iterator[Call]:
    """Calls that do nothing, so that a later one is the child's nth and not the parent's too."""
    for name, number in PARENTS_OWN.items():
        for _ in range(MORE):
            yield Call(name, -1, -1, -1, -1, tolerate=(number,))


PADDING: Any = step(phase="maps")(padding)
del KINDS["padding"]  # it is no step of the library


def rich(room: Room) -> tuple[Program, dict[str, int]]:
    """A program that does much, and changes its ids where it may."""
    ids: dict[str, Any] = {"uid": NOBODY, "gid": NOBODY, "groups": [NOBODY]}
    if os.geteuid():
        ids = {"uid": os.getuid(), "gid": os.getgid(), "groups": "keep"}
    steps = [
        open_file("/dev/null", name="null"), open_memory("m", name="m"), write(Slot("m"), b"text"),
    ]  # fmt: skip
    spec = Spec(
        ["/bin/true"], fds={0: Slot("null"), 1: 2, 2: 1, 9: Slot("m"), 10: room.open("/dev/zero")},
        rlimits={"core": 0, "nofile": 64}, nice=3, oom_score_adj=500, umask=0o077, cwd="/",
        setsid=True, sigmask=["TERM"], sigignore=["HUP"], timer_slack_ns=5000, pdeathsig="KILL",
        no_new_privs=True, steps=steps, **ids,
    )  # fmt: skip
    return Program([PADDING(), *spec.steps()]), {}


@pytest.mark.usefixtures("strace")
def test_a_child_that_is_killed_is_an_error_that_names_the_step(workers: Workers) -> None:
    outcome, rows = workers.spawn(rich)
    assert outcome.error is None
    kinds = {row["step"].partition("(")[0] for row in rows}
    assert len(kinds) > 15
    for number, name, count in calls(rows):
        if "candidate" in rows[number] or rows[number]["step"] == "padding()":
            continue
        outcome, same = workers.spawn(rich, inject=f"{name}:signal=SIGKILL:when={count}")
        assert_names(outcome.error, same[number], errno.ECHILD)
        assert outcome.error
        assert outcome.error["signal"] == signal.SIGKILL


def modest(_: Room) -> tuple[Program, dict[str, int]]:
    """A program of few steps, that keeps its ids."""
    return Spec(["/bin/true"]).program(), {}


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("make", [modest, rich])
def test_a_child_that_is_killed_in_its_exec_has_ended_by_that_signal(
    make: Make, workers: Workers
) -> None:
    outcome, _ = workers.spawn(make, inject="execve:signal=SIGKILL:when=1")
    assert outcome.error is None
    assert outcome.ended == (None, signal.SIGKILL)


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("make", [modest, rich])
@pytest.mark.parametrize("name", ["EPERM", "EAGAIN", "ENOMEM", "ENOSPC", "ENOSYS"])
def test_a_clone_that_is_refused_changes_nothing(make: Make, name: str, workers: Workers) -> None:
    outcome, _ = workers.spawn(make, inject=f"clone3:error={name}:when=1")
    assert outcome.error
    assert (outcome.error["phase"], outcome.error["syscall"]) == ("clone", "clone3")
    assert (outcome.error["errno"], outcome.error["step"]) == (getattr(errno, name), None)


def roomy(_: Room) -> tuple[Program, dict[str, int]]:
    """A program that takes more memory than there will be."""
    return Program([system_call("getpid", Scratch(bytes(64 << 20))), execute(["/bin/true"])]), {}


def spawn_without_memory() -> list[Outcome]:
    """Spawn what was prepared when no more memory can be mapped."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (32 << 20), limits[1]))
    try:
        return spawn_ready()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_a_spawn_without_memory_changes_nothing(workers: Workers) -> None:
    outcome, _ = workers.spawn(roomy, how=spawn_without_memory)
    assert outcome.error
    assert (outcome.error["errno"], outcome.error["syscall"]) == (errno.ENOMEM, "mmap")
    outcome, _ = workers.spawn(roomy)
    assert outcome.error is None
