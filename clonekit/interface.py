"""What the interfaces of a child's network have in common, and how what was made is undone."""

from __future__ import annotations

import os

from clonekit.addressing import (
    addresses_of,
    interface_name,
    mac_of,
    mtu_of,
    refuse_far_routers,
    routes_of,
)
from clonekit.errors import DeclarationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, TypeAlias

    from clonekit.rtnl import Attributes, Rtnl

    Undo: TypeAlias = Callable[[], object]


class Interface:
    """What each interface in a child's network may have.

    - `name`: its name there, up to 15 bytes.
    - `addresses`: as "10.0.0.2/24" or "fd00::2/64".
    - `gateway`: the router to everything else, "10.0.0.1", or one for each family.
    - `routes`: a mapping of networks to routers, None for what is reached without.
    - `mtu`: the largest packet, in bytes.
    - `mac`: its hardware address, as "02:00:00:00:00:01".
    """

    __slots__ = ("addresses", "mac", "mtu", "name", "routes")

    def __init__(
        self,
        name: str,
        *,
        addresses: Iterable[str],
        gateway: str | Iterable[str] | None,
        routes: Mapping[str, str | None] | None,
        mtu: int | None,
        mac: str | None,
    ) -> None:
        self.name = interface_name(name)
        self.addresses = addresses_of("addresses", addresses)
        self.routes = routes_of(routes or {}, gateway)
        refuse_far_routers(self.name, self.routes, self.addresses)
        self.mtu = None if mtu is None else mtu_of(mtu)
        self.mac = None if mac is None else mac_of(mac)

    def own(self) -> Attributes:
        """What it is made with."""
        attributes: list[tuple[str, Any]] = [("IFLA_IFNAME", self.name)]
        if self.mtu is not None:
            attributes.append(("IFLA_MTU", self.mtu))
        if self.mac is not None:
            attributes.append(("IFLA_ADDRESS", self.mac))
        return attributes

    def furnish(self, inside: Rtnl, index: int) -> None:
        """What it gets once it is in the child's network."""
        for address in self.addresses:
            inside.add_address(index, address)
        inside.set_link(index, [], f"{self.name} up", up=True)
        for network, router in self.routes:
            inside.add_route(index, network, router)

    def check(self, outside: Rtnl) -> None:
        """Refuse what cannot be here, before anything is made."""
        raise NotImplementedError

    def make(self, inside: Rtnl, outside: Rtnl) -> Undo:
        """Make it in the network of `inside`; `outside` is ours."""
        raise NotImplementedError

    def __repr__(self) -> str:
        told = [repr(self.name), *(f"{name}={value!r}" for name, value in self._told().items())]
        if self.addresses:
            told.append(f"addresses={[str(address) for address in self.addresses]}")
        return f"{type(self).__name__}({', '.join(told)})"

    def _told(self) -> dict[str, object]:
        """What its representation shows beside the name."""
        return {}


class undoing:  # noqa: N801 - it reads as a statement
    """Undo where the block fails."""

    __slots__ = ("_undo",)

    def __init__(self, undo: Undo) -> None:
        self._undo = undo

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            undone(self._undo)


def undone(undo: Undo) -> None:
    """Undo; what cannot be undone is gone already, or goes with the child's network."""
    from contextlib import suppress

    with suppress(OSError):
        undo()


def new_name() -> str:
    """A name that no interface has."""
    return f"ck{os.urandom(6).hex()}"


def refuse_powerless(interface: Interface, outside: Rtnl) -> None:
    """The host's interfaces are its administrator's."""
    if not outside.governs():
        msg = (
            f"{interface!r}: without CAP_NET_ADMIN nothing is connected to the network that we are "
            "in; write loopback=True for a network of one, or connect two that are made by "
            "clonekit.network.networks(2)"
        )
        raise DeclarationError(msg)


def look(outside: Rtnl, field: str, name: str) -> Any:
    """What the kernel tells of an interface of ours, which must be there."""
    try:
        return outside.look(name)
    except OSError as error:
        msg = f"{field}: {error.strerror}; give an interface that this process sees"
        raise DeclarationError(msg) from None


def is_here(outside: Rtnl, name: str) -> bool:
    """Whether we have an interface of this name."""
    try:
        outside.look(name)
    except OSError:
        return False
    return True


def checked(interfaces: Interface | Iterable[Interface]) -> list[Interface]:
    """Interfaces that can be made from here.

    Raises: DeclarationError.
    """
    from contextlib import closing

    from clonekit.rtnl import Rtnl, require_pyroute2

    require_pyroute2()
    values = [interfaces] if isinstance(interfaces, Interface) else list(interfaces)
    names: set[str] = {"lo"}
    with closing(Rtnl.here()) as outside:
        for value in values:
            if not isinstance(value, Interface):
                msg = f"{value!r} is no interface; give Veth(...), Macvlan(...) or Move(...)"
                raise DeclarationError(msg)
            value.check(outside)
            if value.name in names:
                msg = f"two interfaces would be {value.name}; give {value!r} another name"
                raise DeclarationError(msg)
            names.add(value.name)
    return values


def make_all(interfaces: Iterable[Interface], inside: Rtnl) -> Undo:
    """Make interfaces in another network than ours, all or none, and give what undoes it.

    Raises: OSError.
    """
    from clonekit.rtnl import Rtnl

    outside = Rtnl.here()
    undos: list[Undo] = [outside.close]

    def undo() -> None:
        while undos:
            undone(undos.pop())

    with undoing(undo):
        namespace = inside.namespace()
        if outside.governs() and os.path.sameopenfile(outside.namespace(), namespace):
            msg = 'that network is the one that we are in; add "net" to namespaces'
            raise DeclarationError(msg)
        undos.extend(interface.make(inside, outside) for interface in interfaces)
    return undo
