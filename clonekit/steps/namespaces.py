"""Namespaces made at the clone or joined by the child, and the cgroup it begins in."""

from __future__ import annotations

import fcntl
import os

from clonekit.errors import DeclarationError
from clonekit.linux.abi import ffi, lib, refuse_nul
from clonekit.linux.block import here, is_here
from clonekit.records import Call, Clone, Fd, OwnMemory, Slot
from clonekit.steps.opening import write_file
from clonekit.steps.step import Option, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from clonekit.records import Records

#: The kernel's flags by the names of /proc/PID/ns.
FLAGS: dict[str, int] = {
    "user": lib.CLONE_NEWUSER,
    "mnt": lib.CLONE_NEWNS,
    "pid": lib.CLONE_NEWPID,
    "net": lib.CLONE_NEWNET,
    "ipc": lib.CLONE_NEWIPC,
    "uts": lib.CLONE_NEWUTS,
    "cgroup": lib.CLONE_NEWCGROUP,
    "time": lib.CLONE_NEWTIME,
}
#: What the OCI runtime specification calls the same.
OCI_NAMES = {"mount": "mnt", "network": "net"}
CLOCKS = ("monotonic", "boottime")
#: Those that a process which shares its memory cannot join, or not for itself.
OF_OWN_MEMORY = lib.CLONE_NEWPID | lib.CLONE_NEWTIME
#: Where the first stage tells its parent of the child that takes its place.
SUCCESSOR_AT = lib.CK_PLAN_AT + ffi.offsetof("struct ck_frame", "answer")


def namespace(name: str) -> int:
    """The clone flag of a namespace's name."""
    name = OCI_NAMES.get(name, name)
    if name not in FLAGS:
        msg = f"{name!r} is no namespace; use {', '.join(FLAGS)}"
        raise DeclarationError(msg)
    return FLAGS[name]


def parse_names(text: str) -> list[str]:
    """`user,mnt,pid`."""
    return [name for name in text.split(",") if name]


@step(
    phase="clone",
    field="namespaces",
    lasting=True,
    ours=True,
    option=Option("NAMES", parse_names),
)
def new_namespaces(names: Iterable[str] | str) -> Records:
    """The child begins in new namespaces, by the names of /proc/PID/ns: clone3's CLONE_NEW flags.

    The first process of a PID namespace gets no signal that it has no handler for, from inside,
    and must reap.

    Raises: EPERM without CAP_SYS_ADMIN, or where user namespaces are restricted; ENOSPC.
    Since: time Linux 5.6. See: clone(2), namespaces(7).
    """
    flags = 0
    for name in [names] if isinstance(names, str) else names:
        flags |= namespace(name)
    yield Clone(flags)


@step(phase="clone", field="empty_mounts", lasting=True)
def empty_mount_namespace() -> Records:
    """The child begins in a mount namespace with nothing mounted: CLONE_EMPTY_MNTNS.

    Since: Linux 7.1. See: clone(2).
    """
    yield Clone(lib.CLONE_EMPTY_MNTNS | lib.CLONE_NEWNS)


