"""The handle: what it waits for, what it signals, and that nothing is left."""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

import clonekit
from clonekit import Process, Program, spawn
from clonekit.steps import execute

FEW_SWITCHES = 5


def children() -> bool:
    """Whether we have a child, ended or not."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def sleeper(**declaration: object) -> Process:
    return spawn(["sleep", "1000"], **declaration)


@pytest.mark.parametrize("status", [0, 1, 77, 255])
def test_a_status_is_what_the_program_gave(status: int) -> None:
    with spawn(["sh", "-c", f"exit {status}"]) as process:
        ended = process.wait()
    assert (ended.status, ended.signal, ended.returncode) == (status, None, status)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1, 40])
def test_a_signal_is_told_apart_from_a_status(number: int) -> None:
    with sleeper() as process:
        process.send_signal(number)
        ended = process.wait()
    assert (ended.status, ended.signal, ended.returncode) == (None, number, -number)


def test_usage_is_that_of_the_program() -> None:
    loop = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
    with spawn(["sh", "-c", loop]) as process:
        usage = process.wait().usage
    assert usage is not None
    assert usage.ru_utime + usage.ru_stime > 0
    assert 0 < usage.ru_maxrss < resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 100


def test_waiting_again_tells_the_same() -> None:
    process = spawn(["false"])
    assert process.exit is None
    ended = process.wait()
    assert process.wait() is ended
    assert process.poll() is ended
    assert process.exit is ended
    assert process.wait(timeout=0) is ended


def test_a_block_leaves_neither_stray_nor_zombie() -> None:
    with sleeper() as process:
        assert children()
    assert not children()
    assert process.pidfd == -1
    assert process.exit is not None
    assert process.exit.signal == signal.SIGKILL


def test_a_block_that_raises_leaves_nothing_too() -> None:
    with pytest.raises(KeyError), sleeper():
        raise KeyError
    assert not children()


def test_a_block_whose_child_was_reaped_elsewhere_ends_quietly() -> None:
    with spawn(["true"]) as process:
        os.waitpid(process.pid, 0)
    assert not children()


def test_wait_until_a_timeout_sleeps_in_one_call() -> None:
    with sleeper() as process:
        process.poll()
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        with pytest.raises(TimeoutError):
            process.wait(timeout=0.5)
        assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before <= FEW_SWITCHES
        assert process.exit is None


def test_wait_with_a_timeout_ends_when_the_program_does() -> None:
    with spawn(["sh", "-c", "read line"], fds={0: (pipe := os.pipe2(os.O_CLOEXEC))[0]}) as process:
        os.close(pipe[0])
        threading.Thread(target=os.close, args=(pipe[1],)).start()
        assert process.wait(timeout=600).status == 1


@pytest.mark.parametrize("timeout", [0, -1, 0.0001])
def test_a_short_timeout_is_one(timeout: float) -> None:
    with sleeper() as process, pytest.raises(TimeoutError):
        process.wait(timeout=timeout)


def test_handlers_run_while_we_wait() -> None:
    seen = []
    earlier = signal.signal(signal.SIGUSR1, lambda number, _: (seen.append(number), process.kill()))
    try:
        reader, writer = os.pipe()  # the program may tell us only when the handler has a handle
        told = f"read line; kill -USR1 {os.getpid()}; exec sleep 1000"
        with spawn(["sh", "-c", told], fds={0: reader, 2: 2}) as process:
            os.close(reader)
            os.write(writer, b"\n")
            os.close(writer)
            assert process.wait().signal == signal.SIGKILL
    finally:
        signal.signal(signal.SIGUSR1, earlier)
    assert seen == [signal.SIGUSR1]


def test_many_threads_may_wait_for_one_process() -> None:
    process = sleeper()
    ends = []
    threads = [threading.Thread(target=lambda: ends.append(process.wait())) for _ in range(8)]
    for thread in threads:
        thread.start()
    process.kill()
    for thread in threads:
        thread.join()
    process.close()
    assert [end.signal for end in ends] == [signal.SIGKILL] * 8


def test_one_that_has_reaped_and_has_yet_to_say_so_is_waited_for() -> None:
    """As on a machine that stalls a thread between its waitid and the next line."""
    process = spawn(["false"])
    stalls, goes_on = threading.Event(), threading.Event()
    ends = []

    def stall(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_name == "_reap" and event == "line" and "result" in frame.f_locals:
            stalls.set()
            goes_on.wait()
        return stall

    def wait() -> None:
        sys.settrace(stall)
        ends.append(process.wait())

    threads = [threading.Thread(target=wait), threading.Timer(0.5, goes_on.set)]
    threads[0].start()
    stalls.wait()
    threads[1].start()
    ends.append(process.wait())
    for thread in threads:
        thread.join()
    process.close()
    assert ends[0] is ends[1]
    assert ends[0].usage is not None


def test_the_pidfd_is_readable_when_it_has_ended() -> None:
    with spawn(["true"]) as process:
        assert select.select([process], [], []) == ([process], [], [])
        assert process.wait().status == 0


def test_a_wait_sleeps_though_a_loop_has_made_the_pidfd_non_blocking() -> None:
    """As libuv does with all that it watches."""
    with sleeper() as process:
        os.set_blocking(process.pidfd, False)
        ender = threading.Timer(0.2, process.kill)
        ender.start()
        assert process.wait().signal == signal.SIGKILL
        ender.join()


def test_a_signal_after_its_end_reaches_nobody() -> None:
    process = spawn(["true"])
    process.wait()
    with pytest.raises(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    process.close()
    with pytest.raises(ValueError, match="closed"):
        process.kill()


def test_a_handle_is_not_made_by_hand() -> None:
    with pytest.raises(TypeError, match=r"spawn\(\)"):
        Process(None, 1, 1)


def test_a_process_that_runs_already_is_held_by_its_pid_or_a_pidfd() -> None:
    pid = os.posix_spawnp("sleep", ["sleep", "1000"], os.environ)
    with Process.from_pid(pid) as process:
        assert process.pid == pid
    pid = os.posix_spawnp("sleep", ["sleep", "1000"], os.environ)
    with Process.from_pidfd(os.pidfd_open(pid)) as process:
        assert process.pid == pid
        process.terminate()
        assert process.wait().signal == signal.SIGTERM
    assert not children()


def test_what_is_no_pidfd_is_refused_and_left_open() -> None:
    with open("/dev/null", "rb") as file:
        with pytest.raises(ValueError, match="no pidfd"):
            Process.from_pidfd(file.fileno())
        os.fstat(file.fileno())


def test_a_process_that_is_not_ours_to_wait_for_is_told_apart() -> None:
    shell = "sleep 1000 & echo $!; wait $!; read line"
    with subprocess.Popen(
        ["sh", "-c", shell], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        process = Process.from_pid(int(parent.stdout.readline()))
        assert process.poll() is None
        process.kill()
        if keeps_status():
            assert process.wait().signal == signal.SIGKILL
        else:
            with pytest.raises(ChildProcessError):
                process.wait()
        process.close()


def keeps_status() -> bool:
    """Whether the kernel tells how a process ended that somebody else reaped."""
    pid = os.posix_spawnp("true", ["true"], os.environ)
    pidfd = os.pidfd_open(pid)
    os.waitpid(pid, 0)
    info = bytearray(64)
    info[0:8] = (1 << 3).to_bytes(8, "little")  # PIDFD_INFO_EXIT
    try:
        import fcntl

        fcntl.ioctl(pidfd, 0xC040FF0B, info)
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return bool(info[0] & 1 << 3)


def test_a_child_that_was_reaped_elsewhere_has_its_status_or_none() -> None:
    process = spawn(["sh", "-c", "exit 7"])
    os.waitpid(process.pid, 0)
    if keeps_status():
        ended = process.wait()
        assert (ended.status, ended.usage) == (7, None)
    else:
        with pytest.raises(ChildProcessError, match="reaped elsewhere"):
            process.wait()
    process.close()


@pytest.mark.parametrize("program", [["sh", "-c", "exit 7"], ["sh", "-c", "kill -TERM $$"]])
def test_where_sigchld_is_ignored_wait_has_the_status_or_says_so(program: list[str]) -> None:
    kept = keeps_status()
    earlier = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with spawn(program) as process:
            if kept:
                expected = 7 if "7" in program[-1] else -signal.SIGTERM
                assert process.wait().returncode == expected
            else:
                with pytest.raises(ChildProcessError, match="SIGCHLD ignored"):
                    process.wait()
    finally:
        signal.signal(signal.SIGCHLD, earlier)
    assert not children()


def test_where_sigchld_is_ignored_a_failure_is_still_told() -> None:
    earlier = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(FileNotFoundError):
            spawn(["/nonexistent"])
    finally:
        signal.signal(signal.SIGCHLD, earlier)
    assert not children()


def test_the_handle_of_a_child_that_another_of_ours_waits_for_ends_quietly() -> None:
    with sleeper() as process:
        with Process.from_pid(process.pid) as other:
            other.kill()
            other.wait()
        with pytest.raises(ProcessLookupError):
            process.kill()


def test_a_dropped_handle_closes_its_pidfd() -> None:
    before = len(os.listdir("/proc/self/fd"))
    pid = spawn(["true"]).pid
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    os.waitpid(pid, 0)


def test_a_pidfd_is_close_on_exec() -> None:
    with sleeper() as process:
        assert not os.get_inheritable(process.pidfd)


def test_what_it_says_of_itself() -> None:
    with sleeper() as process:
        assert repr(process) == f"<Process {process.pid} 'sleep': running>"
        process.kill()
        process.wait()
        assert repr(process) == f"<Process {process.pid} 'sleep': ended by signal SIGKILL>"


def test_a_descriptor_of_the_program_is_fetched() -> None:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with sleeper(fds={9: writer}) as process:
        os.close(writer)
        fetched = process.getfd(9)
        process.kill()
        process.wait()
        os.write(fetched, b"x")
        os.close(fetched)
        assert os.read(reader, 2) == b"x"
        assert os.read(reader, 1) == b""
    os.close(reader)


def test_closing_twice_closes_nothing_of_others() -> None:
    process = spawn(["true"])
    process.wait()
    process.close()
    other = os.open("/dev/null", os.O_RDONLY)
    process.close()
    os.fstat(other)
    os.close(other)


INIT = """
import os, sys, clonekit
from clonekit.linux.abi import call
assert os.getpid() == 1, os.getpid()
for fields in eval(sys.argv[1]):
    for _ in range(20):
        assert clonekit.spawn(["true"], **fields).wait().status == 0
        try:
            clonekit.spawn(["/nonexistent"], **fields)
        except FileNotFoundError:
            pass
        else:
            sys.exit("nothing failed")
        assert call("prctl", 3) == 1, fields
