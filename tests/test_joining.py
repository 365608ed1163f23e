"""A program joins PID and time namespaces: from the first stage, which has a memory of its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TextIO

import pytest
from awaited import beside, late_at
from parent_snapshot import children, unchanged
from step_cases import apart, missing

from clonekit import (
    DeclarationError,
    Process,
    Program,
    Slot,
    SpawnError,
    enter,
    nascent,
    spawn,
)
from clonekit.linux.abi import NUMBERS
from clonekit.linux.landlock import Ruleset
from clonekit.steps import execute, join_namespaces, set_umask, system_call, write

ROOT = os.geteuid() == 0
#: What we join: without privilege, the rights in its user namespace come first.
NAMES = ["pid"] if ROOT else ["user", "pid"]
MAPPED: dict[str, object] = {} if ROOT else {"uid_map": 0, "gid_map": 0}
TIMES = 100
PATIENCE = 600  # seconds

pytestmark = pytest.mark.skipif(bool(missing("pid")), reason=missing("pid"))


@pytest.fixture
def holder() -> Iterator[Process]:
    """A process with namespaces of its own, whose first process it is."""
    with spawn(["sleep", "1000"], namespaces=NAMES, init=True, **MAPPED) as process:
        yield process


def namespace(process: Process, name: str) -> int:
    """A descriptor of a namespace of this process's children."""
    return os.open(f"/proc/{process.pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)


def printed(argv: list[str], **declaration: object) -> str:
    """All that a program prints, which ends well."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(reader, errors="replace") as text:
        try:
            process = spawn(argv, fds={0: 0, 1: writer, 2: 2}, **declaration)
        finally:
            os.close(writer)
        with process:
            said = text.read()
            assert process.wait().status == 0
    return said


def test_the_program_is_in_the_pid_namespace(holder: Process) -> None:
    with unchanged():
        pids = printed(["sh", "-c", "echo $$ $PPID"], join=[(holder.pidfd, NAMES)])
    assert int(pids.split()[0]) > 2
    assert pids.split()[1] == "0"  # its parent, we, is not in there


def test_it_is_our_child_with_its_status_and_its_signals(holder: Process) -> None:
    joins = {"join": [(holder.pidfd, NAMES)]}
    with spawn(["sh", "-c", "exit 7"], **joins) as process:
        assert os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED | os.WNOWAIT)
        assert process.wait().status == 7
    with spawn(["sleep", "1000"], **joins) as process:
        process.terminate()
        assert process.wait().signal == signal.SIGTERM


def test_it_ends_with_the_init_of_that_namespace(holder: Process) -> None:
    with spawn(["sleep", "1000"], join=[(holder.pidfd, NAMES)]) as process:
        holder.kill()
        assert process.wait().signal == signal.SIGKILL


def test_namespaces_are_joined_one_by_one_too(holder: Process) -> None:
    """The exec of the first stage, between them, would take what the first join has given."""
    fds = [namespace(holder, name) for name in NAMES]
    joined = printed(["readlink", "/proc/self/ns/pid"], join=fds)
    assert joined.strip() == os.readlink(f"/proc/{holder.pid}/ns/pid")
    for fd in fds:
        os.close(fd)


def test_a_uid_without_privilege_in_there_joins_both() -> None:
    fields = {"namespaces": ["user", "pid"], "uid_map": 42, "init": True}
    if missing("user"):
        pytest.skip(missing("user"))
    with ExitStack() as stack:
        holder = stack.enter_context(spawn(["sleep", "1000"], **fields))
        fds = [namespace(holder, name) for name in ("user", "pid")]
        stack.callback(lambda: [os.close(fd) for fd in fds])
        assert printed(["id", "-u"], join=fds) == "42\n"


def test_a_namespace_may_be_a_slot(holder: Process) -> None:
    program = Program(
        [join_namespaces(Slot("process"), NAMES), execute(["sh", "-c", "exit $PPID"])]
    )
    assert program.slots == ("process",)
    for _ in range(2):
        with program.spawn(process=holder.pidfd) as process:
            assert process.wait().status == 0


def test_what_comes_later_has_its_descriptors(holder: Process, built: Path) -> None:
    """A ruleset, which crosses the vector; the vector, of high numbers; a cycle in it."""
    with ExitStack() as stack:
        null, status = (stack.enter_context(open(name)) for name in ("/dev/null", "/proc/stat"))
        vector = {null.fileno(): status, status.fileno(): null, 300: null}
        fields: dict[str, object] = {"no_new_privs": True}
        if not missing("landlock"):
            fields["landlock"] = stack.enter_context(Ruleset(write=["/dev"]))
        seen = [seen_as(to, of) for to, of in vector.items()]
        with spawn(
            [built / "see", *seen], join=[(holder.pidfd, NAMES)], fds=vector, **fields
        ) as process:
            assert process.wait().status == 0


def seen_as(number: int, file: TextIO) -> str:
    """A descriptor as the program `see` is told of it."""
    status = os.fstat(file.fileno())
    return f"{number}:{status.st_dev}:{status.st_ino}"


REACHES = """if True:
    import ctypes, os, sys
    pid = sys.argv[1]
    inside = [row.split()[-1] for row in open(f"/proc/{pid}/status") if row[:6] == "NSpid:"]
    seize = ctypes.CDLL(None, use_errno=True).ptrace
    def attempt(work):
        try:
            print(work())
        except PermissionError:
            pass
    attempt(lambda: os.open(f"/proc/{pid}/fd/1", os.O_WRONLY))
    attempt(lambda: os.open(f"/proc/{pid}/mem", os.O_RDWR))
    print(seize(0x4206, int(inside[0]), 0, 0), ctypes.get_errno())
"""


@pytest.mark.skipif(bool(missing("user")), reason=missing("user"))
def test_root_of_the_namespaces_does_not_reach_into_what_joins_them() -> None:
    """As in CVE-2016-9962: it has descriptors from outside until its program begins."""
    names = ["user", "pid"]
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with spawn(["sleep", "1000"], namespaces=names, uid_map=0, gid_map=0, init=True) as holder:
        tells = [write(writer, b"."), system_call("ppoll", 0, 0, 0, 0, 8)]
        steps = [join_namespaces(holder.pidfd, names), *tells, execute(["true"])]

        def work() -> None:
            with suppress(OSError):
                Program(steps, deadline=PATIENCE).spawn()

        with beside(work):
            os.read(reader, 1)
            pid = max(map(int, children()))
            argv = [sys.executable, "-I", "-S", "-c", REACHES, str(pid)]
            try:
                assert printed(argv, join=[(holder.pidfd, names)]) == "-1 1\n"
            finally:
                os.kill(pid, signal.SIGKILL)
    for fd in (reader, writer):
        os.close(fd)


# ---- it fails ----


def test_a_namespace_whose_init_has_ended_is_an_error_that_says_so(holder: Process) -> None:
    fd = namespace(holder, "pid")
    holder.kill()
    holder.wait()
    with unchanged():
        if ROOT:
            with pytest.raises(SpawnError, match="lost its init") as caught:
                spawn(["true"], join=fd)
            assert (caught.value.syscall, caught.value.step) == ("clone", f"join_namespaces({fd})")
        with pytest.raises(ProcessLookupError):
            spawn(["true"], join=[(holder.pidfd, NAMES)])
    os.close(fd)


@pytest.mark.parametrize("deadline", [None, 60])
def test_a_later_step_that_fails_is_named_and_leaves_nothing(
    holder: Process, deadline: float | None
) -> None:
    joins = join_namespaces(holder.pidfd, NAMES)
    closes = system_call("close", 9999)
    with unchanged():
        for before in range(3):
            steps = [joins, *[set_umask(0o22)] * before, closes, execute(["true"])]
            wrong = Program(steps, deadline=deadline)
            with pytest.raises(OSError, match=r"system_call\(close") as caught:
                wrong.spawn()
            rows = [row for row in wrong.explain() if "system_call(close" in str(row["step"])]
            number = caught.value.step_number  # type: ignore[attr-defined]
            assert [number] == [row["step_number"] for row in rows]
        with pytest.raises(FileNotFoundError):
            spawn(["/nonexistent"], join=[(holder.pidfd, NAMES)], deadline=deadline)


def test_a_step_that_blocks_ends_at_the_deadline_with_whoever_is_in_there(holder: Process) -> None:
    blocks = system_call("ppoll", 0, 0, 0, 0, 8)
    steps = [join_namespaces(holder.pidfd, NAMES), blocks, execute(["true"])]
    with unchanged():
        late_at("system_call(ppoll", lambda deadline: Program(steps, deadline=deadline).spawn())


def test_a_child_that_is_killed_in_there_is_an_error(holder: Process) -> None:
    dies = [system_call("getpid", result="me"), system_call("kill", Slot("me"), signal.SIGKILL)]
    steps = [join_namespaces(holder.pidfd, NAMES), *dies, execute(["true"])]
    with unchanged(), pytest.raises(ChildProcessError, match="killed by signal 9"):
        Program(steps).spawn()


def test_ctrl_c_leaves_nobody_in_there(holder: Process) -> None:
    interrupt = system_call("kill", os.getpid(), signal.SIGINT)
    blocks = system_call("ppoll", 0, 0, 0, 0, 8)
    joins = join_namespaces(holder.pidfd, NAMES)
    if ROOT:  # from inside, our number is not known
        steps = [interrupt, joins, blocks, execute(["true"])]
        with unchanged():
            for _ in range(20):
                with pytest.raises(KeyboardInterrupt):
                    Program(steps).spawn()


def test_a_child_that_waits_cannot_join_it(holder: Process) -> None:
    joins = join_namespaces(holder.pidfd, NAMES)
    with unchanged(), nascent() as child:
        with pytest.raises(DeclarationError, match="give it to spawn"):
            child.do(joins)
        with pytest.raises(DeclarationError, match="give it to spawn"):
            child.start(["true"], steps=[joins])
        with child.start(["true"]) as process:
            assert process.wait().status == 0


def test_a_suspended_program_cannot_join_it(holder: Process) -> None:
    joins = join_namespaces(holder.pidfd, NAMES)
    with unchanged():
        with pytest.raises(DeclarationError, match="leave suspended out"):
            spawn(["true"], suspended=True, steps=[joins])
        with spawn(["true"], suspended=True) as held:
            with pytest.raises(DeclarationError, match="cannot be forked"):
                held.do(joins)
            with held.resume() as process:
                assert process.wait().status == 0


# ---- the end of children, many of them ----


def test_the_end_of_children_may_be_ignored(holder: Process) -> None:
    def attempt() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        joins = {"join": [(holder.pidfd, NAMES)]}
        # Before Linux 6.15 nobody keeps the status.
        with suppress(ChildProcessError), spawn(["sleep", "0.1"], **joins) as process:
            assert process.wait().status == 0
        with pytest.raises(FileNotFoundError):
            spawn(["/nonexistent"], join=[(holder.pidfd, NAMES)])

    assert apart(attempt) == ""


def test_many_join_from_many_threads(holder: Process) -> None:
    program = Program([join_namespaces(holder.pidfd, NAMES), execute(["sh", "-c", "exit 5"])])

    def repeat(_: int) -> set[int | None]:
        ends = set()
        for _ in range(TIMES):
            with program.spawn() as process:
                ends.add(process.wait().status)
        return ends

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(repeat, range(6))) == [{5}] * 6


def test_a_time_namespace_is_joined() -> None:
    if reason := missing("time"):
        pytest.skip(reason)
    user = [] if ROOT else ["user"]
    mapped = {"namespaces": user, **MAPPED}
    with spawn(["sleep", "1000"], time_offsets={"boottime": 100_000_000}, **mapped) as holder:
        with unchanged():
            up = printed(["cat", "/proc/uptime"], join=[(holder.pidfd, [*user, "time"])])
        assert float(up.split()[0]) > 100_000_000
        joined = printed(["readlink", "/proc/self/ns/time"], join=[(holder.pidfd, [*user, "time"])])
        assert joined.strip() == os.readlink(f"/proc/{holder.pid}/ns/time")


def test_a_process_whose_first_thread_has_ended_is_not_taken_for_one_beside_us() -> None:
    code = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
print(flush=True)
ctypes.CDLL(None).syscall({exit}, 0)
"""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    argv = [sys.executable, "-c", code.format(exit=NUMBERS["exit"])]
    names = [name if name != "pid" else "uts" for name in NAMES]
    with spawn(argv, namespaces=names, fds={1: writer, 2: 2}, **MAPPED) as process:
        os.read(reader, 1)
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2][1] != "Z":
            time.sleep(0.001)
        with pytest.raises(ProcessLookupError):
            enter(process, ["true"], root=False)
    os.close(reader)
    os.close(writer)


