"""What stands in a new network: its loopback, and the interfaces that the parent puts there."""

from __future__ import annotations

import struct

from clonekit.interface import Interface, checked, make_all, undoing
from clonekit.linux.abi import lib
from clonekit.records import Ask, Call, Slot
from clonekit.steps.step import NO_OPTION, Option, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from clonekit.records import Asking, Records
    from clonekit.rtnl import Rtnl

#: struct ifreq with ifr_flags: its name, the flags, and room for the union's largest member.
IFREQ = struct.Struct("<16sH22x")


@step(phase="namespaces", field="loopback", lasting=True, option=Option())
def loopback_up() -> Records:
    """Bring up the loopback interface of the child's network: ioctl SIOCSIFFLAGS.

    It has 127.0.0.1 and ::1 then.

    Raises: EPERM without CAP_NET_ADMIN there. See: netdevice(7).
    """
    fd = Slot()
    yield Call("socket", lib.AF_INET, lib.SOCK_DGRAM | lib.SOCK_CLOEXEC, 0, to=fd)
    yield Call("ioctl", fd, lib.SIOCSIFFLAGS, IFREQ.pack(b"lo", lib.IFF_UP))
    yield Call("close", fd)


@step(phase="namespaces", field="network", asks=True, option=NO_OPTION)
def furnish_network(interfaces: Interface | Iterable[Interface]) -> Records:
    """Interfaces in the child's network, made by its parent: RTM_NEWLINK and others on netlink.

    A list of `Veth`, `Macvlan` and `Move` of `clonekit.network`. The child opens a netlink socket
    in its network, and the parent fetches that: nobody enters a namespace. All are made, with
    their addresses and routes, or none; when the spawn fails later, they are taken away again.
    It takes pyroute2.

    Raises: EPERM without CAP_NET_ADMIN where we are, or where the child joins a user namespace
        without our being root; EEXIST, EOPNOTSUPP (a kind of interface that the kernel lacks).
    Since: pidfd_getfd Linux 5.6. See: rtnetlink(7), pidfd_getfd(2).
    """
    values = checked(interfaces)
    socket = Slot()

    def act(child: Asking) -> Callable[[], object]:
        inside = fetched(child, socket)
        with undoing(inside.close):
            undo = make_all(values, inside)

        def leave() -> None:
            undo()
            inside.close()

        return leave

    kind = lib.SOCK_DGRAM | lib.SOCK_CLOEXEC
    yield Call("socket", lib.AF_NETLINK, kind, 0, to=socket)
    yield Ask(f"make {', '.join(map(repr, values)) or 'no interface'} in its network", act, socket)
    yield Call("close", socket)


def fetched(child: Asking, slot: Slot) -> Rtnl:
    """The child's netlink socket.

    Raises: EPERM.
    """
    from clonekit.linux.pidfd import pidfd_getfd
    from clonekit.rtnl import Rtnl

    try:
        return Rtnl(pidfd_getfd(child.pidfd, child.value(slot)))
    except PermissionError as error:
        msg = (
            "we may not reach the child's network: while a child is in another's user namespace, "
            "our memory, which it shares, is untraceable; make the network before, with "
            "clonekit.network.networks(), and join it"
        )
        raise PermissionError(error.errno, msg) from error
