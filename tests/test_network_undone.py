"""What is left of a child's network when its spawn fails: nothing, at once."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from networking import add_pair, alone, interfaces, look
from parent_snapshot import unchanged

from clonekit import SpawnError, spawn
from clonekit.network import Move, Veth
from clonekit.rtnl import Rtnl, link_message
from clonekit.steps import open_file

ADDRESS = "10.9.0.2"

pytestmark = pytest.mark.usefixtures("no_hang")


def furnished(program: str, **declaration: object) -> None:
    """Spawn a program in a network of its own, where that fails."""
    spawn([program], namespaces=["net"], **declaration)


@alone()
def test_nothing_is_left_of_a_spawn_that_fails_after_it() -> None:
    with unchanged():
        for _ in range(3):
            with pytest.raises(FileNotFoundError):
                furnished("/nonexistent", network=[Veth(peer="ckone"), Veth("eth1", peer="cktwo")])
            assert interfaces() == ["lo"], "at once"


@alone()
def test_nothing_is_left_of_a_spawn_that_is_late(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    waits = open_file(tmp_path / "fifo")
    add_pair("ckone", "cktwo")
    with unchanged(), pytest.raises(TimeoutError):
        furnished("true", network=[Veth(peer="ckpeer"), Move("ckone")], steps=[waits], deadline=0.5)
    assert interfaces() == ["ckone", "cktwo", "lo"], "at once"


@alone()
def test_interfaces_are_made_all_or_none() -> None:
    network = [Veth(peer="ckone"), Veth("eth1", peer="ckone")]
    with unchanged(), pytest.raises(SpawnError) as caught:
        furnished("true", network=network)
    assert (caught.value.errno, caught.value.phase) == (errno.EEXIST, "namespaces")
    assert "peer='ckone'" in str(caught.value)
    assert interfaces() == ["lo"]


@alone()
def test_an_address_that_the_kernel_refuses_takes_the_interface_away() -> None:
    with pytest.raises(SpawnError, match=r"address 10\.9\.0\.2/24: File exists"):
        furnished("true", network=[Veth(addresses=2 * [f"{ADDRESS}/24"])])
    assert interfaces() == ["lo"]


@alone()
def test_a_moved_interface_comes_back_when_the_spawn_fails() -> None:
    add_pair("ckone", "cktwo")
    before = look("ckone", "IFLA_ADDRESS"), look("ckone", "IFLA_MTU")
    move = Move("ckone", "eth0", mac="02:00:00:00:00:09", mtu=1300, addresses=[f"{ADDRESS}/24"])
    with unchanged(), pytest.raises(FileNotFoundError):
        furnished("/nonexistent", network=[move])
    assert interfaces() == ["ckone", "cktwo", "lo"]
    assert (look("ckone", "IFLA_ADDRESS"), look("ckone", "IFLA_MTU")) == before
    with pytest.raises(SpawnError, match="File exists"):
        furnished("true", network=[Move("ckone", addresses=2 * [f"{ADDRESS}/24"])])
    assert interfaces() == ["ckone", "cktwo", "lo"]


@alone()
def test_an_answer_that_nobody_has_waited_for_is_not_taken_for_another() -> None:
    inside = Rtnl.here()
    message = link_message([("IFLA_IFNAME", "nowhere")])
    message["header"].update(type=18, flags=1, sequence_number=0)  # RTM_GETLINK, NLM_F_REQUEST
    message.encode()
    os.write(inside.fileno(), message.data)
    assert inside.index("lo") == 1
    inside.close()
