"""Our init in a PID namespace: it passes on signals, reaps, and ends with the program."""

from __future__ import annotations

import errno
import os
import pty
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from parent_snapshot import content, unchanged
from step_cases import apart, missing, refusing, unforeseen

from clonekit import DeclarationError, Process, Program, SpawnError, spawn
from clonekit.linux.abi import call, lib
from clonekit.steps import execute, new_namespaces, run_init, system_call

PATIENCE = 30  # seconds
ROOT = os.geteuid() == 0
#: The namespaces in which an init can be made, by us.
OURS: dict[str, object] = {"namespaces": ["pid"] if ROOT else ["user", "pid"], "init": True}
PYTHON = [sys.executable, "-I", "-S", "-c"]

pytestmark = pytest.mark.skipif(bool(missing("pid")), reason=missing("pid"))


@pytest.fixture(autouse=True, scope="module")
def loaded() -> None:
    """The first stage is there, and stays: a snapshot would see that it is new."""
    with begin(["true"]) as process:
        process.wait()


def begin(argv: list[str], **declaration: object) -> Process:
    """A program with an init."""
    process: Process = spawn(argv, **{**OURS, **declaration})
    return process


def told(argv: list[str], **declaration: object) -> Iterator[str]:
    """The lines that a program prints; it is killed when nobody wants more."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(reader, errors="replace") as lines:
        try:
            process = begin(argv, fds={0: 0, 1: writer, 2: 2}, **declaration)
        finally:
            os.close(writer)
        with process:
            yield str(process.pid)
            yield from lines


def printed(argv: list[str], **declaration: object) -> str:
    """All that a program prints."""
    _, *lines = told(argv, **declaration)
    return "".join(lines)


def test_the_program_is_the_child_of_init() -> None:
    assert printed(["sh", "-c", "echo $$ $PPID"]) == "2 1\n"


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("kill -TERM $$", 143)],
)
def test_init_ends_with_the_status_of_the_program(script: str, status: int) -> None:
    with unchanged(), begin(["sh", "-c", script]) as process:
        assert process.wait().status == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGRTMIN + 1])
def test_a_signal_to_init_reaches_the_program(number: int) -> None:
    code = (
        f"import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [{number:d}]); print(flush=True);"
        f"print(int(signal.sigwait([{number:d}])))"
    )
    lines = told([*PYTHON, code])
    pid = int(next(lines))
    next(lines)
    os.kill(pid, number)
    assert list(lines) == [f"{number:d}\n"]


def test_a_signal_that_came_before_the_program_began_reaches_it() -> None:
    kill = system_call("kill", 1, signal.SIGTERM)
    clone = new_namespaces(["pid"] if ROOT else ["user", "pid"])
    program = Program([clone, kill, run_init(), execute(["sleep", "1000"])])
    try:
        with program.spawn() as process:
            assert process.wait().status == 128 + signal.SIGTERM
    except SpawnError as error:  # it came when the mask was set
        assert error.signal == signal.SIGTERM  # noqa: PT017 - either may be


def test_a_program_is_stopped_and_goes_on() -> None:
    lines = told(["sh", "-c", "echo; kill -STOP $$; echo on"])
    pid = int(next(lines))
    next(lines)
    children = f"/proc/{pid}/task/{pid}/children"
    program = content(children).strip()
    while " T " not in content(f"/proc/{program}/stat"):
        time.sleep(0.001)
    os.kill(pid, signal.SIGCONT)
    assert list(lines) == ["on\n"]


def test_init_cannot_be_ended_or_stopped_from_inside() -> None:
    script = "kill -KILL 1; kill -STOP 1; kill -SEGV 1 2>/dev/null; trap : TERM; kill -TERM 1; echo"
    with begin(["sh", "-c", f"{script}; exit 3"], sigignore=["SEGV"]) as process:
        assert process.wait().status == 3


def test_whoever_is_left_without_a_parent_is_reaped() -> None:
    script = (
        "for n in 1 2 3 4 5 6 7 8 9; do (true & ) ; done; sleep 0.1; echo done; exec sleep 1000"
    )
    lines = told(["sh", "-c", script])
    pid = int(next(lines))
    next(lines)
    children = f"/proc/{pid}/task/{pid}/children"
    while len(content(children).split()) > 1:
        time.sleep(0.001)


def test_all_end_with_the_program() -> None:
    lines = told(["sh", "-c", "sleep 1000 & sleep 1000 & setsid sleep 1000 & echo"])
    pid = int(next(lines))
    next(lines)
    pids = content(f"/proc/{pid}/task/{pid}/children").split()
    with suppress(StopIteration):
        while True:
            next(lines)  # until nobody has the pipe any more
    assert not any(os.path.exists(f"/proc/{child}") for child in pids)


def test_all_end_with_init() -> None:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    script = "sleep 1000 & sleep 1000 & echo; wait"
    process = begin(["sh", "-c", script], fds={1: writer, 2: writer})
    os.close(writer)
    os.read(reader, 1)
    with process:
        process.kill()
        assert process.wait().signal == signal.SIGKILL
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_init_has_no_descriptor_and_no_records() -> None:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with begin(["cat"], fds={0: reader, 1: 1}) as process:
        os.close(reader)
        try:
            assert os.listdir(f"/proc/{process.pid}/fd") == []
            assert "clonekit-plan" not in content(f"/proc/{process.pid}/maps")
        except PermissionError:
            assert not ROOT
        os.close(writer)  # and nobody has the other end: cat ends
        assert process.wait().status == 0


@pytest.mark.parametrize("ignored", [signal.SIG_IGN, signal.SIG_DFL])
def test_the_status_is_known_where_we_ignore_the_end_of_children(ignored: signal.Handlers) -> None:
    """And the program has SIGCHLD as it would have it without an init."""

    def attempt() -> None:
        signal.signal(signal.SIGCHLD, ignored)
        mask = f"{(ignored == signal.SIG_IGN) << 16:016x}"
        with suppress(ChildProcessError):  # before Linux 6.15 nobody keeps it
            with begin(["grep", "-q", f"SigIgn:.{mask}", "/proc/self/status"]) as process:
                assert process.wait().status == 0
            with begin(["grep", "-q", "SigIgn:.f", "/proc/self/status"]) as process:
                assert process.wait().status == 1

    assert apart(attempt) == ""


def test_a_filter_that_kills_is_told_as_without_init() -> None:
    answers = lib.SECCOMP_RET_KILL_PROCESS, lib.SECCOMP_RET_ALLOW
    everything = unforeseen(b"".join(struct.pack("=HBBI", 6, 0, 0, answer) for answer in answers))
    with unchanged(), pytest.raises(SpawnError, match="set_signal_mask") as caught:
        begin(["true"], no_new_privs=True, seccomp=everything)
    assert caught.value.signal == signal.SIGSYS


def test_a_program_that_is_not_there_is_an_error_and_leaves_no_init() -> None:
    with unchanged(), pytest.raises(FileNotFoundError) as caught:
        begin(["/nonexistent"])
    assert caught.value.step.startswith("execute(")  # type: ignore[attr-defined]


def test_an_init_without_a_namespace_is_refused() -> None:
    with pytest.raises(DeclarationError, match='add "pid" to namespaces'):
        spawn(["true"], init=True)


def test_a_filter_is_the_programs_and_not_that_of_init() -> None:
    refused = refusing({"wait4": errno.EPERM, "rt_sigtimedwait": errno.EPERM})
    with begin(["sh", "-c", "exit 4"], no_new_privs=True, seccomp=refused) as process:
        assert process.wait().status == 4


# ---- a terminal ----


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    for fd in (ours, theirs):
        with suppress(OSError):
            os.close(fd)


def with_terminal(code: str, theirs: int) -> tuple[Process, int]:
    """A Python program whose terminal this is, and what it prints."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    process = begin(
        [*PYTHON, code], setsid=True, ctty=theirs, fds={0: theirs, 1: writer, 2: writer}
    )
    os.close(writer)
    return process, reader


