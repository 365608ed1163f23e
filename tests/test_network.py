"""Interfaces that a child finds in its network, made by its parent."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
import threading
from collections.abc import Callable

import pytest
from networking import add_bridge, add_pair, alone, interfaces, look, until
from parent_snapshot import unchanged
from step_cases import missing, output

from clonekit import DeclarationError, Process, Program, Slot, SpawnError, nascent, spawn
from clonekit.network import Interface, Macvlan, Move, Veth
from clonekit.steps import (
    bind_socket,
    execute,
    furnish_network,
    listen_socket,
    new_namespaces,
    open_socket,
)

HERE, THERE = "10.9.0.1", "10.9.0.2"
HERE6, THERE6 = "fd09::1", "fd09::2"
SAY = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60) as connection:
    connection.sendall(connection.getsockname()[0].encode())
"""
HEAR = """
import socket
print("heard", socket.socket(fileno=3).accept()[0].makefile().read())
"""
ROUTES = ["cat", "/proc/self/net/route"]

pytestmark = pytest.mark.usefixtures("no_hang")


def child(*argv: str, **declaration: object) -> Process:
    """A child in a network of its own."""
    return spawn(argv, namespaces=["net"], **declaration)


def said(address: str, veth: Veth) -> str:
    """The address from which a child reaches this one of ours."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server(("", 0), family=family) as server:
        server.settimeout(60)
        argv = [sys.executable, "-c", SAY, address, str(server.getsockname()[1])]
        with child(*argv, network=veth) as process:
            connection = server.accept()[0]
            with connection, connection.makefile() as told:
                text = told.read()
            assert process.wait().status == 0
    return text


@pytest.mark.parametrize(("ours", "theirs", "length"), [(HERE, THERE, 24), (HERE6, THERE6, 64)])
@alone()
def test_a_child_talks_to_its_parent_over_a_cable(ours: str, theirs: str, length: int) -> None:
    veth = Veth(addresses=[f"{theirs}/{length}"], peer_addresses=[f"{ours}/{length}"])
    assert said(ours, veth) == theirs


@alone()
def test_two_children_talk_over_a_bridge() -> None:
    add_bridge("ckbr0")
    assert talk(
        Veth(bridge="ckbr0", addresses=[f"{HERE}/24"]),
        Veth(bridge="ckbr0", addresses=[f"{THERE}/24"]),
    )


@alone("macvlan")
def test_two_children_talk_over_one_interface_of_ours() -> None:
    add_pair("ckone", "cktwo")
    assert talk(
        Macvlan("ckone", addresses=[f"{HERE}/24"]), Macvlan("ckone", addresses=[f"{THERE}/24"])
    )
    assert until(lambda: interfaces() == ["ckone", "cktwo", "lo"])


def talk(one: Interface, other: Interface) -> bool:
    """Whether a child that has this interface hears one that has the other."""
    listener = Slot("listener")
    reader, writer = os.pipe()
    hearing = child(
        sys.executable, "-c", HEAR,
        network=one,
        steps=[
            open_socket(socket.AF_INET, socket.SOCK_STREAM, name="listener"),
            bind_socket(listener, (HERE, 80)), listen_socket(listener),
        ],
        fds={1: writer, 2: 2, 3: listener},
    )  # fmt: skip
    os.close(writer)
    with hearing, child(sys.executable, "-c", SAY, HERE, "80", network=other) as saying:
        with open(reader) as told:
            heard = told.read()
        assert (saying.wait().status, hearing.wait().status) == (0, 0)
    return heard == f"heard {THERE}\n"


@alone()
def test_a_cable_is_as_it_was_declared() -> None:
    veth = Veth(
        "cable0", addresses=[f"{THERE}/24", f"{THERE6}/64"], mtu=1400,
        mac="02:00:00:00:00:07", gateway=[HERE, HERE6], routes={"10.10.0.0/16": HERE},
    )  # fmt: skip
    told = output(["cat", "/proc/self/net/route"], namespaces=["net"], network=[veth])
    rows = {tuple(line.split()[:3]) for line in told.splitlines()[1:]}
    assert rows == {
        ("cable0", "00000000", "0100090A"),
        ("cable0", "00000A0A", "0100090A"),
        ("cable0", "0000090A", "00000000"),
    }
    told = output(["cat", "/proc/self/net/ipv6_route"], namespaces=["net"], network=[veth])
    router = "fd090000000000000000000000000001"
    assert any(line.split()[0::4][:2] == ["0" * 32, router] for line in told.splitlines())
    told = output(["cat", "/proc/self/net/if_inet6"], namespaces=["net"], network=[veth])
    addresses = [line.split()[0] for line in told.splitlines()]
    assert "fe80000000000000000000fffe000007" in addresses, "it is made of the hardware's"
    assert until(lambda: interfaces() == ["lo"])
    with child("sleep", "60", network=[veth]) as process:
        assert look(interfaces()[0], "IFLA_MTU") == 1400
        process.kill()


@alone()
def test_a_cable_ends_with_its_child() -> None:
    with child("sleep", "60", network=[Veth(peer="ckhost")], loopback=True) as process:
        assert interfaces() == ["ckhost", "lo"]
        process.kill()
        process.wait()
    assert until(lambda: interfaces() == ["lo"])


@alone()
def test_a_moved_interface_is_the_childs() -> None:
    add_pair("ckone", "cktwo")
    with child(
        *ROUTES, network=[Move("ckone", "eth0", addresses=[f"{THERE}/24"], mtu=1300)]
    ) as process:
        assert "ckone" not in interfaces()
        assert process.wait().status == 0
    assert until(lambda: interfaces() == ["lo"]), "a virtual one ends with the child's network"
    add_pair("ckone", "cktwo")
    move = Move("ckone", "eth0", addresses=[f"{THERE}/24"])
    assert "eth0" in output(ROUTES, namespaces=["net"], network=[move])


NESTED = f"""
import socket, sys
import pytest
from networking import add_pair, interfaces
from clonekit import spawn
from clonekit.network import Move, Veth
namespaces = ["user", "net"]
add_pair("ckone", "cktwo")
with pytest.raises(FileNotFoundError):
    spawn(["/nonexistent"], namespaces=namespaces, network=[Move("ckone"), Veth("eth0")])
