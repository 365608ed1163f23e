"""Networks that cannot be, refused before anything is made; and those who may make none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from networking import add_bridge, add_pair, alone, interfaces
from parent_snapshot import unchanged
from step_cases import NOBODY, apart, missing, output

from clonekit import DeclarationError, Program, Slot, SpawnError, Spec, spawn
from clonekit.network import Macvlan, Move, Network, Veth, networks
from clonekit.rtnl import require_pyroute2
from clonekit.steps import execute, furnish_network, join_namespaces, new_namespaces

CANNOT_BE: dict[str, Callable[[], object]] = {
    "'sixteen-bytes-xx' cannot name an interface; give 1 to 15 bytes": lambda: Veth(
        "sixteen-bytes-xx"
    ),
    "'' cannot name": lambda: Veth(""),
    "'a b' cannot name": lambda: Veth("a b"),
    "'a/b' cannot name": lambda: Veth(peer="a/b"),
    "'ck%d' cannot name": lambda: Veth(bridge="ck%d"),
    "7 cannot name": lambda: Move(7),  # type: ignore[arg-type]
    "'10.0.0.2' is no address of an interface; write it as '10.0.0.2/24'": lambda: Veth(
        addresses=["10.0.0.2"]
    ),
    "'10.0.0.300/24' is no address": lambda: Veth(addresses=["10.0.0.300/24"]),
    "'fd00::1/129' is no address": lambda: Veth(peer_addresses=["fd00::1/129"]),
    "addresses is '10.0.0.2/24'; give a list": lambda: Veth(addresses="10.0.0.2/24"),
    "the router 10.0.1.1 is in no network of eth0's addresses (10.0.0.0/24)": lambda: Veth(
        addresses=["10.0.0.2/24"], gateway="10.0.1.1"
    ),
    "the router fd00::1 is in no network of eth0's addresses (it has none)": lambda: Veth(
        gateway="fd00::1"
    ),
    "'here' is no address of a router": lambda: Veth(gateway="here"),
    "'10.1.0.0/33' is no network": lambda: Veth(routes={"10.1.0.0/33": None}),
    "'10.1.0.1/16' is no network": lambda: Veth(routes={"10.1.0.1/16": None}),
    "10.1.0.0/16 cannot be reached by fe80::1": lambda: Veth(routes={"10.1.0.0/16": "fe80::1"}),
    "mtu is 67": lambda: Veth(mtu=67),
    "mtu is '1500'": lambda: Veth(mtu="1500"),  # type: ignore[arg-type]
    "mac is '01:00:00:00:00:01'": lambda: Veth(mac="01:00:00:00:00:01"),
    "mac is '02:00:00:00:00'": lambda: Veth(mac="02:00:00:00:00"),
    "mac is '02:00:00:00:00:0x'": lambda: Veth(mac="02:00:00:00:00:0x"),
    "give bridge or into, not both": lambda: Veth(bridge="ckbr0", into=Network(-1)),
    "a port of a bridge has no addresses": lambda: Veth(
        bridge="ckbr0", peer_addresses=["10.0.0.1/24"]
    ),
    "into is 'host'": lambda: Veth(into="host"),  # type: ignore[arg-type]
    "mode is 'open'; give private": lambda: Macvlan("eth0", mode="open"),
    "0 networks cannot be made": lambda: networks(0),
}


@pytest.mark.parametrize("told", CANNOT_BE)
def test_what_cannot_be_is_refused_when_it_is_said(told: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        CANNOT_BE[told]()
    assert told in str(caught.value)


@alone()
def test_what_is_not_here_is_refused_before_anything_is_made() -> None:
    add_bridge("ckbr0")
    add_pair("ckone", "cktwo")
    for told, network in {
        "bridge: ckbr1: No such device": [Veth(bridge="ckbr1")],
        "ckone is no bridge": [Veth(bridge="ckone")],
        "there is an interface cktwo here": [Veth(peer="cktwo")],
        "parent: ckthree: No such device": [Macvlan("ckthree")],
        "interface: ckthree: No such device": [Move("ckthree", "eth0")],
        "lo stays": [Move("lo", "eth0")],
        "two interfaces would be eth0": [Veth(), Macvlan("ckone")],
        "two interfaces would be lo": [Veth("lo")],
        "'eth0' is no interface; give Veth": ["eth0"],
    }.items():
        with unchanged(), pytest.raises(DeclarationError) as caught:
            Spec(["true"], namespaces=["net"], network=network).program()
        assert told in str(caught.value)
    assert interfaces() == ["ckbr0", "ckone", "cktwo", "lo"]


@pytest.mark.parametrize("field", [{"loopback": True}, {"network": []}])
def test_the_machines_own_network_is_not_furnished(field: dict[str, object]) -> None:
    for namespaces in ([], ["user", "uts"]):
        with pytest.raises(DeclarationError, match='add "net" to namespaces'):
            Spec(["true"], namespaces=namespaces, **field).program()
    with pytest.raises(DeclarationError, match='add "net" to namespaces'):
        Spec(["true"], join=[(Slot("process"), ["uts", "ipc"])], **field).program()
    Spec(["true"], namespaces="network", **field).program()
    Spec(["true"], join=[(Slot("process"), ["net"])], **field).program()
    Spec(["true"], join=[Slot("namespace")], **field).program()
    Spec(["true"], loopback=False).program()


def test_without_pyroute2_it_is_said_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pyroute2'] = None; import clonekit\n"
        "from clonekit.network import Veth\n"
        "try: clonekit.spawn(['true'], namespaces=['net'], network=[Veth()])\n"
        "except clonekit.DeclarationError as error: print(error)\n"
        "clonekit.spawn(['true'], namespaces=['user', 'net'], loopback=True).wait()\n"
    )
    if reason := missing("user"):
        pytest.skip(reason)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'clonekit[net]'" in done.stdout
    assert done.stderr == ""


def test_pyroute2_is_loaded_by_those_alone_who_use_it() -> None:
    code = (
        "import sys, clonekit, clonekit.steps, clonekit.network, clonekit.netns\n"
        "print(sorted(sys.modules.keys() & {'pyroute2', 'asyncio', 'typing'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_without_rights_nothing_is_connected_to_our_network() -> None:
    require_pyroute2()

    def attempt() -> None:
        if os.geteuid() == 0:
            os.setresuid(NOBODY, NOBODY, NOBODY)
        for interface in (Veth(), Veth(bridge="ckbr0"), Macvlan("lo"), Move("lo")):
            with pytest.raises(
                DeclarationError, match=r"(?s)CAP_NET_ADMIN.*loopback=True.*networks"
            ):
                spawn(["true"], namespaces=["user", "net"], network=[interface])

    assert apart(attempt) == ""


def test_a_network_is_furnished_before_it_is_joined_where_we_are_not_root(
    need: Callable[[str], None],
) -> None:
    need("veth")
    left, right = networks(2)
    users = [join_namespaces(fd) for fd in left.join[:-1]]
    program = Program(
        [
            *users, *([] if users else [new_namespaces("net")]),
            furnish_network([Veth(into=right, peer="ckpeer")]), execute(["true"]),
        ]
    )  # fmt: skip
    with left, right:
        if not users:
            assert program.spawn().wait().status == 0
            return
        with pytest.raises(SpawnError, match="make the network before") as caught:
            program.spawn()
        assert isinstance(caught.value, PermissionError)


@alone()
def test_a_loopback_that_is_down_is_no_host(need: Callable[[str], None]) -> None:
    need("net")
    argv = ["cat", "/proc/self/net/fib_trie"]
    assert "127.0.0.1" not in output(argv, namespaces=["net"])
    assert "127.0.0.1" in output(argv, namespaces=["net"], loopback=True)