@step(phase="clone", field="cgroup", option=Option("DIR"))
def enter_cgroup(group: str | os.PathLike[str] | object) -> Records:
    """The child begins in this cgroup, a directory of the v2 hierarchy: CLONE_INTO_CGROUP.

    A path, a `clonekit.Cgroup`, a descriptor of ours or a Slot.

    Raises: EBUSY for a group whose children have domain controllers, EACCES, ENOENT.
    Since: Linux 5.7. See: clone(2), cgroups(7).
    """
    if isinstance(group, str | bytes | os.PathLike):
        try:
            fd = os.open(group, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            msg = f"cgroup: {os.fsdecode(group)}: {error.strerror}; give a directory of cgroup2"
            raise DeclarationError(msg) from None
        yield Clone(lib.CLONE_INTO_CGROUP, cgroup=Fd(fd), owner=OwnedFd(fd))
        return
    yield Clone(lib.CLONE_INTO_CGROUP, cgroup=Fd(group), owner=group)


class OwnedFd:
    """A descriptor that closes with the program that needs it."""

    __slots__ = ("_file", "_maker", "fd")

    def __init__(self, fd: int) -> None:
        self._file: tuple[int, int] | None = None
        self._maker = here()
        self.fd = fd
        self._file = self._identity()

    def _identity(self) -> tuple[int, int]:
        status = os.fstat(self.fd)
        return status.st_dev, status.st_ino

    def __del__(self) -> None:
        try:
            # Else the number is another's by now, or may be: in a copy of us.
            if is_here(self._maker) and self._file in (None, self._identity()):
                os.close(self.fd)
        except OSError:
            pass


def kind_of(fd: int) -> int:
    """The flag of the namespace that a descriptor of /proc/PID/ns is for; 0 for a pidfd."""
    try:
        return fcntl.ioctl(fd, lib.NS_GET_NSTYPE)
    except OSError:
        return 0


def joins(value: object) -> Iterable[tuple[object, ...]]:
    """A declaration's `join`: descriptors of namespaces, or (pidfd, names) pairs, in order."""
    values = value if isinstance(value, list | tuple) else [value]
    return [tuple(entry) if isinstance(entry, tuple | list) else (entry,) for entry in values]


def is_entered(name: str, names: Iterable[str] | str, joined: object) -> bool:
    """Whether a declaration's `namespaces` make one of this kind, or its `join` may enter one."""
    flag = namespace(name)
    if flag in {namespace(each) for each in ([names] if isinstance(names, str) else names)}:
        return True
    return any(flag in kinds or 0 in kinds for kinds in map(kinds_of, joins(joined)))


def kinds_of(entry: tuple[Any, ...]) -> set[int]:
    """The namespaces that an entry of `join` leads into; 0 for what cannot be told."""
    fd, *names = entry
    if names:
        return {namespace(each) for each in ([names[0]] if isinstance(names[0], str) else names[0])}
    number = fd if isinstance(fd, int) else getattr(fd, "fileno", lambda: -1)()
    return {kind_of(number) if number >= 0 else 0}


def parse_join(text: str) -> tuple[object, ...]:
    """`FD`, or `FD:net,ipc` for a pidfd."""
    fd, _, names = text.partition(":")
    return (int(fd), parse_names(names)) if names else (int(fd),)


@step(
    phase="join",
    field="join",
    each=joins,
    apart=True,
    option=Option("FD[:NAMES]", parse_join, list),
)
def join_namespaces(fd: object, names: Iterable[str] | str = ()) -> Records:
    """Join a namespace by its descriptor, or those of a process by pidfd and names: setns.

    A user namespace first, if its rights are needed for the others. A time namespace, and a PID
    namespace, are joined from the first stage; into the latter it goes by a child of its own, which
    takes its place; the init of such a namespace, once killed, ends when we have waited for the
    program. Of a Slot for one of these two, give the name.

    Raises: EPERM, EINVAL; ENOMEM for a PID namespace whose init has ended.
    Since: pidfd Linux 5.8. See: setns(2).
    """
    flags = 0
    for name in [names] if isinstance(names, str) else names:
        flags |= namespace(name)
    fd = Fd(fd)
    kind = flags or (kind_of(fd.of) if isinstance(fd.of, int) else 0)
    if kind & OF_OWN_MEMORY:
        yield OwnMemory()
    yield Call("setns", fd, kind)
    if kind & lib.CLONE_NEWPID:
        flags = lib.CLONE_PARENT | lib.CLONE_PARENT_SETTID | lib.SIGCHLD
        yield Call("clone", flags, 0, SUCCESSOR_AT, 0, 0, to=Slot())  # S6 of cdefs/stage.c


@step(phase="namespaces", field="hostname", lasting=True, option=Option("NAME"))
def set_host_name(name: str) -> Records:
    """The host name, in the child's UTS namespace: sethostname.

    Raises: EPERM without CAP_SYS_ADMIN there, EINVAL above 64 bytes. See: sethostname(2).
    """
    text = refuse_nul(os.fsencode(name), "a host name")
    yield Call("sethostname", text, len(text) - 1)


@step(phase="namespaces", field="domainname", lasting=True, option=Option("NAME"))
def set_domain_name(name: str) -> Records:
    """The NIS domain name, in the child's UTS namespace: setdomainname.

    Raises: EPERM without CAP_SYS_ADMIN there, EINVAL above 64 bytes. See: setdomainname(2).
    """
    text = refuse_nul(os.fsencode(name), "a domain name")
    yield Call("setdomainname", text, len(text) - 1)


def parse_offset(text: str) -> tuple[str, float]:
    """`monotonic=86400`."""
    clock, _, seconds = text.partition("=")
    return clock, float(seconds)


def clock_offsets(offsets: Mapping[str, float]) -> Iterable[tuple[float, ...]]:
    """A declaration's `time_offsets`, in the order of the step's arguments."""
    if not set(offsets) <= set(CLOCKS):
        msg = f"time_offsets: {offsets!r}: only {' and '.join(CLOCKS)} have an offset"
        raise DeclarationError(msg)
    return [tuple(offsets.get(clock, 0) for clock in CLOCKS)]


@step(
    phase="namespaces",
    field="time_offsets",
    lasting=True,
    each=clock_offsets,
    option=Option("CLOCK=SECONDS", parse_offset, dict),
)
def new_time_namespace(monotonic: float = 0, boottime: float = 0) -> Records:
    """A time namespace whose clocks are ahead by these seconds: unshare, /proc/self/timens_offsets.

    The program is in it from its first instruction. Do not name "time" in `namespaces` too: there
    the clocks could no longer be set.

    Raises: EPERM without CAP_SYS_TIME, ERANGE. Since: Linux 6.2 for exec. See: time_namespaces(7).
    """
    lines = []
    for clock, seconds in (("monotonic", monotonic), ("boottime", boottime)):
        nanoseconds = round(seconds * 1_000_000_000)
        lines.append(f"{clock} {nanoseconds // 1_000_000_000} {nanoseconds % 1_000_000_000}\n")
    yield Call("unshare", lib.CLONE_NEWTIME)
    yield from write_file("/proc/self/timens_offsets", "".join(lines).encode()).records()
