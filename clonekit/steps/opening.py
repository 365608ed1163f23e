"""Descriptors made by the child, in the order that you say.

Every descriptor opened here is close-on-exec: it reaches the program only through the vector. A
step's result can be named (`name="log"`) and used by later steps as `Slot("log")`.
"""

from __future__ import annotations

import os
import struct

from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib, refuse_nul
from clonekit.records import Call, Data, Fd, Move, Scratch, Slot
from clonekit.steps.step import Option, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clonekit.records import Records

OPEN_HOW = struct.Struct("<3Q")
MSGHDR = struct.Struct("<QIxxxxQQQQi4x")
CMSGHDR = struct.Struct("<Qii")
MOST_SENT = 253  # the kernel's SCM_MAX_FD


def path_of(path: str | bytes | os.PathLike[str]) -> bytes:
    """A path as the kernel takes it."""
    text = os.fsencode(path)
    if not text:
        msg = "an empty path names nothing; write '.' for the current directory"
        raise DeclarationError(msg)
    return refuse_nul(text, "a path")


def named(name: str | None) -> Slot | None:
    """The slot for a step's result, if it has a name."""
    return None if name is None else Slot(name)


def directory(dirfd: object) -> Fd | int:
    """The directory that a relative path starts from."""
    return lib.AT_FDCWD if dirfd is None else Fd(dirfd)


@step(phase="opening")
def open_file(
    path: str | bytes | os.PathLike[str],
    flags: int = os.O_RDONLY,
    mode: int = 0o666,
    *,
    dirfd: object = None,
    resolve: int | None = None,
    name: str | None = None,
) -> Records:
    """Open a file: openat, or openat2 where `resolve` limits how the path is followed.

    The path is the child's at this point of the order; `dirfd` is ours or a Slot.

    Raises: what open raises; ELOOP, EXDEV for what `resolve` forbids.
    Since: openat2 Linux 5.6. See: open(2), openat2(2).
    """
    flags |= os.O_CLOEXEC
    if resolve is None:
        yield Call(
            "openat", directory(dirfd), path_of(path), flags, mode, to=named(name), retry=True
        )
        return
    mode = mode if flags & (os.O_CREAT | os.O_TMPFILE) else 0
    how = Data(OPEN_HOW.pack(flags, mode, resolve))
    yield Call(
        "openat2", directory(dirfd), path_of(path), how, OPEN_HOW.size, to=named(name),
        retry=True,
    )  # fmt: skip


@step(phase="opening")
def open_socket(family: int, type: int, protocol: int = 0, *, name: str) -> Records:  # noqa: A002
    """Make a socket: socket.

    Raises: EAFNOSUPPORT, EPERM (a raw socket without CAP_NET_RAW). See: socket(2).
    """
    yield Call("socket", family, type | lib.SOCK_CLOEXEC, protocol, to=Slot(name))


def address_of(address: str | bytes | tuple[str, int]) -> bytes:
    """A socket address as the kernel takes it: `(host, port)` in numbers, or a unix path.

    A unix path that starts with NUL is an abstract name.
    """
    if isinstance(address, str | bytes):
        path = os.fsencode(address)
        return struct.pack("<H", lib.AF_UNIX) + path + (b"" if path[:1] == b"\0" else b"\0")
    import socket

    host, port = address
    if ":" in host:
        packed = socket.inet_pton(socket.AF_INET6, host)
        return struct.pack("<H", socket.AF_INET6) + struct.pack(">HI", port, 0) + packed + bytes(4)
    try:
        packed = socket.inet_pton(socket.AF_INET, host)
    except OSError:
        msg = f"{host!r} is not an address in numbers; names are looked up by you, not in the child"
        raise DeclarationError(msg) from None
    return struct.pack("<H", socket.AF_INET) + struct.pack(">H", port) + packed + bytes(8)


@step(phase="opening")
def bind_socket(fd: object, address: str | bytes | tuple[str, int]) -> Records:
    """Bind a socket to an address, `(host, port)` in numbers or a unix path: bind.

    Raises: EADDRINUSE, EACCES (a port below 1024 without CAP_NET_BIND_SERVICE). See: bind(2).
    """
    packed = address_of(address)
    yield Call("bind", Fd(fd), packed, len(packed))


@step(phase="opening")
def listen_socket(fd: object, backlog: int = 128) -> Records:
    """Let a bound socket take connections: listen.

    Raises: EADDRINUSE, EOPNOTSUPP. See: listen(2).
    """
    yield Call("listen", Fd(fd), backlog)


@step(phase="opening")
def connect_socket(fd: object, address: str | bytes | tuple[str, int]) -> Records:
    """Connect a socket: connect. It may block, and the spawning thread with it.

    Raises: ECONNREFUSED, ENOENT, ETIMEDOUT. See: connect(2).
    """
    packed = address_of(address)
    yield Call("connect", Fd(fd), packed, len(packed))


@step(phase="opening")
def set_socket_option(fd: object, level: int, option: int, value: int | bytes) -> Records:
    """Set a socket's option; an int is passed as a C int: setsockopt.

    Raises: ENOPROTOOPT, EINVAL, EPERM. See: setsockopt(2).
    """
    packed = struct.pack("<i", value) if isinstance(value, int) else value
    yield Call("setsockopt", Fd(fd), level, option, packed, len(packed))