with clonekit.spawn(["sleep", "1000"]) as process:
    process.kill()
    assert process.wait().signal == 9
print("done")
"""


@pytest.mark.parametrize("mounted", [True, False])
def test_a_pid_namespaces_first_process_may_spawn(
    need: Callable[[str], None], *, mounted: bool
) -> None:
    need("privilege")
    need("mount")
    fields: list[dict[str, object]] = [{}, {"setsid": True}, {"capabilities": []}]
    if os.geteuid() == 0:
        fields += [{"uid": 65534}, {"namespaces": ["net"]}]
    command = ["unshare", "--fork", "--pid"]
    command += ["--mount-proc"] if mounted else []
    command += [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    done = subprocess.run(
        [*command, sys.executable, "-c", INIT, repr(fields)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_the_program_is_spawned_where_the_handle_of_the_last_has_gone() -> None:
    program = Program([execute(["true"])])
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(50):
        assert program.spawn().wait().status == 0
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert not children()


@pytest.mark.parametrize(
    "make",
    [
        lambda: spawn(["sleep", "1000"]),
        lambda: spawn(["sleep", "1000"], deadline=60),
        lambda: spawn(["sleep", "1000"], suspended=True),
        lambda: clonekit.Popen(["sleep", "1000"]),
    ],
    ids=["spawn", "deadline", "suspended", "Popen"],
)
@pytest.mark.parametrize("leave", [False, True])
def test_what_a_fork_of_ours_forgets_or_leaves_closes_and_ends_nothing(
    *, make: Callable[[], Any], leave: bool
) -> None:
    handle = make()
    number = handle.pidfd
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(60)
            os.closerange(3, 1000)  # as a daemon does
            os.dup2(os.open("/dev/null", os.O_RDONLY), number)
            if leave:
                handle.__exit__(None, None, None)
            del handle
            gc.collect()
            os.fstat(number)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert select.select([number], [], [], 0) == ([], [], [])  # it runs
    handle.kill()
    handle.__exit__(None, None, None)
