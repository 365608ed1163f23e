"""Names, addresses and routes of network interfaces, checked as they are given."""

from __future__ import annotations

from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from ipaddress import (
        IPv4Address,
        IPv4Interface,
        IPv4Network,
        IPv6Address,
        IPv6Interface,
        IPv6Network,
    )
    from typing import TypeAlias

    Address: TypeAlias = IPv4Interface | IPv6Interface
    Route: TypeAlias = tuple[IPv4Network | IPv6Network, IPv4Address | IPv6Address | None]

LEAST_MTU, MOST_MTU = 68, 65535
MAC_BYTES = 6


def interface_name(name: object) -> str:
    """A name that an interface may have. A "%" would be a pattern to the kernel."""
    if (
        not isinstance(name, str)
        or not 0 < len(name.encode()) < lib.IFNAMSIZ
        or name in {".", ".."}
        or any(c in "/:%" or c.isspace() or not c.isprintable() for c in name)
    ):
        msg = (
            f"{name!r} cannot name an interface; give 1 to {lib.IFNAMSIZ - 1} bytes, "
            "without space, slash, colon and percent sign"
        )
        raise DeclarationError(msg)
    return name


def addresses_of(field: str, texts: Iterable[str]) -> list[Address]:
    """Addresses with the length of their network."""
    import ipaddress

    if isinstance(texts, str):
        msg = f"{field} is {texts!r}; give a list, as [{texts!r}]"
        raise DeclarationError(msg)
    addresses = []
    for text in texts:
        try:
            address = ipaddress.ip_interface(text)
        except ValueError:
            address = None
        if address is None or "/" not in str(text):
            msg = f"{field}: {text!r} is no address of an interface; write it as '10.0.0.2/24'"
            raise DeclarationError(msg)
        addresses.append(address)
    return addresses


def routes_of(routes: Mapping[str, str | None], gateway: str | Iterable[str] | None) -> list[Route]:
    """Routes, and those of everything else behind them."""
    import ipaddress

    made: list[Route] = []
    for text, via in routes.items():
        try:
            network = ipaddress.ip_network(text)
        except ValueError as error:
            msg = f"routes: {text!r} is no network ({error}); write it as '10.1.0.0/16'"
            raise DeclarationError(msg) from None
        made.append((network, None if via is None else router_of(via)))
    for text in [gateway] if isinstance(gateway, str) else gateway or ():
        router = router_of(text)
        all_else = "0.0.0.0/0" if router.version == 4 else "::/0"  # noqa: PLR2004 - IPv4
        made.append((ipaddress.ip_network(all_else), router))
    for network, known in made:
        if known is not None and known.version != network.version:
            msg = f"routes: {network} cannot be reached by {known}; give a router of its family"
            raise DeclarationError(msg)
    return made


def router_of(text: str) -> IPv4Address | IPv6Address:
    """The address of a router."""
    import ipaddress

    try:
        return ipaddress.ip_address(text)
    except ValueError:
        msg = f"{text!r} is no address of a router; write it as '10.0.0.1'"
        raise DeclarationError(msg) from None


def refuse_far_routers(name: str, routes: Iterable[Route], addresses: Iterable[Address]) -> None:
    """The kernel takes only a router that is reached directly, and does not say which is not."""
    near = [address.network for address in addresses]
    for _, router in routes:
        if router is None or router.is_link_local:
            continue
        if not any(router in network for network in near):
            told = ", ".join(map(str, near)) or "it has none"
            msg = f"the router {router} is in no network of {name}'s addresses ({told})"
            raise DeclarationError(msg)


def mtu_of(mtu: object) -> int:
    """The largest packet, in bytes."""
    if type(mtu) is not int or not LEAST_MTU <= mtu <= MOST_MTU:
        msg = f"mtu is {mtu!r}; give a number of bytes from {LEAST_MTU} to {MOST_MTU}"
        raise DeclarationError(msg)
    return mtu


def mac_of(mac: object) -> str:
    """A hardware address of one interface, not of a group."""
    parts = mac.split(":") if isinstance(mac, str) else []
    try:
        content = [int(part, 16) for part in parts if len(part) == 2]  # noqa: PLR2004 - two digits
    except ValueError:
        content = []
    if len(parts) != MAC_BYTES or len(content) != MAC_BYTES or content[0] & 1 or not any(content):
        msg = f"mac is {mac!r}; write it as '02:00:00:00:00:01', its first number even"
        raise DeclarationError(msg)
    return ":".join(parts).lower()
