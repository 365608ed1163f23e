"""Network interfaces as values: what a child's network shall have, made by its parent.

Each is checked when it is made, and against this machine before the clone (`check`); it becomes
real between the clone and the exec (`make`), and what that returns undoes it.
"""

from __future__ import annotations

from clonekit.addressing import addresses_of, interface_name
from clonekit.errors import DeclarationError
from clonekit.interface import (
    Interface,
    is_here,
    look,
    new_name,
    refuse_powerless,
    undoing,
    undone,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from clonekit.interface import Undo
    from clonekit.network import Network
    from clonekit.rtnl import Rtnl

MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}


class Veth(Interface):
    """A cable with an interface at each end: `name` in the child, the other where its parent is.

    With `bridge`, the other end is a port of that bridge of ours; with `into`, it is in another
    `clonekit.network.Network`. `peer` is the other end's name, by default a new one, and
    `peer_addresses` are its addresses. For the rest, see `Interface`.

    The kernel takes both ends away when the child's network ends: with its last process and the
    last descriptor of it.

    Raises: DeclarationError. See: veth(4).
    """

    __slots__ = ("bridge", "into", "peer", "peer_addresses")

    def __init__(
        self,
        name: str = "eth0",
        *,
        peer: str | None = None,
        bridge: str | None = None,
        into: Network | None = None,
        addresses: Iterable[str] = (),
        peer_addresses: Iterable[str] = (),
        gateway: str | Iterable[str] | None = None,
        routes: Mapping[str, str | None] | None = None,
        mtu: int | None = None,
        mac: str | None = None,
    ) -> None:
        super().__init__(
            name, addresses=addresses, gateway=gateway, routes=routes, mtu=mtu, mac=mac,
        )  # fmt: skip
        self.peer = None if peer is None else interface_name(peer)
        self.peer_addresses = addresses_of("peer_addresses", peer_addresses)
        self.bridge = None if bridge is None else interface_name(bridge)
        self.into = into
        if into is not None and not hasattr(type(into), "rtnl"):
            msg = f"into is {into!r}; give a clonekit.network.Network"
            raise DeclarationError(msg)
        if bridge is not None and into is not None:
            msg = "a cable has one other end; give bridge or into, not both"
            raise DeclarationError(msg)
        if bridge is not None and self.peer_addresses:
            msg = f"a port of a bridge has no addresses; give them to {bridge} itself"
            raise DeclarationError(msg)

    def check(self, outside: Rtnl) -> None:
        """Whether the other end can be where it shall be."""
        if self.into is not None:
            self.into.fileno()
            return
        refuse_powerless(self, outside)
        if self.bridge is not None:
            information = look(outside, "bridge", self.bridge).get_attr("IFLA_LINKINFO")
            if information is None or information.get_attr("IFLA_INFO_KIND") != "bridge":
                msg = f"{self.bridge} is no bridge; give the name of one, or leave bridge out"
                raise DeclarationError(msg)
        if self.peer is not None and is_here(outside, self.peer):
            msg = f"peer: there is an interface {self.peer} here; give another name, or none"
            raise DeclarationError(msg)

    def make(self, inside: Rtnl, outside: Rtnl) -> Undo:
        """Both ends at once, the far one where the request is made: its name is looked up there."""
        far = outside if self.into is None else self.into.rtnl
        peer = self.peer or new_name()
        attributes: list[tuple[str, Any]] = [("IFLA_IFNAME", peer)]
        if self.mtu is not None:
            attributes.append(("IFLA_MTU", self.mtu))
        near = [*self.own(), ("IFLA_NET_NS_FD", inside.namespace())]
        cable = [("VETH_INFO_PEER", {"index": 0, "attrs": near})]
        far.add_link("veth", cable, attributes, repr(self))
        index = far.index(peer)

        def undo() -> None:
            far.delete_link(index, f"the other end of {self!r}")

        with undoing(undo):
            if self.bridge is not None:
                master = [("IFLA_MASTER", outside.index(self.bridge))]
                far.set_link(index, master, f"{peer} on {self.bridge}")
            for address in self.peer_addresses:
                far.add_address(index, address)
            far.set_link(index, [], f"{peer} up", up=True)
            self.furnish(inside, inside.index(self.name))
            far.await_running(peer)
            inside.await_running(self.name)
        return undo

    def _told(self) -> dict[str, object]:
        given = {"peer": self.peer, "bridge": self.bridge, "into": self.into}
        return {name: value for name, value in given.items() if value is not None}