SAYS = """if True:
    import os, signal
    wanted = [signal.SIGINT, signal.SIGHUP]
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    print("ready", flush=True)
    while True:
        print(int(signal.sigwait(wanted)), flush=True)
"""


def test_ctrl_c_reaches_the_program_once(terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    process, reader = with_terminal(SAYS, theirs)
    with process, open(reader) as lines:
        assert lines.readline() == "ready\n"
        os.write(ours, b"\x03")
        assert lines.readline() == "2\n"
        os.kill(process.pid, signal.SIGHUP)  # what came twice would be there before it
        assert lines.readline() == "1\n"


def test_a_terminal_that_is_gone_is_told_to_the_program(terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    process, reader = with_terminal(SAYS, theirs)
    with process, open(reader) as lines:
        assert lines.readline() == "ready\n"
        os.close(theirs)
        os.close(ours)
        assert lines.readline() == "1\n"


# ---- its parent ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_parent_that_dies_is_told_by_the_signal_that_was_declared(
    number: signal.Signals, tmp_path: Path
) -> None:
    orphan = tmp_path / "orphan"

    def parent() -> None:
        process = begin(["sleep", "1000"], pdeathsig=number)
        orphan.write_text(str(process.pid))
        os.kill(os.getpid(), signal.SIGKILL)

    in_a_parent(parent)
    pid = int(orphan.read_text())
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        assert select.select([pidfd], [], [], PATIENCE)[0]
        os.close(pidfd)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def in_a_parent(work: Callable[[], object]) -> None:
    """Do this in a process of its own, which kills itself; its orphans are ours."""
    call("prctl", lib.PR_SET_CHILD_SUBREAPER, 1)
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            work()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    call("prctl", lib.PR_SET_CHILD_SUBREAPER, 0)
