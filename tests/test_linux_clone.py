"""clone3 as a fork: each test runs in an interpreter of its own, which has one thread."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from clonekit.linux import CloneFlag, clone3
from clonekit.linux.abi import lib

START = """
import errno, os, signal, sys
from clonekit.linux import *

def end(pid, pidfd):
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(pidfd)
    return code

def child(flags, body):
    pid, pidfd = clone3(flags)
    if pid == 0:
        code = 99
        try:
            code = body()
        finally:
            os._exit(code)
    return pid, pidfd
"""


def run(source: str) -> list[str]:
    """What a fresh interpreter prints, line by line."""
    done = subprocess.run(
        [sys.executable, "-c", START + textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def user_namespaces_are_refused() -> str:
    """Why, or an empty string: found by making one."""
    source = "print(end(*child(CloneFlag.NEWUSER, lambda: 0)))"
    done = subprocess.run(
        [sys.executable, "-c", START + source], capture_output=True, text=True, check=False
    )
    return "" if done.stdout == "0\n" else f"a user namespace cannot be made: {done.stderr[-200:]}"


REASON = user_namespaces_are_refused()
needs_user_namespace = pytest.mark.skipif(bool(REASON), reason=REASON)


def test_clone3_returns_in_parent_and_child() -> None:
    lines = run(
        """
        parent = os.getpid()
        pid, pidfd = clone3()
        if pid == 0:
            os._exit(17 if (pidfd, os.getppid()) == (-1, parent) else 1)
        print(pid > 0, pidfd_info(pidfd)["pid"] == pid, os.get_inheritable(pidfd))
        print(end(pid, pidfd))
        """
    )
    assert lines == ["True True False", "17"]


def test_the_copy_is_its_libcs_own_thread() -> None:
    """A mutex has its owner, as libc knows its own thread id, in the third word."""
    lines = run(
        """
        import ctypes, threading
        libc = ctypes.CDLL(None)
        def owner():
            mutex = (ctypes.c_int * 16)()
            libc.pthread_mutex_lock(mutex)
            return mutex[2]
        def body():
            thread = threading.Thread(target=lambda: None)
            thread.start()
            thread.join()
            return 0 if owner() == threading.get_native_id() == os.getpid() else 1
        print(owner() == os.getpid(), end(*child(0, body)))
        """
    )
    assert lines == ["True 0"]


def test_a_robust_mutex_held_by_the_copy_is_given_up_when_it_dies() -> None:
    lines = run(
        """
        import ctypes, mmap
        libc = ctypes.CDLL(None)
        memory = mmap.mmap(-1, 4096)
        mutex = ctypes.c_char.from_buffer(memory)
        attribute = ctypes.create_string_buffer(64)
        libc.pthread_mutexattr_init(attribute)
        assert libc.pthread_mutexattr_setpshared(attribute, 1) == 0
        assert libc.pthread_mutexattr_setrobust(attribute, 1) == 0
        assert libc.pthread_mutex_init(ctypes.byref(mutex), attribute) == 0
        assert end(*child(0, lambda: libc.pthread_mutex_lock(ctypes.byref(mutex)))) == 0
        print(libc.pthread_mutex_trylock(ctypes.byref(mutex)) == errno.EOWNERDEAD)
        """
    )
    assert lines == ["True"]


def test_at_fork_hooks_run_on_both_sides() -> None:
    lines = run(
        """
        seen = []
        os.register_at_fork(before=lambda: seen.append("before"),
                            after_in_parent=lambda: seen.append("parent"),
                            after_in_child=lambda: seen.append("child"))
        print(end(*child(0, lambda: 0 if seen == ["before", "child"] else 1)), *seen)
        """
    )
    assert lines == ["0 before parent"]


def test_hooks_run_when_the_clone_is_refused() -> None:
    lines = run(
        """
        seen = []
        os.register_at_fork(before=lambda: seen.append("before"),
                            after_in_parent=lambda: seen.append("parent"))
        try:
            clone3(CloneFlag.NEWNS | CloneFlag.FS)
        except OSError as error:
            print(errno.errorcode[error.errno], str(error).split("] ")[1], *seen)
        """
    )
    assert lines == ["EINVAL clone3: Invalid argument before parent"]


def test_a_caller_with_another_thread_is_refused() -> None:
    lines = run(
        """
        import threading
        go = threading.Event()
        thread = threading.Thread(target=go.wait)
        thread.start()
        try:
            clone3()
        except OSError as error:
            print(error.errno == errno.EDEADLK, "other threads" in str(error))
        go.set()
        thread.join()
        print(end(*child(0, lambda: 3)))
        """
    )
    assert lines == ["True True", "3"]


def test_a_thread_that_was_joined_is_no_reason_to_refuse() -> None:
    lines = run(
        """
        import threading
        for _ in range(300):
            thread = threading.Thread(target=lambda: None)
            thread.start()
            thread.join()
            assert end(*child(0, lambda: 0)) == 0
        print("all")
        """
    )
    assert lines == ["all"]


@needs_user_namespace
def test_the_copy_begins_in_the_namespaces_that_were_asked_for() -> None:
    lines = run(
        """
        names = ["user", "pid", "mnt", "uts", "ipc", "net", "cgroup"]
        def see():
            return [os.readlink(f"/proc/self/ns/{name}") for name in names]
        before = see()
        out, into = os.pipe()
        def body():
            os.write(into, " ".join([str(os.getpid()), *see()]).encode())
            return 0
        F = CloneFlag
        flags = F.NEWUSER | F.NEWPID | F.NEWNS | F.NEWUTS | F.NEWIPC | F.NEWNET | F.NEWCGROUP
        assert end(*child(flags, body)) == 0
        pid, *inside = os.read(out, 4096).decode().split()
        print(pid, [name for name, a, b in zip(names, before, inside) if a == b], see() == before)
        """
    )
    assert lines == ["1 [] True"]


@needs_user_namespace
def test_a_pidfd_never_reaches_the_next_process_with_that_number() -> None:
    lines = run(
        """
        def body():
            with open("/proc/sys/kernel/ns_last_pid", "r+") as last:
                first, old = clone3()
                if first == 0:
                    os._exit(0)
                os.waitpid(first, 0)
                last.write(str(first - 1))
                last.flush()
                out, into = os.pipe()
                second, new = clone3()
                if second == 0:
                    os.close(into)
                    os.read(out, 1)
                    os._exit(5)
                if first != second:
                    return 1
                try:
                    pidfd_send_signal(old, signal.SIGKILL)
                    return 2
                except ProcessLookupError:
                    pass
                pidfd_send_signal(new, 0)
                os.close(into)
                return end(second, new)
        print(end(*child(CloneFlag.NEWUSER | CloneFlag.NEWPID, body)))
        """
    )
    assert lines == ["5"]


@pytest.mark.parametrize(
    "flag", ["VM", "VFORK", "SIGHAND", "THREAD", "SETTLS", "PARENT_SETTID", "CHILD_SETTID"]
)
def test_a_flag_that_a_copy_cannot_have_is_refused_by_name(flag: str) -> None:
    with pytest.raises(ValueError, match=f"CLONE_{flag} is refused"):
        clone3(CloneFlag[flag])


def test_into_cgroup_without_a_group_is_refused() -> None:
    with pytest.raises(ValueError, match="give cgroup="):
        clone3(lib.CLONE_INTO_CGROUP)


def test_a_cgroup_that_is_none_is_the_kernels_error() -> None:
    lines = run(
        """
        with open("/dev/null") as file:
            try:
                clone3(cgroup=file.fileno())
            except OSError as error:
                print(errno.errorcode[error.errno])
        """
    )
    assert lines == ["EBADF"]