class Macvlan(Interface):
    """A second interface on one of ours, `parent`, with a hardware address of its own.

    `mode` is how those of one parent reach each other: "bridge" directly, "vepa" by the switch
    outside, "private" not at all; with "passthru" there is one alone. None of them reaches the host
    itself. It ends with the child's network. For the rest, see `Interface`.

    Raises: DeclarationError.
    """

    __slots__ = ("mode", "parent")

    def __init__(
        self,
        parent: str,
        name: str = "eth0",
        *,
        mode: str = "bridge",
        addresses: Iterable[str] = (),
        gateway: str | Iterable[str] | None = None,
        routes: Mapping[str, str | None] | None = None,
        mtu: int | None = None,
        mac: str | None = None,
    ) -> None:
        super().__init__(
            name, addresses=addresses, gateway=gateway, routes=routes, mtu=mtu, mac=mac,
        )  # fmt: skip
        self.parent = interface_name(parent)
        if mode not in MODES:
            msg = f"mode is {mode!r}; give {', '.join(MODES)}"
            raise DeclarationError(msg)
        self.mode = mode

    def check(self, outside: Rtnl) -> None:
        """Whether we have its parent."""
        refuse_powerless(self, outside)
        look(outside, "parent", self.parent)

    def make(self, inside: Rtnl, outside: Rtnl) -> Undo:
        """First under a name that nobody has here, where the kernel would look for it, too."""
        name = new_name()
        where = [("IFLA_LINK", outside.index(self.parent)), ("IFLA_NET_NS_FD", inside.namespace())]
        mode = [("IFLA_MACVLAN_MODE", MODES[self.mode])]
        outside.add_link("macvlan", mode, [("IFLA_IFNAME", name), *where], repr(self))
        index = inside.index(name)

        def undo() -> None:
            inside.delete_link(index, repr(self))

        with undoing(undo):
            inside.set_link(index, self.own(), repr(self))
            self.furnish(inside, index)
        return undo

    def _told(self) -> dict[str, object]:
        return {"parent": self.parent, "mode": self.mode}


class Move(Interface):
    """An interface of ours, `interface`, moved into the child's network, as `name` there.

    A move takes an interface's addresses and routes away and leaves it down; it gets those that are
    given, see `Interface`. When the child's network ends, the kernel puts a physical interface into
    the machine's first network, whichever ours is, and takes a virtual one (veth, dummy, vlan)
    away. When the spawn fails, it comes back here, under its old name, and is down.

    It takes CAP_SYS_ADMIN beside CAP_NET_ADMIN. Raises: DeclarationError.
    """

    __slots__ = ("interface",)

    def __init__(
        self,
        interface: str,
        name: str | None = None,
        *,
        addresses: Iterable[str] = (),
        gateway: str | Iterable[str] | None = None,
        routes: Mapping[str, str | None] | None = None,
        mtu: int | None = None,
        mac: str | None = None,
    ) -> None:
        self.interface = interface_name(interface)
        super().__init__(
            interface if name is None else name,
            addresses=addresses, gateway=gateway, routes=routes, mtu=mtu, mac=mac,
        )  # fmt: skip

    def check(self, outside: Rtnl) -> None:
        """Whether we have it."""
        refuse_powerless(self, outside)
        if look(outside, "interface", self.interface)["index"] == 1:
            msg = f"{self.interface} stays: each network has one of its own; write loopback=True"
            raise DeclarationError(msg)

    def make(self, inside: Rtnl, outside: Rtnl) -> Undo:
        """Under a name that nobody has, so that the kernel moves it whatever is there already."""
        # The way back takes our rights in both networks; the child that has opened `inside` may
        # have none in ours.
        from contextlib import closing

        from clonekit.rtnl import Rtnl

        before = outside.look(self.interface)
        ours = Rtnl.inside(inside.namespace())
        name = new_name()
        target = [("IFLA_IFNAME", name), ("IFLA_NET_NS_FD", inside.namespace())]
        home = [("IFLA_IFNAME", self.interface), ("IFLA_NET_NS_FD", outside.namespace())]
        old = [(each, before.get_attr(each)) for each in ("IFLA_MTU", "IFLA_ADDRESS")]

        moved: list[int] = []

        def undo() -> None:
            with closing(ours):
                index = moved[0] if moved else ours.index(name)
                ours.set_link(index, [], f"{self.name} down", up=False)
                undone(lambda: ours.set_link(index, old, f"{self.interface} as it was"))
                ours.set_link(index, home, f"{self.interface} moved back")

        with undoing(undo):
            outside.set_link(before["index"], target, repr(self))
            moved.append(ours.index(name))
            ours.set_link(moved[0], self.own(), repr(self))
            self.furnish(inside, moved[0])
        return undo

    def _told(self) -> dict[str, object]:
        return {"interface": self.interface}