def test_a_process_is_entered_where_proc_has_other_numbers() -> None:
    code = """
import os
from clonekit import enter, spawn
assert os.readlink("/proc/self") != str(os.getpid())
with spawn(["sleep", "1000"], namespaces=["uts"], hostname="there") as process:
    enter(process, ["uname", "-n"], fds={1: 1, 2: 2}).wait()
"""
    assert printed([sys.executable, "-c", code], namespaces=NAMES, **MAPPED) == "there\n"


@pytest.mark.parametrize("reap", [lambda _: None, Process.wait])
def test_a_process_that_has_ended_cannot_be_entered(
    holder: Process, reap: Callable[[Process], object]
) -> None:
    holder.kill()
    os.waitid(os.P_PIDFD, holder.pidfd, os.WEXITED | os.WNOWAIT)
    reap(holder)
    with unchanged(), pytest.raises(ProcessLookupError, match=f"process {holder.pid} has ended"):
        enter(holder, ["true"])


def test_a_process_that_ends_meanwhile_is_said_to_have_ended() -> None:
    """Whatever the kernel says of what it has lost by then: EPERM, ESRCH, or SIGKILL for ours."""
    for n in range(TIMES):
        with spawn(["sleep", "1000"], namespaces=NAMES, init=True, **MAPPED) as process:
            killer = threading.Timer(n * 5e-5, process.kill)
            killer.start()
            with suppress(ProcessLookupError), enter(process, ["true"]) as beside:
                beside.wait()
            killer.join()
            process.wait()


@pytest.mark.parametrize("what", ["1", None, True])
def test_what_is_no_process_cannot_be_entered(what: object) -> None:
    with pytest.raises(DeclarationError, match="is no process"):
        enter(what, ["true"])  # type: ignore[arg-type]
