"""Networks of one's own: interfaces as values, and networks without a process in them.

`spawn(..., namespaces=["net"], network=[Veth(...)])` gives a child its interfaces. A `Network`
lives by its descriptors, may be furnished at any time, and joined by any number of children.
Messages to the kernel are made with pyroute2.
"""

from __future__ import annotations

import os

from clonekit.errors import DeclarationError
from clonekit.interface import Interface, checked, make_all
from clonekit.interfaces import Macvlan, Move, Veth
from clonekit.linux.abi import lib
from clonekit.linux.block import Owned, here
from clonekit.rtnl import Rtnl, require_pyroute2

TYPE_CHECKING = False

__all__ = ["Interface", "Macvlan", "Move", "Network", "Veth", "networks"]


class Network(Owned):
    """A network namespace that is held by a descriptor: `spawn(..., join=network.join)`.

    It ends when it is closed, and no process is in it. `networks()` makes some, and
    `clonekit.netns` finds those that have names.

    Attributes:
        rtnl: a netlink socket in it.
    """

    __slots__ = ("_fd", "_rtnl", "_users")

    def __init__(self, fd: int, *, users: int = -1, rtnl: Rtnl | None = None) -> None:
        """Own a network namespace's descriptor, and that of a user namespace to be joined first."""
        self._fd = fd
        self._users = users
        self._rtnl = rtnl
        self._maker = here()

    def fileno(self) -> int:
        """The descriptor of the network namespace.

        Raises: ValueError when it is closed.
        """
        if self._fd < 0:
            msg = "the network is closed"
            raise ValueError(msg)
        return self._fd

    @property
    def join(self) -> list[int]:
        """What a declaration's `join` takes: the user namespace that owns it first, if ours."""
        own = [self.fileno()]
        return own if self._users < 0 else [self._users, *own]

    @property
    def rtnl(self) -> Rtnl:
        """A netlink socket in it.

        Raises: EPERM without CAP_SYS_ADMIN here and there, for one that we have not made.
        """
        if self._rtnl is None:
            self._rtnl = Rtnl.inside(self.fileno())
        return self._rtnl

    def add(self, *interfaces: Interface) -> None:
        """Make interfaces in it, all or none: RTM_NEWLINK and others on netlink.

        Raises: DeclarationError; EPERM, EEXIST, EOPNOTSUPP. See: rtnetlink(7).
        """
        make_all(checked(interfaces), self.rtnl)

    def close(self) -> None:
        """Close what it owns. Processes that are in it stay there."""
        fds, self._fd, self._users = (self._fd, self._users), -1, -1
        rtnl, self._rtnl = self._rtnl, None
        if rtnl is not None:
            rtnl.close()
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def __repr__(self) -> str:
        return f"<Network {os.fstat(self._fd).st_ino}>" if self._fd >= 0 else "<Network, closed>"


def networks(count: int = 1) -> tuple[Network, ...]:
    """New networks, which can be connected to each other: clone3 and unshare, CLONE_NEWNET.

    Where we may not make them, they belong to one new user namespace, whose uid 0 and gid 0 we are:
    who joins them is root in there. Each of them has a loopback interface that is down.

    A child that waits makes them, and ends: no thread of ours is ever in another network.

    Raises: DeclarationError without pyroute2; EPERM where user namespaces are restricted, ENOSPC.
    See: network_namespaces(7).
    """
    if type(count) is not int or count < 1:
        msg = f"{count!r} networks cannot be made; give a number from 1"
        raise DeclarationError(msg)
    require_pyroute2()
    try:
        return made(count, ["net"])
    except PermissionError:
        return made(count, ["user", "net"])


def made(count: int, namespaces: list[str]) -> tuple[Network, ...]:
    """So many networks, by a child that begins in these new namespaces."""
    import fcntl

    from clonekit.steps.maps import map_gid, map_uid
    from clonekit.steps.opening import open_socket
    from clonekit.waiting import nascent

    new: list[Network] = []
    with nascent(namespaces=namespaces) as child:
        if "user" in namespaces:
            child.do(map_uid(0), map_gid(0))
        for number in range(count):
            if number:
                child.syscall("unshare", lib.CLONE_NEWNET)
            opened = child.do(open_socket(lib.AF_NETLINK, lib.SOCK_DGRAM, name="rtnl"))
            rtnl = Rtnl(opened.fetch())
            opened.close()
            fd = os.dup(rtnl.namespace())
            new.append(Network(fd, rtnl=rtnl))
            if "user" in namespaces:
                new[-1]._users = fcntl.ioctl(fd, lib.NS_GET_USERNS)  # noqa: SLF001 - our own
    return tuple(new)
