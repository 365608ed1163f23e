"""What `clonekit.Popen` has beyond `subprocess`, and what becomes of its child's end."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from awaited import interrupted_in
from parent_snapshot import unchanged

import clonekit
from clonekit import PIPE, DeclarationError, Popen, SpawnError, Spec
from clonekit.linux.pidfd import pidfd_info

ROOT = os.geteuid() == 0


def output(*args: str, **parameters: object) -> str:
    text: str = clonekit.check_output(args, text=True, **parameters)
    return text.strip()


def keeps_status() -> bool:
    """Whether the kernel tells the status of a process that was reaped (Linux 6.15)."""
    process = clonekit.spawn(["true"])
    os.waitpid(process.pid, 0)
    try:
        return "exit_code" in pidfd_info(process.fileno())
    except OSError:
        return False


def test_every_name_of_subprocess_is_there() -> None:
    for name in subprocess.__all__:
        assert hasattr(clonekit, name)
        ours, theirs = getattr(clonekit, name), getattr(subprocess, name)
        same = isinstance(theirs, int) or (
            isinstance(theirs, type) and theirs is not subprocess.Popen
        )
        assert (ours is theirs) == same, name
        assert same or ours.__doc__


def test_functions_make_children_by_our_popen() -> None:
    for function in (clonekit.call, clonekit.check_call, clonekit.check_output, clonekit.run):
        function(["true"], rlimits={"core": 0})
    assert clonekit.getstatusoutput("echo a; exit 2") == (2, "a")
    assert clonekit.getoutput("echo a") == "a"
    with pytest.raises(subprocess.CalledProcessError):
        clonekit.check_call(["false"], no_new_privs=True)
    with pytest.raises(TypeError):
        subprocess.run(["true"], check=False, rlimits={"core": 0})  # type: ignore[call-overload]


def test_a_declarations_names_are_keywords() -> None:
    assert output("sh", "-c", "ulimit -n", rlimits={"nofile": 33}) == "33"
    assert output("sh", "-c", "ulimit -n; pwd", spec=Spec([], cwd="/", rlimits={"nofile": 34})) == (
        "34\n/"
    )


def test_limits_have_the_numbers_of_resource_too() -> None:
    assert output("sh", "-c", "ulimit -n", rlimits={resource.RLIMIT_NOFILE: 36}) == "36"


def test_a_spec_alone_is_enough() -> None:
    with Popen(spec=Spec(["echo", "said"], env={"PATH": "/bin:/usr/bin"}), stdout=PIPE) as process:
        assert process.communicate() == (b"said\n", None)
    with Popen(["echo", "other"], spec=Spec(["echo", "said"]), stdout=PIPE) as process:
        assert process.communicate() == (b"other\n", None)


def test_a_declared_vector_is_whole_and_streams_lie_over_it(tmp_path: Path) -> None:
    see = "readlink /proc/self/fd/3; ls /proc/self/fd | tr '\\n' ' '"
    with (tmp_path / "file").open("w") as file:
        told = output("sh", "-c", see, fds={0: 0, 3: file})
    assert told.split() == [str(tmp_path / "file"), "0", "1", "2", "3"]  # 2: of ls


@pytest.mark.parametrize("number", [63, 64, 70])
def test_a_descriptor_at_the_limit_or_beyond_is_passed_beside_streams(number: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    reader, writer = os.pipe()
    os.dup2(writer, number)
    os.close(writer)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    try:
        script = f"echo passed > /proc/self/fd/{number}; cat"
        parameters = {"pass_fds": [number], "input": b"in", "stdout": PIPE}
        assert clonekit.run(["sh", "-c", script], **parameters).stdout == b"in"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.close(number)
    with open(reader, "rb") as file:
        assert file.read() == b"passed\n"


class Moving(os.PathLike[str]):
    """A path that is an object, and may come to mean another."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


