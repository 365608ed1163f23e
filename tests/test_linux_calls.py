"""The thin wrappers that have no handle: descriptors, prctl, seccomp, namespaces, names."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import sys
import textwrap
import typing
from enum import IntFlag

import pytest

import clonekit.linux
from clonekit.linux import (
    CloneFlag,
    CloseRangeFlag,
    Prctl,
    SeccompAction,
    SeccompFilterFlag,
    close_range,
    flags,
    seccomp_action_available,
    seccomp_notif_sizes,
    seccomp_set_filter,
    setns,
    unshare,
)
from clonekit.linux.abi import NUMBERS, lib
from clonekit.linux.prctl import prctl

ALLOW_ALL = struct.pack("=HBBI", 0x06, 0, 0, SeccompAction.ALLOW)
START = """
import errno, os, struct
from clonekit.linux import *
from clonekit.linux.prctl import prctl
"""


def run(source: str) -> list[str]:
    """What a fresh interpreter prints: calls that change a process are made there."""
    done = subprocess.run(
        [sys.executable, "-c", START + textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_close_range_closes_both_ends_and_nothing_else() -> None:
    fds = [fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, 700) for _ in range(4)]
    assert fds == list(range(fds[0], fds[0] + 4)), "the numbers are free here"
    close_range(fds[1], fds[2])
    try:
        for fd in fds[1:3]:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)
    finally:
        os.close(fds[0])
        os.close(fds[3])


def test_close_range_can_wait_for_exec() -> None:
    fd = os.dup(2)
    os.set_inheritable(fd, True)  # noqa: FBT003 - a positional parameter
    close_range(fd, fd, CloseRangeFlag.CLOEXEC)
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_close_range_of_an_empty_range_is_einval_by_its_name() -> None:
    with pytest.raises(OSError, match="close_range: Invalid argument") as caught:
        close_range(10, 9)
    assert caught.value.errno == errno.EINVAL


def test_prctl_passes_numbers_and_memory() -> None:
    lines = run(
        """
        assert prctl(Prctl.SET_NAME, b"renamed\\0") == 0
        name = bytearray(16)
        prctl(Prctl.GET_NAME, name)
        print(name.rstrip(b"\\0").decode(), open("/proc/self/comm").read().strip())
        print(prctl(Prctl.GET_NO_NEW_PRIVS), end=" ")
        prctl(Prctl.SET_NO_NEW_PRIVS, 1)
        print(prctl(Prctl.GET_NO_NEW_PRIVS))
        """
    )
    assert lines[0] == "renamed renamed"
    assert lines[1].endswith(" 1")


def test_prctl_of_an_unknown_option_is_einval_by_its_name() -> None:
    with pytest.raises(OSError, match="prctl: Invalid argument"):
        prctl(0x7FFFFFFF)


def test_a_filter_holds_for_the_calling_thread() -> None:
    """BPF: the number of uname is answered with EDOM, all else is allowed."""
    lines = run(
        f"""
        def instruction(code, jt, jf, k):
            return struct.pack("=HBBI", code, jt, jf, k)
        program = (instruction(0x20, 0, 0, 0) + instruction(0x15, 0, 1, {NUMBERS["uname"]})
                   + instruction(0x06, 0, 0, SeccompAction.ERRNO | errno.EDOM)
                   + instruction(0x06, 0, 0, SeccompAction.ALLOW))
        os.uname()
        prctl(Prctl.SET_NO_NEW_PRIVS, 1)
        print(seccomp_set_filter(program))
        try:
            os.uname()
        except OSError as error:
            print(errno.errorcode[error.errno])
        """
    )
    assert lines == ["0", "EDOM"]


def test_a_listener_is_a_descriptor_closed_at_exec() -> None:
    lines = run(
        f"""
        prctl(Prctl.SET_NO_NEW_PRIVS, 1)
        fd = seccomp_set_filter({ALLOW_ALL!r}, SeccompFilterFlag.NEW_LISTENER)
        print(os.readlink(f"/proc/self/fd/{{fd}}"), os.get_inheritable(fd))
        """
    )
    assert lines == ["anon_inode:seccomp notify False"]


def test_a_filter_that_does_not_check_is_einval() -> None:
    with pytest.raises(OSError, match="seccomp") as caught:
        seccomp_set_filter(b"\xff" * 8)
    assert caught.value.errno in (errno.EINVAL, errno.EACCES)
    with pytest.raises(ValueError, match="9 bytes are no filter"):
        seccomp_set_filter(b"x" * 9)


def test_actions_are_available_or_not() -> None:
    assert seccomp_action_available(SeccompAction.KILL_PROCESS)
    assert not seccomp_action_available(0x12340000)


def test_notifications_have_at_least_the_sizes_of_their_first_kernel() -> None:
    notif, answer, data = seccomp_notif_sizes()
    assert (notif, answer, data) >= (80, 24, 64)


def test_a_thread_joins_a_namespace_by_its_file() -> None:
    source = """
        F = CloneFlag
        unshare(F.NEWUSER)
        before = os.readlink("/proc/self/ns/uts")
        fd = os.open("/proc/self/ns/uts", os.O_RDONLY)
        unshare(F.NEWUTS)
        changed = os.readlink("/proc/self/ns/uts") != before
        try:
            setns(fd, F.NEWNET)
        except OSError as error:
            print(changed, str(error).split("] ")[1])
        own = os.open("/proc/self/ns/uts", os.O_RDONLY)
        setns(own, F.NEWUTS)
        print(os.readlink("/proc/self/ns/uts") != before)
        """
    try:
        lines = run(source)
    except AssertionError as error:
        if "unshare: Operation not permitted" in str(error):
            pytest.skip("unshare(CLONE_NEWUSER) is not permitted here")
        raise
    assert lines == ["True setns: Invalid argument", "True"]


def test_setns_and_unshare_name_themselves_in_errors() -> None:
    with pytest.raises(OSError, match="setns: Bad file descriptor"):
        setns(-1)
    with pytest.raises(OSError, match="unshare: Invalid argument"):
        unshare(1)


def test_importing_the_library_loads_no_wrapper_but_that_of_pidfds() -> None:
    source = "import clonekit, sys; print(*(n for n in sys.modules if '.linux.' in n))"
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) <= {
        "clonekit.linux.abi",
        "clonekit.linux.block",
        "clonekit.linux.memory",
        "clonekit.linux.pidfd",  # a status may be asked for when Python ends, and imports no more
        "clonekit.linux.privilege",
        "clonekit.linux.shared_memory",
    }


def test_every_public_name_can_be_had_from_the_package() -> None:
    for name in clonekit.linux.__all__:
        assert getattr(clonekit.linux, name).__module__.startswith("clonekit.linux.")
    assert set(clonekit.linux.__all__) <= set(dir(clonekit.linux))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        typing.cast("typing.Any", clonekit.linux).nonsense  # noqa: B018 - asking is the test


def test_every_public_function_says_its_man_page() -> None:
    for name in clonekit.linux.__all__:
        assert "See: " in (getattr(clonekit.linux, name).__doc__ or "") or name == "Restrictions"


def test_every_flag_has_the_value_of_its_header() -> None:
    assert CloneFlag.NEWNS == lib.CLONE_NEWNS
    assert Prctl.SET_NO_NEW_PRIVS == lib.PR_SET_NO_NEW_PRIVS
    assert SeccompFilterFlag.NEW_LISTENER == lib.SECCOMP_FILTER_FLAG_NEW_LISTENER


def test_no_two_flags_of_a_set_are_one() -> None:
    for kind in vars(flags).values():
        if isinstance(kind, type) and issubclass(kind, IntFlag) and kind is not IntFlag:
            bits = [member.value for member in kind]
            assert len(bits) == len(kind.__members__), kind
            assert all(bit & (bit - 1) == 0 for bit in bits), kind
