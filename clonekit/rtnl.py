"""A netlink socket of one network namespace, and the few requests that are made of it.

The messages are pyroute2's; the socket is a plain one that waits. So whoever spawns may have an
event loop running in the same thread, nothing forks, and an error is an OSError.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time

from clonekit.errors import DeclarationError
from clonekit.linux.abi import call, lib
from clonekit.linux.block import Owned, here

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, TypeAlias

    Attributes: TypeAlias = Sequence[tuple[str, Any]]

#: Of linux/sockios.h: a descriptor of the network namespace of a socket (Linux 4.9).
SIOCGSKNS = 0x894C
# Of linux/netlink.h and linux/socket.h.
_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_REQUEST, _ACK, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x200, 0x400
_ERROR, _TOLD_MORE, _MESSAGE_TEXT = 2, 0x200, 1
#: struct nlmsghdr, and what an answer of NLMSG_ERROR holds before its attributes.
_HEADER = struct.Struct("=IHHII")
_ANSWERED = _HEADER.size + 4 + _HEADER.size
_LARGEST = 1 << 16
#: In seconds.
_LONGEST_START, _SOON = 1.0, 0.0002


def require_pyroute2() -> None:
    """Load pyroute2, which makes the messages.

    Raises: DeclarationError where it is not installed.
    """
    try:
        import pyroute2.netlink.rtnl.ifinfmsg  # noqa: F401 - it is slow, and is needed soon
    except ImportError as error:
        msg = f"a network is furnished with pyroute2: {error}; pip install 'clonekit[net]'"
        raise DeclarationError(msg) from error


class Rtnl(Owned):
    """A netlink socket, owned by this object.

    A request acts in the namespace in which the socket was opened. The kernel asks for
    CAP_NET_ADMIN there twice: of whoever opened it, when that was, and of us.
    """

    __slots__ = ("_asked", "_namespace", "_socket")

    def __init__(self, fd: int) -> None:
        import socket

        self._asked = 0
        self._namespace = -1
        self._socket = socket.socket(fileno=fd)
        self._maker = here()
        for option in (_CAP_ACK, _EXT_ACK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)

    @classmethod
    def here(cls) -> Rtnl:
        """One of the network namespace of the calling thread."""
        import socket

        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        return cls(socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE).detach())

    @classmethod
    def inside(cls, namespace: int) -> Rtnl:
        """One of another network namespace, by its descriptor, opened by a thread that enters it.

        Raises: EPERM without CAP_SYS_ADMIN here and there.
        """
        from threading import Thread

        made: list[Rtnl | OSError] = []

        def enter() -> None:
            try:
                call("setns", namespace, lib.CLONE_NEWNET)
                made.append(cls.here())
            except OSError as error:
                made.append(error)

        thread = Thread(target=enter, name="clonekit: in a network namespace, and soon gone")
        thread.start()
        thread.join()
        if isinstance(made[0], OSError):
            raise made[0]
        return made[0]

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def namespace(self) -> int:
        """A descriptor of its network namespace, which this object owns: SIOCGSKNS.

        Raises: EPERM without CAP_NET_ADMIN there.
        """
        if self._namespace < 0:
            self._namespace = fcntl.ioctl(self._socket, SIOCGSKNS)
        return self._namespace

    def governs(self) -> bool:
        """Whether we have CAP_NET_ADMIN in its network namespace."""
        try:
            self.namespace()
        except PermissionError:
            return False
        return True

    def close(self) -> None:
        """Close what it owns."""
        self._socket.close()
        namespace, self._namespace = self._namespace, -1
        if namespace >= 0:
            os.close(namespace)

    def __del__(self) -> None:
        if hasattr(self, "_maker") and not self.is_own():
            self._socket.detach()  # else it closes by itself
        super().__del__()

    # Requests. Each raises OSError with the kernel's errno, and its words where it has some.

    def look(self, name: str) -> Any:
        """What the kernel tells of the interface of this name."""
        from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

        answer = self._ask(link_message([("IFLA_IFNAME", name)]), "GETLINK", 0, name)
        message = ifinfmsg(answer)
        message.decode()
        return message

    def index(self, name: str) -> int:
        """The number of the interface of this name."""
        return int(self.look(name)["index"])

    def await_running(self, name: str) -> None:
        """Wait until an interface that is up sends what it is given.

        The kernel sees to that a moment after the other end of a cable is up, and throws packets
        away until then.
        """
        until = time.monotonic() + _LONGEST_START
        while self.look(name).get_attr("IFLA_OPERSTATE") != "UP" and time.monotonic() < until:
            time.sleep(_SOON)

    def add_link(self, kind: str, data: Attributes, attributes: Attributes, what: str) -> None:
        """Make an interface."""
        information = [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", {"attrs": [*data]})]
        attributes = [*attributes, ("IFLA_LINKINFO", {"attrs": information})]
        self._ask(link_message(attributes), "NEWLINK", _CREATE | _EXCLUSIVE, what)

    def set_link(
        self, index: int, attributes: Attributes, what: str, *, up: bool | None = None
    ) -> None:
        """Change an interface, and with `up` bring it up (True) or down."""
        self._ask(link_message(attributes, index, up=up), "SETLINK", 0, what)

    def delete_link(self, index: int, what: str) -> None:
        """Take an interface away."""
        self._ask(link_message([], index), "DELLINK", 0, what)

    def add_address(self, index: int, address: Any) -> None:
        """Give an interface an address: an `ipaddress` interface."""
        from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_NODAD, ifaddrmsg

        message = ifaddrmsg()
        message["family"] = family_of(address)
        message["prefixlen"] = address.network.prefixlen
        message["index"] = index
        # An address that is only tentative until its neighbours have been asked cannot be bound
        # yet: the network is to be ready when the program begins.
        message["flags"] = IFA_F_NODAD if address.version == 6 else 0  # noqa: PLR2004
        message["attrs"] = [("IFA_ADDRESS", str(address.ip)), ("IFA_LOCAL", str(address.ip))]
        self._ask(message, "NEWADDR", _CREATE | _EXCLUSIVE, f"address {address}")

    def add_route(self, index: int, destination: Any, via: Any) -> None:
        """A route to an `ipaddress` network by an interface, through a router or without (None)."""
        from pyroute2.netlink import rtnl
        from pyroute2.netlink.rtnl.rtmsg import rtmsg

        message = rtmsg()
        message["family"] = family_of(destination)
        message["dst_len"] = destination.prefixlen
        message["table"] = 254  # RT_TABLE_MAIN
        message["proto"] = rtnl.rt_proto["static"]
        message["type"] = rtnl.rt_type["unicast"]
        message["scope"] = rtnl.rt_scope["link" if via is None else "universe"]
        attributes = [("RTA_DST", str(destination.network_address)), ("RTA_OIF", index)]
        if via is not None:
            attributes.append(("RTA_GATEWAY", str(via)))
        message["attrs"] = attributes if destination.prefixlen else attributes[1:]
        told = f"route to {destination}" + (f" via {via}" if via is not None else "")
        self._ask(message, "NEWROUTE", _CREATE | _EXCLUSIVE, told)

    def _ask(self, message: Any, request: str, flags: int, what: str) -> bytes:
        """Send a request, wait for its end, and give what came before that.

        The answer to an earlier one, from which a signal's handler took us away, is passed over.
        """
        from pyroute2.netlink import rtnl

        message["header"]["type"] = getattr(rtnl, f"RTM_{request}")
        message["header"]["flags"] = _REQUEST | _ACK | flags
        self._asked += 1
        message["header"]["sequence_number"] = self._asked
        message.encode()
        self._socket.send(message.data)
        answer = b""
        while True:
            block, (sender, _) = self._socket.recvfrom(_LARGEST)
            at = 0
            while at < len(block) and sender == 0:  # the kernel; a process there may write, too
                length, kind, told, number, _ = _HEADER.unpack_from(block, at)
                one = block[at : at + length]
                at += -(-length // 4) * 4
                if number != self._asked:
                    continue
                if kind == _ERROR:
                    refuse(one, told, what)
                    return answer
                answer = one


def refuse(answer: bytes, told: int, what: str) -> None:
    """Raise what an answer says, if it is an error."""
    number = -struct.unpack_from("<i", answer, _HEADER.size)[0]
    if not number:
        return
    words = ""
    at = _ANSWERED
    while told & _TOLD_MORE and at < len(answer):
        length, kind = struct.unpack_from("=HH", answer, at)
        if kind & 0x3FFF == _MESSAGE_TEXT:
            words = answer[at + 4 : at + length].rstrip(b"\0").decode(errors="replace")
        at += max(4, -(-length // 4) * 4)
    text = f"{what}: {os.strerror(number)}"
    raise OSError(number, f"{text} ({words})" if words else text)


def link_message(attributes: Attributes, index: int = 0, *, up: bool | None = None) -> Any:
    """A message about an interface."""
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    message = ifinfmsg()
    message["index"] = index
    message["flags"], message["change"] = bool(up) * lib.IFF_UP, (up is not None) * lib.IFF_UP
    message["attrs"] = [*attributes]
    return message


def family_of(address: Any) -> int:
    """The address family of an `ipaddress` object."""
    import socket

    return int(socket.AF_INET6 if address.version == 6 else socket.AF_INET)  # noqa: PLR2004