@pytest.fixture
def tools(tmp_path: Path) -> list[Path]:
    """Two directories with a program of the same name, which says in which it is."""
    paths = [tmp_path / name / "tool" for name in ("first", "second")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\necho {path.parent.name}\n")
        path.chmod(0o755)
    return paths


def test_the_program_is_what_a_path_means_now(tools: list[Path]) -> None:
    path = Moving(tools[0])
    spec = Spec(["tool"], executable=(path, "/nowhere"))
    for tool in tools:
        path.path = tool
        assert output("tool", executable=path) == tool.parent.name
        assert clonekit.check_output(None, spec=spec, text=True).strip() == tool.parent.name
        path.path = tool.parent
        assert output("pwd", cwd=path) == str(tool.parent)


def test_the_program_is_where_a_mapping_in_place_of_environ_says(
    tools: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in tools:
        monkeypatch.setattr(os, "environ", {**os.environ, "PATH": str(path.parent)})
        assert output("tool") == path.parent.name


def test_large_arguments_are_not_remembered() -> None:
    script = """if True:
        import clonekit

        def most():
            with open("/proc/self/status") as file:
                return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))

        words = ["x" * 100_000] * 14
        before = most()
        for number in range(60):
            clonekit.run(["true", *words, str(number)])
        print(most() - before)
    """
    assert int(output(sys.executable, "-c", script)) < 32 * 1024  # KiB


@pytest.mark.parametrize("number", [1 << 31, 1 << 40])
def test_a_process_group_that_the_kernel_cannot_be_told_is_refused(number: int) -> None:
    with pytest.raises(OverflowError, match="process_group"):
        Popen(["true"], process_group=number)


def test_true_is_the_number_one() -> None:
    with pytest.raises(PermissionError):  # group 1 is of another session
        Popen(["true"], process_group=True)
    assert output("sh", "-c", "umask", umask=True) == "0001"


def test_further_signals_are_reset_beside_what_python_ignores() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        ignored = "grep SigIgn /proc/self/status"
        assert int(output("sh", "-c", ignored, sigdefault=["HUP"]).split()[1], 16) == 0
        told = output("sh", "-c", ignored, sigdefault=["HUP"], restore_signals=False)
        assert int(told.split()[1], 16) == 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"start_new_session": True, "setsid": True}, "start_new_session says what"),
        ({"user": os.geteuid(), "uid": os.geteuid()}, "user says what the declaration's uid"),
        ({"umask": 0, "spec": Spec([], umask=0)}, "umask says what"),
        ({"cwd": "/", "spec": Spec([], cwd="/")}, "cwd says what"),
        ({"spec": Spec([], suspended=True)}, "clonekit.spawn"),
        ({"spec": {"cwd": "/"}}, "give a clonekit.Spec"),
        ({"rlimits": {"cpu": 7}, "spec": Spec([], rlimits={"nofile": 33})}, "rlimits is in spec"),
        ({"env": {}, "spec": Spec([], env={})}, "env is in spec"),
        ({"fds": [0, 1, 2]}, "give a mapping"),
        ({"rlimits": 64}, "give a mapping"),
        ({"rlimits": {"cpu": 1.9}}, "number from 0 up"),
        ({"rlimits": {"cpu": (1, 2, 3)}}, "number, or two"),
        ({"rlimits": {"nonsense": 1}}, "nonsense"),
        ({"namespaces": ["nonsense"]}, "nonsense"),
    ],
)
def test_what_contradicts_itself_is_refused(parameters: dict[str, object], words: str) -> None:
    with unchanged(), pytest.raises(DeclarationError, match=words):
        Popen(["true"], stdout=PIPE, **parameters)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rlimit", "did you mean rlimits"),
        ("start_new_sesion", "did you mean start_new_session"),
        ("volumes", "mounts="),
        ("timeout", "wait"),
        ("capture_output", "stdout=PIPE"),
        ("input", "communicate"),
        ("check", "check_call"),
        ("suspended", "clonekit.spawn"),
        ("nothing_like_it", "subprocess.Popen"),
    ],
)
def test_an_unknown_keyword_is_a_type_error_that_says_what_to_write(name: str, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        Popen(["true"], **{name: 1})
    with pytest.raises(TypeError, match="give args"):
        Popen()
    with pytest.raises(TypeError, match="spec="):
        Popen(Spec(["true"]))


def test_an_error_is_that_of_subprocess_and_names_the_step() -> None:
    with unchanged(), pytest.raises(FileNotFoundError) as caught:
        Popen(["/no/such/program"], stdin=PIPE, stdout=PIPE)
    error = caught.value
    assert isinstance(error, SpawnError)
    assert (error.filename, error.errno, error.phase) == ("/no/such/program", errno.ENOENT, "exec")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(again) is type(error)
    assert (str(again), again.filename, again.phase) == (str(error), error.filename, "exec")
    with pytest.raises(NotADirectoryError) as caught:
        Popen(["true"], cwd="/etc/passwd")
    assert isinstance(caught.value, SpawnError)
    assert (caught.value.filename, caught.value.phase) == ("/etc/passwd", "place")
    with pytest.raises(PermissionError) as caught:
        Popen(["true"], rlimits={"nofile": 1 << 40})
    assert isinstance(caught.value, SpawnError)
    assert (caught.value.filename, caught.value.phase) == (None, "limits")


@pytest.mark.skipif(not ROOT, reason="only root may change to another user")
def test_a_user_keeps_the_groups_unless_they_are_given_up() -> None:
    groups = os.getgroups()
    os.setgroups([7, 4242])
    try:
        assert output("id", "-G", user=12345, group=12346) == "12346 7 4242"
        assert output("id", "-G", user=12345, group=12346, extra_groups=[]) == "12346"
        assert output("id", "-G", user=12345, group=12346, extra_groups=[9]) == "12346 9"
        assert output("id", "-G", uid=12345, gid=12346) == "12346"
    finally:
        os.setgroups(groups)


def test_the_pidfd_tells_of_the_end_and_is_closed_with_it() -> None:
    with unchanged():
        process = Popen(["cat"], stdin=PIPE)
        assert process.stdin
        poller = select.poll()
        poller.register(process.pidfd, select.POLLIN)
        assert poller.poll(0) == []
        assert process.poll() is None
        assert process.exit is None
        process.stdin.close()
        assert poller.poll(60_000)
        assert process.wait() == 0
        assert process.pidfd == -1
        assert process.exit is not None
        assert process.exit.usage is not None
        assert process.exit.usage.ru_maxrss > 0


def test_a_wait_with_a_time_out_sleeps_once() -> None:
    process = Popen(["sleep", "0.5"])
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    assert process.wait(timeout=60) == 0
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before <= 3  # polling: some 15


def test_time_outs_of_any_size() -> None:
    process = Popen(["cat"], stdin=PIPE)
    assert process.stdin
    for timeout in (0, -1, 0.0001):
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            process.wait(timeout)
        assert caught.value.timeout == timeout
    process.stdin.close()
    assert process.wait(timeout=1e12) == 0


def test_a_status_that_was_stolen_is_told_where_the_kernel_keeps_it() -> None:
    kept = keeps_status()
    for wait in (Popen.poll, Popen.wait, lambda process: process.wait(5)):
        process = Popen(["sh", "-c", "exit 7"])
        os.waitpid(process.pid, 0)
        assert wait(process) == (7 if kept else 0)
        process.send_signal(signal.SIGKILL)


def test_children_that_nobody_may_wait_for_have_ended_well() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert clonekit.call(["sh", "-c", "exit 7"]) == (7 if keeps_status_alone() else 0)
    finally:
        signal.signal(signal.SIGCHLD, before)


def keeps_status_alone() -> bool:
    process = clonekit.spawn(["true"])
    try:
        return process.wait().status == 0
    except ChildProcessError:
        return False


LOOKS: dict[str, Callable[[Popen], object]] = {
    "poll": Popen.poll,
    "wait": Popen.wait,
    "wait with a time-out": lambda process: process.wait(5),
    "kill": Popen.kill,
    "with": lambda process: process.__exit__(None, None, None),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("ended", [False, True])
def test_in_a_fork_of_ours_it_has_ended_well_at_once_and_is_left_alone(
    *, look: Callable[[Popen], object], ended: bool
) -> None:
    script = "exit 7" if ended else "read line; exit 7"
    process = Popen(["sh", "-c", script], stdin=PIPE, stdout=PIPE)
    if ended:
        os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED | os.WNOWAIT)
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            signal.alarm(60)
            look(process)
            status = process.returncode
        finally:
            os._exit(9 if status is None else status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    process.communicate(b"\n" if not ended else None)
    assert process.returncode == 7


def test_a_status_that_is_being_stolen_is_told_where_the_kernel_keeps_it() -> None:
    """A child that another thread is reaping is no longer waited for, and not yet accounted for."""
    wanted = {7} if keeps_status() else {0, 7}

    def thief() -> None:
        with suppress(ChildProcessError):
            os.waitpid(process.pid, 0)

    for _ in range(2000):
        process = Popen(["sh", "-c", "exit 7"])
        thread = threading.Thread(target=thief)
        thread.start()
        while process.poll() is None:
            pass
        thread.join()
        assert process.returncode in wanted


def test_a_signal_never_reaches_another_child_while_others_reap() -> None:
    """The pidfd is closed by whoever reaps; its number is that of the next child at once."""
    wrong: list[int] = []
    stop = threading.Event()
    shared: list[Popen] = []

    def signals() -> None:
        while not stop.is_set():
            for process in shared[-2:]:
                process.send_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(interval / 100)
    threads = [threading.Thread(target=signals) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(1500):
            short = Popen(["true"])  # ignores SIGUSR1, as we do
            shared.append(short)
            other = Popen(["true"], sigdefault=["USR1"])  # would die of it; nobody signals it
            wrong += [code for code in (short.wait(), other.wait()) if code]
            shared.clear()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
        signal.signal(signal.SIGUSR1, before)
    assert wrong == []


def test_a_handler_that_waits_and_signals_at_any_moment_disturbs_nothing() -> None:
    current: list[Popen] = []
    goes_on = True

    def handler(*_: object) -> None:
        for process in current:
            process.poll()
            process.send_signal(0)
        if goes_on:
            signal.setitimer(signal.ITIMER_REAL, 0.0005)  # no interval, which it may outlast

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with unchanged():
            signal.setitimer(signal.ITIMER_REAL, 0.0005)
            try:
                for n in range(1500):
                    process = Popen(["sh", "-c", f"exit {n % 7}"])
                    current[:] = [process]
                    process.send_signal(0)
                    assert process.wait(60 if n % 2 else None) == n % 7
                    current.clear()
            finally:  # one that is pending would be a change
                goes_on = False
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_many_threads_wait_for_one_child() -> None:
    for _ in range(100):
        process = Popen(["sh", "-c", "exit 5"])
        codes: list[int | None] = []

        def wait(process: Popen = process, codes: list[int | None] = codes) -> None:
            codes.append(process.wait(60))
            codes.append(process.poll())

        threads = [threading.Thread(target=wait) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert codes == [5] * 16


def test_an_interrupt_ends_a_wait_and_the_child_can_be_waited_for_again() -> None:
    process = Popen(["sleep", "1000"])
    with interrupted_in("waitid"), pytest.raises(KeyboardInterrupt):
        process.wait()
    assert process.poll() is None
    process.kill()
    assert process.wait() == -signal.SIGKILL
