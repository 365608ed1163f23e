from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clonekit import spawn
from clonekit.linux import (
    PidfdFlag,
    exit_code,
    pidfd_getfd,
    pidfd_info,
    pidfd_open,
    pidfd_send_signal,
)


@contextmanager
def held(*argv: str, **keywords: object) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A child and its pidfd."""
    with subprocess.Popen(argv, **keywords) as process:  # type: ignore[call-overload]
        pidfd = pidfd_open(process.pid)
        try:
            yield process, pidfd
        finally:
            process.kill()
            os.close(pidfd)


def has_info() -> str:
    """Why PIDFD_GET_INFO is missing, or an empty string."""
    pidfd = pidfd_open(os.getpid())
    try:
        pidfd_info(pidfd)
    except OSError as error:
        return str(error)
    finally:
        os.close(pidfd)
    return ""


def keeps_exit_code() -> str:
    """Why the status of a reaped process is lost, or an empty string."""
    with held("true") as (process, pidfd):
        process.wait()
        return "" if exit_code(pidfd) == 0 else "PIDFD_INFO_EXIT needs Linux 6.15"


NO_INFO = has_info()
needs_info = pytest.mark.skipif(bool(NO_INFO), reason=NO_INFO)
NOT_KEPT = keeps_exit_code()
needs_exit = pytest.mark.skipif(bool(NOT_KEPT), reason=NOT_KEPT)


def test_pidfd_open_gives_a_descriptor_closed_at_exec() -> None:
    pidfd = pidfd_open(os.getpid())
    try:
        assert not os.get_inheritable(pidfd)
    finally:
        os.close(pidfd)


def test_pidfd_open_of_no_process_is_a_lookup_error() -> None:
    with pytest.raises(ProcessLookupError, match="pidfd_open: No such process"):
        pidfd_open(0x3FFFFFFF)


def test_a_signal_arrives() -> None:
    with held("sleep", "60") as (process, pidfd):
        pidfd_send_signal(pidfd, 0)
        pidfd_send_signal(pidfd, signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM
        with pytest.raises(ProcessLookupError, match="pidfd_send_signal"):
            pidfd_send_signal(pidfd, signal.SIGTERM)


def test_a_thread_is_held_only_when_it_is_asked_for() -> None:
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        with pytest.raises(OSError, match="pidfd_open") as caught:
            pidfd_open(thread.native_id)
        assert caught.value.errno in (errno.EINVAL, errno.ENOENT)
        try:
            pidfd = pidfd_open(thread.native_id, PidfdFlag.THREAD)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            pytest.skip("PIDFD_THREAD needs Linux 6.9")
        pidfd_send_signal(pidfd, 0)
        os.close(pidfd)
    finally:
        go.set()
        thread.join()


def test_getfd_shares_the_open_file() -> None:
    out, into = os.pipe()
    with held("cat", stdin=out, stdout=subprocess.PIPE) as (process, pidfd):
        os.close(out)
        try:
            copy = pidfd_getfd(pidfd, 0)
        except PermissionError as error:
            os.close(into)
            pytest.skip(f"a child may not be traced here: {error}")
        assert not os.get_inheritable(copy)
        assert os.fstat(copy).st_ino == os.fstat(into).st_ino
        os.close(copy)
        os.write(into, b"through")
        os.close(into)
        assert process.stdout is not None
        assert process.stdout.read() == b"through"


def test_getfd_of_a_closed_descriptor_is_ebadf() -> None:
    with held("cat", stdin=subprocess.PIPE) as (_, pidfd):
        with pytest.raises(OSError, match="pidfd_getfd") as caught:
            pidfd_getfd(pidfd, 999)
        assert caught.value.errno in (errno.EBADF, errno.EPERM)


@needs_info
def test_info_tells_who_a_process_is() -> None:
    with held("sleep", "60") as (process, pidfd):
        info = pidfd_info(pidfd)
    assert (info["pid"], info["tgid"], info["ppid"]) == (process.pid, process.pid, os.getpid())
    assert (info["ruid"], info["euid"], info["suid"]) == os.getresuid()
    assert (info["rgid"], info["egid"], info["sgid"]) == os.getresgid()
    assert (info["fsuid"], info["fsgid"]) == (os.geteuid(), os.getegid())
    assert "exit_code" not in info


@needs_info
def test_info_of_another_descriptor_says_what_it_takes() -> None:
    with Path("/dev/null").open() as file, pytest.raises(OSError, match="takes a pidfd") as caught:
        pidfd_info(file.fileno())
    assert caught.value.errno == errno.ENOTTY


def test_a_process_that_is_not_reaped_has_no_exit_code() -> None:
    with held("true") as (process, pidfd):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
        assert exit_code(pidfd) is None
        process.wait()


@needs_exit
@pytest.mark.parametrize(("script", "expected"), [("exit 7", 7), ("kill -KILL $$", -9)])
def test_the_kernel_keeps_the_status_of_a_reaped_process(script: str, expected: int) -> None:
    with held("sh", "-c", script) as (process, pidfd):
        process.wait()
        code = exit_code(pidfd)
        assert code is not None
        assert os.waitstatus_to_exitcode(code) == expected
        assert set(pidfd_info(pidfd)) <= {"exit_code", "cgroupid"}


@needs_exit
def test_waiting_for_the_exit_code_ends_when_somebody_reaps() -> None:
    with held("sh", "-c", "read line; exit 4", stdin=subprocess.PIPE) as (process, pidfd):
        codes: list[int | None] = []
        watcher = threading.Thread(target=lambda: codes.append(exit_code(pidfd, wait=True)))
        watcher.start()
        process.communicate(b"go\n")
        watcher.join()
    assert codes == [4 << 8]


@needs_exit
def test_the_status_is_there_when_the_kernel_itself_reaps() -> None:
    """With SIGCHLD ignored there is a moment between waitid's ECHILD and the status."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        for _ in range(300):
            with spawn(["true"]) as child:
                with pytest.raises(ChildProcessError):
                    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
                assert exit_code(child.pidfd, wait=True) == 0
    finally:
        signal.signal(signal.SIGCHLD, before)
