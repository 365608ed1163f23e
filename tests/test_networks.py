"""Networks without a process in them, and those that have names."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from networking import alone, interfaces, until
from parent_snapshot import unchanged
from step_cases import apart, output

from clonekit import DeclarationError, netns, spawn
from clonekit.linux.abi import call, lib
from clonekit.linux.memory import address
from clonekit.network import Network, Veth, networks

SELF = "/proc/thread-self/ns/net"
NAMED = lib.CLONE_NEWNET | lib.CLONE_NEWNS

pytestmark = pytest.mark.usefixtures("no_hang")


def inode(network: Network) -> str:
    """How the kernel shows it."""
    return f"net:[{os.fstat(network.fileno()).st_ino}]"


def seen(argv: list[str], network: Network, **declaration: object) -> str:
    """What a program sees that joins a network."""
    return output(argv, join=network.join, **declaration)


def test_networks_are_new_and_joined_and_ours_stays(need: Callable[[str], None]) -> None:
    need("net")
    ours = os.readlink(SELF)
    with unchanged():
        left, right = networks(2)
        with left, right:
            assert len({ours, inode(left), inode(right)}) == 3
            for each in (left, right):
                assert seen(["readlink", "/proc/self/ns/net"], each).strip() == inode(each)
            told = seen(["cat", "/proc/self/net/dev"], left)
            assert [line.split(":")[0].strip() for line in told.splitlines()[2:]] == ["lo"]
    assert os.readlink(SELF) == ours
    assert repr(left) == "<Network, closed>"
    with pytest.raises(ValueError, match="closed"):
        left.join  # noqa: B018 - it is a question


def test_networks_are_connected_all_or_not(need: Callable[[str], None]) -> None:
    need("veth")
    left, right = networks(2)
    with left, right:
        veth = Veth("one", into=right, peer="ckpeer", addresses=["10.0.0.1/24"])
        with pytest.raises(OSError, match="ckpeer") as caught:
            left.add(veth, Veth("two", into=right, peer="ckpeer"))
        assert caught.value.errno == errno.EEXIST
        for network in (left, right):
            assert "one" not in seen(["cat", "/proc/self/net/dev"], network)
        left.add(veth)
        assert "10.0.0.1" in seen(["cat", "/proc/self/net/fib_trie"], left)
        assert "ckpeer" in seen(["cat", "/proc/self/net/dev"], right)
        right.close()
        with pytest.raises(ValueError, match="closed"):
            left.add(Veth("two", into=right))


def test_an_end_of_a_cable_ends_with_the_other_network(need: Callable[[str], None]) -> None:
    need("veth")
    left, right = networks(2)
    with left, right:
        left.add(Veth("one", into=right))
        assert left.rtnl.index("one")
        right.close()

        def gone() -> bool:
            with pytest.raises(OSError, match="No such device"):
                left.rtnl.index("one")
            return True

        assert until(lambda: "one" not in seen(["cat", "/proc/self/net/dev"], left))
        assert gone()


@alone()
def test_a_network_is_connected_to_ours() -> None:
    (network,) = networks()
    network.add(Veth(addresses=["10.0.0.2/24"], peer="ckhost", peer_addresses=["10.0.0.1/24"]))
    assert interfaces() == ["ckhost", "lo"]
    with socket.create_server(("10.0.0.1", 0)) as server:
        code = "import socket, sys; socket.create_connection(('10.0.0.1', int(sys.argv[1])))"
        argv = [sys.executable, "-c", code, str(server.getsockname()[1])]
        with spawn(argv, join=network.join) as process:
            assert process.wait().status == 0
    network.close()
    assert until(lambda: interfaces() == ["lo"])


# ---- names ----


def mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    """Mount something."""
    texts = [bytearray(text.encode() + b"\0") if text else None for text in (source, target, kind)]
    call("mount", *(0 if text is None else address(text) for text in texts), flags)


def own_run() -> None:
    """A /run of our own, and nothing that we mount goes further."""
    mount(None, "/", None, lib.MS_REC | lib.MS_PRIVATE)
    mount("tmpfs", "/run", "tmpfs", 0)


@alone("mount", kinds=NAMED)
def test_a_name_is_made_found_joined_and_removed() -> None:
    own_run()
    ours = os.readlink(SELF)
    assert netns.names() == []
    with netns.create("blue") as blue:
        inside = inode(blue)
    assert netns.names() == ["blue"]
    assert inside != ours == os.readlink(SELF)
    with netns.find("blue") as blue:
        assert inode(blue) == inside
        told = output(["readlink", "/proc/self/ns/net"], join=[blue], loopback=True)
        assert told.strip() == inside
        blue.add(Veth(peer="ckhost"))
        assert interfaces() == ["ckhost", "lo"]
    netns.remove("blue")
    assert netns.names() == []
    assert until(lambda: interfaces() == ["lo"])
    assert "netns/blue" not in Path("/proc/self/mountinfo").read_text()


@alone("mount", kinds=NAMED)
def test_names_are_those_of_ip_netns() -> None:
    if shutil.which("ip") is None:
        return
    own_run()
    subprocess.run(["ip", "netns", "add", "green"], check=True)
    green, blue = netns.find("green"), netns.create("blue")
    green.add(Veth(into=blue, peer="ckpeer"))
    told = subprocess.run(
        ["ip", "-netns", "blue", "link"], check=True, capture_output=True, text=True
    ).stdout
    assert "ckpeer" in told
    subprocess.run(["ip", "netns", "del", "blue"], check=True)
    netns.remove("green")
    assert netns.names() == []


@alone("mount", kinds=NAMED)
def test_names_are_shared_with_mount_namespaces_that_have_the_directory() -> None:
    own_run()
    netns.create("one")
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        call("unshare", lib.CLONE_NEWNS)
        os.write(ready[1], b".")
        os.read(go[0], 1)
        status = int(netns.names() != ["one", "two"] or not netns.find("two").fileno())
        os.write(ready[1], b".")
        os.read(go[0], 1)
        os._exit(status + 2 * int("netns/two" in Path("/proc/self/mountinfo").read_text()))
    os.read(ready[0], 1)
    netns.create("two")
    os.write(go[1], b".")
    os.read(ready[0], 1)
    netns.remove("two")
    os.write(go[1], b".")
    assert os.waitpid(pid, 0)[1] == 0


@alone("mount", kinds=NAMED)
def test_a_name_that_cannot_be_made_leaves_nothing() -> None:
    own_run()
    netns.create("blue").close()
    mounts = Path("/proc/self/mountinfo").read_text()
    with unchanged():
        with pytest.raises(FileExistsError):
            netns.create("blue")
        for name in ("", ".", "..", "a/b", "a\0b", "x" * 256, 7):
            with pytest.raises(DeclarationError, match="cannot name a network"):
                netns.create(name)  # type: ignore[arg-type]
        for absent in (netns.find, netns.remove):
            with pytest.raises(FileNotFoundError):
                absent("green")
        Path("/run/netns/stale").touch()
        with pytest.raises(OSError, match="no network namespace is mounted there"):
            netns.find("stale")
        netns.remove("stale")
        Path("/run/netns/link").symlink_to("blue")
        with pytest.raises(OSError, match="Too many levels of symbolic links"):
            netns.find("link")
        with pytest.raises(FileExistsError):
            netns.create("link")
        netns.remove("link")
    assert netns.names() == ["blue"]
    assert Path("/proc/self/mountinfo").read_text() == mounts


@alone("mount", kinds=NAMED)
def test_a_directory_of_names_that_is_a_link_is_refused() -> None:
    own_run()
    Path("/run/elsewhere").mkdir()
    Path("/run/netns").symlink_to("elsewhere")
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        netns.create("blue")
    assert os.listdir("/run/elsewhere") == []


def test_a_name_takes_rights() -> None:
    def attempt() -> None:
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        with pytest.raises(PermissionError):
            netns.create("cknetns")

    assert apart(attempt) == ""
    assert "cknetns" not in netns.names()
