"""What a child that is driven from outside is for, each from beginning to end."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parent_snapshot import children
from suspending import compiled, ends, entry, printed, stack, symbol

from clonekit import DeclarationError, Process, Slot, SpawnError, Suspended, nascent
from clonekit.linux.landlock import Ruleset
from clonekit.steps import (
    bind_socket,
    change_directory,
    listen_socket,
    open_file,
    open_socket,
    set_umask,
    write_file,
)

NOBODY = 65534
SYSTEM = [
    path for path in ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache") if Path(path).exists()
]
Need = Callable[[str], None]

PATCHED = """
#include <stdio.h>
int level = 1;
static const char *name = "nobody";
__attribute__((constructor)) static void before(void) { printf("%d ", level); }
int main(void) { printf("%d %s\\n", level, name); return 0; }
"""


def read_all(reader: int, process: Process) -> str:
    """What a program prints that ends well."""
    with open(reader, errors="replace") as told, process:
        text = told.read()
        assert process.wait().status == 0, text
    return text


@pytest.mark.parametrize("kind", ["static", "static-pie", "dynamic", "dynamic-pie"])
def test_a_debugger_patches_a_global_before_any_code_has_run(kind: str, tmp_path: Path) -> None:
    program = compiled(tmp_path, PATCHED, kind)
    assert printed([program], lambda _: None) == "1 1 nobody\n"

    def patch(held: Suspended) -> None:
        loaded = held.auxv()["entry"] - entry(program)
        assert (loaded != 0) == kind.endswith("pie")
        level = loaded + symbol(program, "level")
        assert held.read(level, 4) == struct.pack("<i", 1)
        held.write(level, struct.pack("<i", 7))

    assert printed([program], patch) == "7 7 nobody\n"


def test_a_debugger_gives_another_argument_in_place() -> None:
    def change(held: Suspended) -> None:
        at = stack(held)
        count, _, first = struct.unpack("<QQQ", held.read(at, 24))
        assert count == 2
        assert held.read(first, 6) == b"before"
        room = held.syscall("mmap", 0, 4096, mmap.PROT_READ | mmap.PROT_WRITE, 0x22, -1, 0)
        held.write(room, b"a longer one\0")
        held.write(at + 16, struct.pack("<Q", room))

    assert printed(["echo", "before"], change) == "a longer one\n"


SERVER = """
cat <&3; id -u; id -g; grep NoNewPrivs /proc/self/status | cut -f 2
cat "$0/secret" 2>&- || echo no secret
(echo x > "$0/new") 2>&- || echo no writing
readlink /proc/self/fd/4 | cut -d : -f 1; echo /proc/self/fd/*
"""


def test_what_root_opens_serves_a_program_that_can_open_nothing(need: Need, tmp_path: Path) -> None:
    need("setuid")
    need("landlock")
    (tmp_path / "secret").write_text("for root alone\n")
    (tmp_path / "secret").chmod(0o600)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    proc = [Path("/proc")]
    with (
        Ruleset(execute=SYSTEM, read=proc, write=[], best_effort=True) as ruleset,
        nascent(namespaces=["net"]) as child,
    ):
        child.do(open_file(tmp_path / "secret", name="file"))
        child.do(open_socket(socket.AF_INET, socket.SOCK_STREAM, name="listener"))
        child.do(bind_socket(Slot("listener"), ("0.0.0.0", 80)), listen_socket(Slot("listener")))  # noqa: S104 - in a network of its own
        fetched = child.names["listener"].fetch()
        with socket.socket(fileno=fetched) as ours:
            assert ours.getsockname() == ("0.0.0.0", 80)  # noqa: S104 - likewise
        process = child.start(
            ["sh", "-c", SERVER, str(tmp_path)],
            fds={1: writer, 2: 2, 3: Slot("file"), 4: Slot("listener")},
            uid=NOBODY, gid=NOBODY, no_new_privs=True, landlock=ruleset,
        )  # fmt: skip
    os.close(writer)
    text = read_all(reader, process)
    own = f"for root alone\n{NOBODY}\n{NOBODY}\n1\nno secret\nno writing\nsocket\n"
    assert text.startswith(own), text
    assert "/proc/self/fd/5" not in text
    assert not (tmp_path / "new").exists()


def own_network() -> dict[str, Any]:
    """A network namespace that is ours to configure."""
    if os.geteuid() == 0:
        return {"namespaces": ["net"]}
    return {"namespaces": ["user", "net"], "uid_map": 0, "gid_map": 0}


def test_a_network_is_configured_between_clone_and_exec_without_a_fork(need: Need) -> None:
    if os.geteuid():
        need("user")
    pyroute2 = pytest.importorskip("pyroute2")
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with nascent(**own_network()) as child:
        kind = socket.SOCK_DGRAM  # as asyncio wants it, on which pyroute2 0.9 stands
        netlink = child.do(open_socket(socket.AF_NETLINK, kind, 0, name="rtnl")).fetch()
        threads = os.listdir("/proc/self/task")
        with pyroute2.IPRoute(fileno=netlink) as network:  # which closes it
            assert [link.get_attr("IFLA_IFNAME") for link in network.get_links()] == ["lo"]
            network.link("set", index=1, state="up")
            network.addr("add", index=1, address="10.9.8.7", prefixlen=24)
            assert children() == [str(child.pid)]
            assert os.listdir("/proc/self/task") == threads
        child.names["rtnl"].close()
        child.do(open_socket(socket.AF_INET, socket.SOCK_STREAM, name="listener"))
        child.do(bind_socket(Slot("listener"), ("10.9.8.7", 80)), listen_socket(Slot("listener")))
        fds = {1: writer, 2: 2, 3: Slot("listener")}
        process = child.start(["cat", "/proc/net/tcp"], fds=fds)
    os.close(writer)
    assert "0708090A:0050" in read_all(reader, process)


def test_what_has_failed_is_tried_again(tmp_path: Path) -> None:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with nascent() as child:
        opened = open_file(tmp_path / "late", name="late")
        with pytest.raises(FileNotFoundError, match="late"):
            child.do(set_umask(0o027), opened)
        (tmp_path / "late").write_text("now it is there\n")
        assert child.do(opened).number >= 0
        with pytest.raises(FileNotFoundError, match="execve"):
            child.start(["/absent"], fds={0: Slot("late"), 1: writer})
        with pytest.raises(NotADirectoryError):
            child.start(["cat"], fds={0: Slot("late"), 1: writer}, cwd=tmp_path / "late")
        with pytest.raises(DeclarationError):
            child.start(["cat"], fds={0: Slot("never")})
        process = child.start(["sh", "-c", "umask; cat"], fds={0: Slot("late"), 1: writer, 2: 2})
    os.close(writer)
    assert read_all(reader, process) == "0027\nnow it is there\n"


def test_what_has_failed_in_a_suspended_program_is_tried_again(tmp_path: Path) -> None:
    def change(held: Suspended) -> None:
        with pytest.raises(FileNotFoundError) as told:
            held.do(change_directory(tmp_path / "made"), set_umask(0o077))
        assert isinstance(told.value, SpawnError)
        assert told.value.errno == errno.ENOENT
        held.do(write_file(tmp_path / "log", b"late", os.O_WRONLY | os.O_CREAT))
        (tmp_path / "made").mkdir()
        held.do(change_directory(tmp_path / "made"), set_umask(0o077))

    text = printed(["sh", "-c", "umask; pwd -P"], change)
    assert text == f"0077\n{os.path.realpath(tmp_path / 'made')}\n"
    assert (tmp_path / "log").read_text() == "late"
    assert ends() == []
