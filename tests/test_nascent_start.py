"""The program that a child that waits becomes, and what is done to that child from outside."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from parent_snapshot import descriptors, unchanged
from step_cases import NOBODY, new_group, refusing

from clonekit import DeclarationError, Nascent, Process, Slot, nascent
from clonekit.steps import (
    bind_socket,
    change_directory,
    execute,
    install_seccomp_filter,
    listen_socket,
    open_file,
    open_pipe,
    open_socket,
    place_descriptors,
    set_no_new_privs,
    set_rlimit,
    set_umask,
    system_call,
    write,
)

MOST_GIVEN = 253


def seen(vector: Mapping[int, int]) -> list[str]:
    """The arguments with which `see` finds exactly these descriptors of ours."""
    files = {to: os.fstat(fd) for to, fd in vector.items()}
    return [f"{to}:{file.st_dev}:{file.st_ino}" for to, file in files.items()] or ["-"]


def printed(child: Nascent, argv: list[str], **declaration: Any) -> str:
    """What a program prints in which the child ends."""
    with open(os.memfd_create("out"), "w+b") as out:
        process = child.start(argv, fds={1: out, 2: 2}, **declaration)
        assert process.wait().status == 0
        process.close()
        out.seek(0)
        return out.read().decode()


def status(text: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


# ---- the program ----


@pytest.mark.parametrize("failures", [0, 1, 5])
def test_the_program_has_exactly_its_vector(built: Path, file: int, failures: int) -> None:
    null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    with unchanged(), nascent(umask=0o31, cwd="/", steps=[open_pipe("r", "w")]) as child:
        kept, _, reader = child.give(file), child.give(null, at=40), child.names["r"].fetch()
        vector = {0: kept, 2: null, 7: Slot("r"), 9: file, 41: kept}
        for n in range(failures):
            moved = {place + n: fd for place, fd in vector.items()}
            with pytest.raises(FileNotFoundError) as caught:
                child.start(["/nonexistent"], fds=moved, sigignore=["TERM"])
            assert caught.value.phase == "exec"  # type: ignore[attr-defined]
            assert child.do(system_call("lseek", kept, n, os.SEEK_SET)) == n
        argv = seen({0: file, 2: null, 7: reader, 9: file, 41: file})
        with child.start([str(built / "see"), *argv], fds=vector, env={}) as process:
            assert process.wait().status == 0
        os.close(reader)
    os.close(null)


def test_what_was_done_lasts_through_starts_that_fail(child: Nascent) -> None:
    child.do(set_umask(0o31), change_directory("/proc"), set_rlimit("core", 0))
    for path in ("/nonexistent", "/", "/dev/null"):
        with pytest.raises((FileNotFoundError, PermissionError)):
            child.start([path])
    shell = "umask; pwd; ulimit -c; cat /proc/self/status"
    mask, where, core, *lines = printed(child, ["sh", "-c", shell]).splitlines()
    assert (mask, where, core) == ("0031", "/proc", "0")
    fields, ours = status("\n".join(lines)), status(Path("/proc/self/status").read_text())
    assert fields["SigBlk"] == ours["SigBlk"]


def test_a_program_begins_in_an_order_of_ones_own(child: Nascent, built: Path, file: int) -> None:
    kept = child.give(file)
    steps = [
        open_file("/dev/null", os.O_RDWR, name="null"),
        place_descriptors({3: kept, 4: Slot("null")}),
        write(kept, b"abc"),  # after it was moved out of the vector's way
        set_no_new_privs(),
        install_seccomp_filter(refusing({"acct": errno.EPERM})),
    ]
    with pytest.raises(FileNotFoundError):
        child.start([*steps[:4], execute(["/nonexistent"])])
    with open("/dev/null", "rb") as null:
        argv = [str(built / "see"), *seen({3: file, 4: null.fileno()})]
        process = child.start([*steps, execute(argv, env={})])
        assert process.wait().status == 0
        process.close()
    assert os.pread(file, 99, 0) == b"abcabc6789"


def test_a_start_that_fails_before_its_vector_leaves_what_was_open(
    child: Nascent, file: int
) -> None:
    child.give(file)
    before = descriptors(child.pid)
    with pytest.raises(FileNotFoundError):
        child.start(["true"], fds={0: file, 1: 1}, cwd="/nonexistent")
    assert descriptors(child.pid) == before
    assert printed(child, ["echo", "done"]) == "done\n"


def test_a_start_that_fails_within_its_vector_ends_the_child(file: int) -> None:
    with unchanged(), nascent(rlimits={"nofile": 64}) as child:
        with pytest.raises(OSError, match="place_descriptors"):
            child.start(["true"], fds={0: file, 64: file})
        assert child.pidfd == -1


def test_more_descriptors_than_one_message_brings_are_refused(child: Nascent) -> None:
    fds = [os.dup(2) for _ in range(MOST_GIVEN + 1)]
    with pytest.raises(DeclarationError, match="253"):
        child.start(["true"], fds=dict(enumerate(fds)))
    process = child.start(["true"], fds=dict(enumerate(fds[:-1])))
    assert process.wait().status == 0
    process.close()
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize(
    "fields", [{"capabilities": []}, {"uid": NOBODY, "gid": NOBODY}, {"seccomp": refusing({})}]
)
def test_a_start_that_has_given_up_rights_ends_the_child_when_it_fails(
    fields: dict[str, Any], need: Callable[[str], None]
) -> None:
    if "seccomp" not in fields:
        need("setuid")
    fields = {**fields, "no_new_privs": True}
    with unchanged(), nascent() as child:
        with pytest.raises(FileNotFoundError):
            child.start(["/nonexistent"], **fields)
        assert child.pidfd == -1
        with pytest.raises(ValueError, match="holds no child"):
            child.do(set_umask(0))
    with unchanged(), nascent() as child:
        told = status(printed(child, ["cat", "/proc/self/status"], **fields))
        assert told["Uid"].split() == [str(fields.get("uid", os.getuid()))] * 4


def test_the_program_is_a_process_like_any_other(child: Nascent) -> None:
    process = child.start(["sleep", "1000"])
    assert isinstance(process, Process)
    assert (process.pid, process.argv) == (child.pid, ("sleep", "1000"))
    for use in (child.fileno, lambda: child.do(set_umask(0)), lambda: child.start(["true"])):
        with pytest.raises(ValueError, match="holds no child"):
            use()
    child.kill()
    assert process.poll() is None
    process.terminate()
    assert process.wait().signal == signal.SIGTERM
    process.close()


def test_the_program_outlives_the_block_and_the_thread_that_made_it() -> None:
    processes: list[Process] = []
    reader, writer = os.pipe2(os.O_CLOEXEC)

    def make() -> None:
        with nascent() as child:
            for _ in range(2):
                with pytest.raises(FileNotFoundError):
                    child.start(["/nonexistent"])
            processes.append(child.start(["cat"], fds={0: reader, 1: 1}))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    while os.path.exists(f"/proc/self/task/{thread.native_id}"):
        os.sched_yield()
    os.close(writer)
    assert processes[0].wait().status == 0
    processes[0].close()
    os.close(reader)


# ---- from outside ----


def privileged(*names: str) -> dict[str, Any]:
    """New namespaces, in a user namespace that is ours where we are not root."""
    if os.geteuid() == 0:
        return {"namespaces": names}
    return {"namespaces": ["user", *names], "uid_map": 0}


def test_we_write_the_maps_of_its_user_namespace(need: Callable[[str], None]) -> None:
    need("user")
    many = os.geteuid() == 0
    ranges = [(0, 100000, 1000), (5000, 200000, 9)] if many else [(7, os.geteuid(), 1)]
    groups = ranges if many else [(8, os.getegid(), 1)]
    with unchanged(), nascent(namespaces=["user"]) as child:
        proc = Path(f"/proc/{child.pid}")
        assert (proc / "uid_map").read_text() == ""
        if not many:
            (proc / "setgroups").write_text("deny")
        for name, lines in (("uid_map", ranges), ("gid_map", groups)):
            (proc / name).write_text("".join(f"{inside} {out} {n}\n" for inside, out, n in lines))
        ids = {"uid": 5003, "gid": 5004} if many else {}
        text = printed(child, ["sh", "-c", "cat /proc/self/uid_map; id -u; id -g"], **ids)
    *told, uid, gid = text.splitlines()
    assert [tuple(map(int, line.split())) for line in told] == ranges
    assert (uid, gid) == (("5003", "5004") if many else ("7", "8"))


def test_we_set_its_limits(child: Nascent) -> None:
    resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (61, 62))
    assert printed(child, ["sh", "-c", "ulimit -Sn; ulimit -Hn"]) == "61\n62\n"


@pytest.mark.parametrize("made_there", [True, False])
def test_it_is_in_a_cgroup_before_its_program(
    need: Callable[[str], None], *, made_there: bool
) -> None:
    need("cgroup")
    group, _ = new_group()
    try:
        with unchanged(), nascent(cgroup=group if made_there else None) as child:
            if not made_there:
                (group / "cgroup.procs").write_text(str(child.pid))
            assert (group / "cgroup.procs").read_text().split() == [str(child.pid)]
            assert f"0::/{group.name}" in printed(child, ["cat", "/proc/self/cgroup"])
    finally:
        group.rmdir()


def test_we_configure_its_network_through_its_own_socket(need: Callable[[str], None]) -> None:
    need("privilege")
    pyroute2 = pytest.importorskip("pyroute2")
    netlink = open_socket(socket.AF_NETLINK, socket.SOCK_DGRAM, socket.NETLINK_ROUTE, name="rtnl")
    with unchanged(), nascent(**privileged("net")) as child:
        with pyroute2.IPRoute(fileno=child.do(netlink).fetch()) as route:
            (lo,) = route.link_lookup(ifname="lo")
            route.link("set", index=lo, state="up")
            route.addr("add", index=lo, address="192.0.2.7", prefixlen=24)
        server = child.do(open_socket(socket.AF_INET, socket.SOCK_STREAM, name="server"))
        child.do(bind_socket(server, ("192.0.2.7", 80)), listen_socket(server))
        assert "192.0.2.7\n" in printed(child, ["cat", "/proc/net/fib_trie"])


def test_a_set_up_that_fails_leaves_no_child(need: Callable[[str], None]) -> None:
    need("privilege")
    with unchanged():
        for _ in range(3):
            with pytest.raises(FileNotFoundError) as caught:
                nascent(**privileged("net", "uts"), cwd="/nonexistent")
            assert str(caught.value).startswith("change_directory(/nonexistent)")


def test_it_may_be_the_first_process_of_a_pid_namespace(need: Callable[[str], None]) -> None:
    need("privilege")
    with unchanged(), nascent(**privileged("pid", "uts"), hostname="aquarium") as child:
        assert child.syscall("getpid") == 1
        with pytest.raises(FileNotFoundError):
            child.start(["/nonexistent"])
        assert child.syscall("getppid") == 0
        assert printed(child, ["sh", "-c", "echo $$; uname -n"]) == "1\naquarium\n"