assert interfaces() == ["ckone", "cktwo", "lo"], interfaces()
veth = Veth(addresses=["{THERE}/24"], peer_addresses=["{HERE}/24"])
with socket.create_server(("", 0)) as server:
    argv = [sys.executable, "-c", {SAY!r}, "{HERE}", str(server.getsockname()[1])]
    with spawn(argv, namespaces=namespaces, uid_map=0, network=veth) as process:
        assert process.wait().status == 0
"""


def test_a_container_gives_its_children_in_user_namespaces_a_network(
    need: Callable[[str], None],
) -> None:
    need("veth")
    argv = [sys.executable, "-c", NESTED]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert output(argv, namespaces=["user", "net"], uid_map=0, gid_map=0, env=env) == ""


@alone("macvlan")
def test_a_macvlan_is_made_on_an_interface_of_ours() -> None:
    add_pair("ckone", "cktwo")
    for _ in range(2):
        network = [Macvlan("ckone", "eth0", mode="private", addresses=[f"{THERE}/24"])]
        assert "eth0" in output(ROUTES, namespaces=["net"], network=network)
    with pytest.raises(FileNotFoundError):
        child("/nonexistent", network=[Macvlan("ckone")])
    assert interfaces() == ["ckone", "cktwo", "lo"]


@alone()
def test_a_macvlan_that_the_kernel_lacks_is_named() -> None:
    add_pair("ckone", "cktwo")
    if not missing("macvlan"):
        return
    with pytest.raises(SpawnError, match=r"Macvlan\('eth0', parent='ckone'") as caught:
        child("true", network=[Macvlan("ckone")])
    assert caught.value.errno == errno.EOPNOTSUPP


@alone()
def test_a_spawn_in_a_coroutine_has_its_network() -> None:
    async def main() -> int | None:
        with child("true", network=[Veth(addresses=[f"{THERE}/24"])]) as process:
            return process.wait().status

    assert asyncio.run(main()) == 0


@alone()
def test_many_threads_spawn_one_program_with_a_network() -> None:
    veth = Veth(addresses=[f"{THERE}/24"])
    program = Program([new_namespaces("net"), furnish_network([veth]), execute(["true"])])
    ended: list[int | None] = []

    def repeat() -> None:
        ended.extend(program.spawn().wait().status for _ in range(10))

    threads = [threading.Thread(target=repeat) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [0] * 40
    assert until(lambda: interfaces() == ["lo"])


@alone()
def test_a_child_that_waits_is_given_a_network() -> None:
    with unchanged(), nascent(namespaces=["net"]) as waiting:
        waiting.do(furnish_network([Veth(peer="ckone")]))
        with pytest.raises(OSError, match="File exists"):
            waiting.do(furnish_network([Veth(peer="cktwo")]))
        assert interfaces() == ["ckone", "lo"]
        with waiting.start(["true"]) as process:
            assert process.wait().status == 0
    assert until(lambda: interfaces() == ["lo"])
    with nascent(namespaces=["net"]) as waiting:
        waiting.do(furnish_network([Veth(peer="ckone")]))
    assert interfaces() == ["lo"], "one that is never started"


@alone()
def test_explain_shows_what_is_made() -> None:
    program = Program([new_namespaces("net"), furnish_network(Veth(peer="ckx")), execute(["true"])])
    texts = [entry["text"] for entry in program.explain()]
    at = texts.index("ask the parent: make Veth('eth0', peer='ckx') in its network")
    assert texts[at - 1] == "socket(AF_NETLINK, 524290, 0)"
    assert texts[at + 1].startswith("close(")
    assert interfaces() == ["lo"]


@alone()
def test_our_own_network_is_not_furnished() -> None:
    with pytest.raises(DeclarationError, match='add "net" to namespaces'):
        Program([furnish_network([Veth()]), execute(["true"])]).spawn()
    with pytest.raises((DeclarationError, PermissionError)):
        Program([new_namespaces("user"), furnish_network([Veth()]), execute(["true"])]).spawn()
    assert interfaces() == ["lo"]
