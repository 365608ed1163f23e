"""A child that waits for orders: what they bring, what they leave, and what is refused."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parent_snapshot import children, descriptors, unchanged
from step_cases import NOBODY, refusing

from clonekit import (
    ChildFd,
    DeclarationError,
    Fd,
    Nascent,
    Slot,
    SpawnError,
    nascent,
    spawn,
)
from clonekit.linux.abi import lib
from clonekit.steps import (
    bind_socket,
    change_directory,
    close_descriptor,
    execute,
    install_seccomp_filter,
    listen_socket,
    new_namespaces,
    open_file,
    open_pipe,
    open_socket,
    place_descriptors,
    raise_ambient,
    set_capabilities,
    set_gid,
    set_groups,
    set_oom_score_adj,
    set_parent_death_signal,
    set_rlimit,
    set_signal_mask,
    set_uid,
    set_umask,
    system_call,
    write,
    write_file,
)
from clonekit.steps.step import Step

INET = socket.AF_INET, socket.SOCK_STREAM


# ---- orders ----


def test_one_step_has_one_result_and_several_have_a_list(child: Nascent) -> None:
    assert child.do(system_call("getppid")) == os.getpid()
    child.do(set_umask(0o27))
    pid, mask, file = child.do(system_call("getpid"), set_umask(0), open_file("/dev/null"))
    assert (pid, mask) == (child.pid, 0o27)
    assert descriptors(child.pid)[file.number] == "/dev/null"


def test_a_pipe_is_two_descriptors_and_a_write_its_length(child: Nascent) -> None:
    reader, writer = child.do(open_pipe("r", "w"))
    assert (type(reader), type(writer)) == (ChildFd, ChildFd)
    assert child.do(write(writer, b"abc")) == 3
    fetched = reader.fetch()
    assert os.read(fetched, 9) == b"abc"
    os.close(fetched)


def test_what_a_step_names_is_used_by_later_orders(child: Nascent, tmp_path: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT
    child.do(open_file(tmp_path / "log", flags, name="log"), system_call("getpid", result="me"))
    child.do(write(Slot("log"), b"one"))
    child.do(write(Slot("log"), b"two"), system_call("kill", Slot("me"), 0))
    assert (tmp_path / "log").read_bytes() == b"onetwo"
    assert child.names["me"] == child.pid
    child.do(close_descriptor(Slot("log")))
    with pytest.raises(DeclarationError, match="closed in the child"):
        child.do(write(Slot("log"), b"three"))
    with pytest.raises(DeclarationError, match="made by no step"):
        child.do(write(Slot("other"), b"three"))


def test_a_descriptor_of_ours_is_given_for_one_order(child: Nascent, file: int) -> None:
    before = descriptors(child.pid)
    assert child.do(system_call("lseek", Fd(file), 0, os.SEEK_END), write(file, b"ab")) == [10, 2]
    assert descriptors(child.pid) == before
    assert os.pread(file, 99, 0) == b"0123456789ab"


def test_it_is_closed_when_the_order_fails_too(child: Nascent, file: int) -> None:
    before = descriptors(child.pid)
    for _ in range(3):
        with pytest.raises(OSError, match="Invalid argument") as caught:
            child.do(set_umask(0o77), system_call("lseek", Fd(file), 0, 99), set_umask(0o11))
        assert (caught.value.errno, type(caught.value)) == (errno.EINVAL, SpawnError)
        assert caught.value.syscall == "lseek"  # type: ignore[attr-defined]
        assert descriptors(child.pid) == before
    assert child.do(set_umask(0)) == 0o77


def test_what_is_given_stays_until_it_is_closed(child: Nascent, file: int) -> None:
    given, at = child.give(file), child.give(file, at=77)
    os.lseek(file, 4, os.SEEK_SET)
    assert child.do(system_call("lseek", at, 0, os.SEEK_CUR)) == 4
    assert at.number == 77
    fetched = given.fetch()
    assert os.path.sameopenfile(fetched, file)
    assert not os.get_inheritable(fetched)
    os.close(fetched)
    given.close()
    again = child.give(file)
    given.close()  # its number is another's by now
    assert again.number in descriptors(child.pid)
    with pytest.raises(DeclarationError, match="closed in the child"):
        child.do(write(given, b"x"))


def test_a_full_table_takes_nothing_and_loses_nothing(child: Nascent, file: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    child.do(set_rlimit("nofile", 1, hard))
    child.do(open_file("/dev/zero"))
    for _ in range(3):
        with pytest.raises(SpawnError):
            child.give(2)
    resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (99, hard))
    given = child.give(file)
    assert descriptors(child.pid)[given.number].endswith("/file")


def test_the_kernel_writes_into_a_buffer(child: Nascent, file: int) -> None:
    name, room = bytearray(390), bytearray(b"....")
    assert child.syscall("uname", name) == 0
    assert name.startswith(os.uname().sysname.encode() + b"\0")
    assert child.syscall("pread64", Fd(file), room, 3, 5) == 3
    assert room == b"567."
    opened = child.syscall("openat", lib.AT_FDCWD, b"/dev/zero\0", os.O_CLOEXEC)
    assert child.syscall("read", opened, room, 4) == 4
    assert room == bytes(4)
    with pytest.raises(OSError, match="Bad file descriptor"):
        child.syscall("read", 99, room, 4)


def test_an_error_leaves_the_child_as_it_was(child: Nascent) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        child.do(open_socket(*INET, name="server"), change_directory("/"))
        with pytest.raises(SpawnError) as caught:
            child.do(bind_socket(Slot("server"), busy.getsockname()), change_directory("/proc"))
        assert (caught.value.errno, caught.value.phase) == (errno.EADDRINUSE, "opening")
    assert os.readlink(f"/proc/{child.pid}/cwd") == "/"
    child.do(bind_socket(Slot("server"), ("127.0.0.1", 0)), listen_socket(Slot("server")))
    with socket.socket(fileno=child.names["server"].fetch()) as server:
        process = child.start(["sh", "-c", "test -S /proc/self/fd/3"], fds={3: Slot("server")})
        assert process.wait().status == 0
        process.close()
        socket.create_connection(server.getsockname()).close()


def test_a_block_that_raises_leaves_no_child() -> None:
    with unchanged():
        with pytest.raises(KeyError), nascent() as child:
            raise KeyError(child.pid)
        assert not children()


# ---- what is refused ----


@pytest.mark.parametrize(
    "step",
    [
        lambda: set_uid(NOBODY),
        lambda: set_gid(NOBODY),
        lambda: set_groups([]),
        lambda: set_capabilities([]),
        lambda: raise_ambient([]),
        lambda: system_call("setfsuid", 0),
        lambda: system_call("setns", Fd(0), 0),
        lambda: install_seccomp_filter(refusing({})),
        lambda: system_call("seccomp", 0, 0, 0),
        lambda: system_call("prctl", lib.PR_SET_SECCOMP, 2, 0),
        lambda: system_call("prctl", 1 << 32 | lib.PR_SET_PDEATHSIG, 0),
        lambda: set_parent_death_signal("TERM"),
        lambda: set_oom_score_adj(500),
        lambda: write_file("/proc/self/oom_score_adj", b"500"),
        set_signal_mask,
        lambda: place_descriptors({}),
        lambda: new_namespaces(["net"]),
        lambda: system_call("exit_group", 0),
        lambda: system_call("munmap", 0, 4096),
        *([lambda: system_call("unshare", lib.CLONE_NEWUSER)] * (os.geteuid() == 0)),
    ],
)
def test_an_order_is_refused_before_anything_is_done(step: Callable[[], Step]) -> None:
    with unchanged(), nascent(umask=0o77) as child:
        with pytest.raises(DeclarationError):
            child.do(set_umask(0), step())
        assert child.do(set_umask(0)) == 0o77


def test_why_an_exec_is_refused_is_said(child: Nascent) -> None:
    with pytest.raises(DeclarationError, match=r"start\(\) begins the program"):
        child.do(execute(["true"]))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"executable": "/bin/true"}, r"executable belongs .* start\(\)"),
        ({"env": {}}, r"env belongs .* start\(\)"),
        ({"check": True}, r"check belongs .* start\(\)"),
        ({"suspended": True}, r"suspended belongs .* start\(\)"),
        ({"fds": {}}, r"start\(\)"),
        ({"uid": NOBODY}, r"start\(\)"),
        ({"capabilities": []}, r"start\(\)"),
        ({"sigmask": []}, r"start\(\)"),
        ({"pdeathsig": "TERM"}, r"start\(\)"),
        ({"seccomp": refusing({})}, r"start\(\)"),
        ({"oom_score_adj": 500}, "suspended"),
        ({"hostname": "aquarium"}, 'add "uts"'),
        ({"umsk": 0}, "did you mean umask"),
        ({"steps": [set_umask]}, "give a list of steps"),
    ],
)
def test_a_declaration_is_refused_before_there_is_a_child(
    fields: dict[str, Any], told: str
) -> None:
    with unchanged(), pytest.raises(DeclarationError, match=told):
        nascent(**fields)


def test_an_order_is_of_steps(child: Nascent) -> None:
    for steps in ([], ["umask"], [set_umask]):
        with pytest.raises(DeclarationError, match="step"):
            child.do(*steps)
    with pytest.raises(DeclarationError, match="not open here"):
        child.give(4999)
    with pytest.raises(DeclarationError, match=r"execute\(argv\)"):
        child.start([set_umask(0)])
    with pytest.raises(DeclarationError, match="order of their own"):
        child.start([execute(["true"])], umask=0)
    assert child.syscall("getpid") == child.pid


@pytest.mark.parametrize("deadline", [0, -1, "5", True, float("nan")])
def test_a_deadline_is_a_number_of_seconds_to_come(child: Nascent, deadline: Any) -> None:
    uses: list[Callable[[], object]] = [
        lambda: nascent(deadline=deadline),
        lambda: spawn(["true"], deadline=deadline),
        lambda: child.do(set_umask(0), deadline=deadline),
        lambda: child.start(["true"], deadline=deadline),
    ]
    for use in uses:
        with pytest.raises(DeclarationError, match="seconds above 0"):
            use()
    assert child.syscall("getpid") == child.pid


def test_a_descriptor_of_the_child_is_no_descriptor_of_ours(child: Nascent) -> None:
    null = child.do(open_file("/dev/null"))
    for deadline in (None, 10):
        with pytest.raises(DeclarationError, match=r"fetch\(\)"):
            spawn(["true"], fds={0: null}, deadline=deadline)


def test_a_descriptor_of_one_child_is_refused_in_another(child: Nascent) -> None:
    null = child.do(open_file("/dev/null", os.O_WRONLY))
    with nascent() as other:
        other.do(open_pipe("r", "w"), open_pipe("r2", "w2"))  # so that the number is open there
        for use in (
            lambda: other.do(write(null, b"x")),
            lambda: other.do(close_descriptor(null)),
            lambda: other.give(null),
            lambda: other.start(["true"], fds={0: null}),
            lambda: other.start([write(null, b"x"), execute(["true"])]),
        ):
            with pytest.raises(DeclarationError, match=r"fetch\(\)"):
                use()
    assert child.do(write(null, b"x")) == 1