@step(phase="opening")
def open_pipe(reader: str, writer: str, flags: int = 0) -> Records:
    """Make a pipe; its ends become the slots `reader` and `writer`: pipe2.

    Raises: EMFILE, ENFILE. See: pipe(2).
    """
    ends = Scratch(bytes(8))
    yield Call("pipe2", ends, flags | os.O_CLOEXEC)
    yield Move(ends.at(0), to=Slot(reader))
    yield Move(ends.at(4), to=Slot(writer))


@step(phase="opening")
def receive_descriptors(fd: object, *names: str) -> Records:
    """Receive descriptors over a unix socket, as many as there are names: recvmsg, SCM_RIGHTS.

    They become the slots of these names, close-on-exec, in the order in which they were sent with
    one message of one byte. It waits for the message; fcntl sees whether the last has come.

    Raises: EAGAIN from a socket that does not wait; EBADF if not all have come (RLIMIT_NOFILE).
    See: unix(7), recvmsg(2).
    """
    if not 0 < len(names) <= MOST_SENT:
        msg = f"receive_descriptors: {len(names)} names; one message brings 1 to {MOST_SENT}"
        raise DeclarationError(msg)
    numbers = struct.pack("<i", -1) * len(names)
    control = Scratch(CMSGHDR.pack(CMSGHDR.size + len(numbers), 0, 0) + numbers)
    byte = Scratch(bytes(8))
    vector = Scratch(struct.pack("<QQ", 0, 1), {0: byte})
    header = Scratch(
        MSGHDR.pack(0, 0, 0, 1, 0, CMSGHDR.size + -len(numbers) % 8 + len(numbers), 0),
        {16: vector, 32: control},
    )
    yield Call("recvmsg", Fd(fd), header, lib.MSG_CMSG_CLOEXEC, expect=1, retry=True)
    for n, name in enumerate(names):
        yield Move(control.at(CMSGHDR.size + 4 * n), to=Slot(name))
    yield Call("fcntl", Fd(Slot(names[-1])), lib.F_GETFD, 0)


@step(phase="opening")
def open_memory(label: str, flags: int = 0, *, name: str) -> Records:
    """Make a file in memory; `label` is what /proc shows: memfd_create.

    Raises: EINVAL, ENOMEM. Since: Linux 3.17. See: memfd_create(2).
    """
    text = refuse_nul(os.fsencode(label), "a label")
    yield Call("memfd_create", text, flags | lib.MFD_CLOEXEC, to=Slot(name))


@step(phase="opening")
def duplicate(fd: object, *, name: str, at_least: int = 0) -> Records:
    """A second descriptor of the same open file, the lowest free from `at_least`: fcntl.

    Raises: EMFILE, EINVAL (above RLIMIT_NOFILE). See: F_DUPFD_CLOEXEC(2const).
    """
    yield Call("fcntl", Fd(fd), lib.F_DUPFD_CLOEXEC, at_least, to=Slot(name))


@step(phase="opening")
def close_descriptor(fd: object) -> Records:
    """Close a descriptor of the child's: close.

    Raises: EBADF; EIO, ENOSPC, EDQUOT from the last write. See: close(2).
    """
    yield Call("close", Fd(fd))


@step(phase="opening")
def control(fd: object, request: int, argument: int | bytes = 0) -> Records:
    """An ioctl; bytes are passed by address and not written back: ioctl.

    Raises: ENOTTY, EINVAL, EPERM. See: ioctl(2).
    """
    yield Call("ioctl", Fd(fd), request, argument)


@step(phase="opening")
def write(fd: object, data: bytes) -> Records:
    """Write all of `data` to a descriptor; a short write is a failure: write.

    Raises: EPIPE, ENOSPC, EAGAIN, EFBIG. See: write(2).
    """
    yield Call("write", Fd(fd), data, len(data), expect=len(data), retry=True)


def parse_write(text: str) -> tuple[str, bytes]:
    """`PATH=TEXT`."""
    path, equals, data = text.partition("=")
    if not equals:
        msg = f"{text!r} names no content; write PATH=TEXT"
        raise ValueError(msg)
    return path, os.fsencode(data)


@step(
    phase="opening",
    field="write_files",
    lasting=True,
    each=lambda files: list(files.items()),
    option=Option("PATH=TEXT", parse_write, dict),
)
def write_file(
    path: str | bytes | os.PathLike[str],
    data: bytes,
    flags: int = os.O_WRONLY,
    mode: int = 0o666,
    *,
    dirfd: object = None,
) -> Records:
    """Open a file, write all of `data` with one call, close it: openat, write, close.

    One write is what /proc and /sys want. A regular file wants O_CREAT or O_TRUNC in `flags`.

    Raises: what open and write raise. See: open(2), write(2).
    """
    fd = Slot()
    flags |= os.O_CLOEXEC
    yield Call("openat", directory(dirfd), path_of(path), flags, mode, to=fd, retry=True)
    yield Call("write", fd, data, len(data), expect=len(data), retry=True)
    yield Call("close", fd)
