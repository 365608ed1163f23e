"""Mounts with something in them: a minimal /dev, and files from data."""

from __future__ import annotations

import os
import stat

from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib
from clonekit.mounts.filesystems import pts_options
from clonekit.mounts.value import Mount, flags_of, octal, path_here, yes
from clonekit.records import Call, Fd, Scratch, Slot
from clonekit.trees import (
    MASK_MEANWHILE,
    attached_at,
    cloned_device,
    cloned_in,
    copies_detached,
    made,
    set_attributes,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from clonekit.records import Records
    from clonekit.trees import Path

#: The devices that every program may expect, with their numbers.
DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
MOST_AT_ONCE = 0x7FFFF000  # what the kernel moves with one call


class Dev(Mount):
    """A directory of devices."""

    __slots__ = ("devices", "read_only")

    def __init__(self, target: Path, devices: list[bytes], *, read_only: bool) -> None:
        super().__init__(target, flags_of(nosuid=True, nodev=True, noexec=True))
        self.devices = devices
        self.read_only = read_only

    def tree(self, tree: Slot, flags: int) -> Records:
        """The directory with mount points and links, before anybody sees it."""
        self._check()
        mask = Slot()
        yield from made("tmpfs", {"mode": "755", "size": "64k"}, flags, tree)
        yield Call("umask", MASK_MEANWHILE, to=mask)
        for name in (b"pts\0", b"shm\0"):
            yield Call("mkdirat", Fd(tree), name, 0o755)
        for _, name in self._paths():
            yield Call("mknodat", Fd(tree), name + b"\0", stat.S_IFREG | 0o666, 0)
        for link, leads in LINKS.items():
            yield Call("symlinkat", leads.encode() + b"\0", Fd(tree), link.encode() + b"\0")
        yield Call("umask", mask)

    def furnish(self, tree: Slot) -> Records:
        """The devices of our own /dev, and two file systems, on names that nobody else made."""
        for path, name in self._paths():
            device = Slot()
            yield from cloned_device(path, device)
            yield attached_at(device, tree, name)
            yield Call("close", Fd(device))
        shared = {"mode": "1777"}
        nothing = flags_of(nosuid=True, noexec=True)
        for kind, options, name in (("devpts", pts_options(), b"pts"), ("tmpfs", shared, b"shm")):
            inner = Slot()
            nodev = flags_of(nodev=kind == "tmpfs")
            yield from made(kind, options, nothing | nodev, inner)
            yield attached_at(inner, tree, name)
            yield Call("close", Fd(inner))
        if self.read_only:
            yield set_attributes(tree, lib.MOUNT_ATTR_RDONLY, recursive=False)

    def _paths(self) -> list[tuple[bytes, bytes]]:
        """Each device of ours, and its name here."""
        standard = [b"/dev/%b\0" % name.encode() for name in DEVICES]
        return [(path, path[path.rindex(b"/") + 1 : -1]) for path in (*standard, *self.devices)]

    def _check(self) -> None:
        """Refuse a device that is not what its name says."""
        for name, numbers in DEVICES.items():
            device = look_at_device(b"/dev/%b\0" % name.encode())
            if (os.major(device), os.minor(device)) != numbers:
                msg = (
                    f"/dev/{name} is device {os.major(device)}:{os.minor(device)} here, not its own"
                )
                raise DeclarationError(msg)
        for path in self.devices:
            look_at_device(path)

    def frozen(self) -> object:
        """What its calls depend on.

        Raises: DeclarationError as they do.
        """
        self._check()
        return self.known()

    def late_flags(self) -> int:
        """None: it is no root."""
        return 0

    def source(self) -> str:
        """What it is."""
        return "devices"


def look_at_device(path: bytes) -> int:
    """The number of a device of ours.

    Raises: DeclarationError for what is none.
    """
    try:
        status = os.stat(path[:-1])  # noqa: PTH116 - pathlib is slow to import
    except OSError as error:
        msg = f"dev: {os.fsdecode(path[:-1])}: {error.strerror}; a /dev needs it"
        raise DeclarationError(msg) from None
    if not stat.S_ISCHR(status.st_mode) and not stat.S_ISBLK(status.st_mode):
        msg = f"dev: {os.fsdecode(path[:-1])} is no device; bind() mounts other files"
        raise DeclarationError(msg)
    return status.st_rdev


def dev(target: Path = "/dev", *, devices: Sequence[Path] = (), read_only: bool = False) -> Dev:
    """A minimal /dev: null, zero, full, random, urandom and tty of ours, pts and shm of its own.

    A tmpfs with these, the links fd, stdin, stdout, stderr and ptmx, and further `devices` of ours,
    each under its last name. Devices are bound, for none can be made in a user namespace: they can
    be written, but their modes and owners are ours and stay. `read_only` is for the directory:
    pts and shm can be written.

    Raises: what mount raises. Since: Linux 5.12. See: pts(4), shm_overview(7).
    """
    paths = [path_here(path, "a device") for path in devices]
    made_here = Dev(target, paths, read_only=yes(read_only, "read_only"))
    if not made_here.parts:
        msg = "dev: a root is more than devices; write '/dev' as its target"
        raise DeclarationError(msg)
    return made_here


class Contents(Mount):
    """A file with these contents."""

    __slots__ = ("data", "mode")

    def __init__(self, target: Path, data: bytes | Fd, mode: int, flags: int) -> None:
        super().__init__(target, flags)
        self.data = data
        self.mode = mode

    def is_file(self) -> bool:
        """It is."""
        return True

    def tree(self, tree: Slot, flags: int) -> Records:
        """The file, written in a tmpfs of which nothing else is ever seen."""
        store, to, mask = Slot(), Slot(), Slot()
        lasting = flags & ~lib.MOUNT_ATTR_RDONLY
        new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        yield from made("tmpfs", {"mode": "700"}, lasting, store)
        yield Call("umask", 0, to=mask)
        yield Call("openat", Fd(store), b"file\0", new, self.mode, to=to)
        yield Call("umask", mask)
        if isinstance(self.data, Fd):
            start = Scratch(bytes(8))  # whoever else reads it keeps their place
            yield Call("sendfile", Fd(to), self.data, start, MOST_AT_ONCE)
            # What did not fit, or was more than that, shows at the next try only.
            yield Call("sendfile", Fd(to), self.data, start, MOST_AT_ONCE, expect=0)
        elif self.data:
            size = len(self.data)
            yield Call("write", Fd(to), self.data, size, expect=size)
        yield Call("close", Fd(to))
        yield from cloned_in(store, b"file\0", tree)
        if flags & lib.MOUNT_ATTR_RDONLY:
            yield set_attributes(tree, lib.MOUNT_ATTR_RDONLY, recursive=False)
        yield Call("close", Fd(store))

    def frozen(self) -> object:
        """What its calls depend on."""
        return self.known(copies_detached())

    def source(self) -> str:
        """How much there is, for it may be secret; or the descriptor that has it."""
        return repr(self.data) if isinstance(self.data, Fd) else f"{len(self.data)} bytes"


def file(
    target: Path,
    data: bytes | object,
    *,
    mode: int = 0o644,
    read_only: bool = True,
) -> Contents:
    """A file with these contents: bytes, or what a descriptor (ours or a Slot) holds.

    It is written to a tmpfs that is mounted nowhere, and bound: no name outside leads to it. A
    descriptor is read from its beginning, at each spawn; its own place does not change.

    Raises: what mount raises; EINVAL for a descriptor that cannot be read at a place.
    Since: `read_only` Linux 5.12. See: memfd_create(2), sendfile(2).
    """
    if isinstance(data, str):
        msg = f"file: the contents are text; give bytes, as {data[:20]!r}.encode()"
        raise DeclarationError(msg)
    contents = bytes(data) if isinstance(data, bytes | bytearray | memoryview) else Fd(data)
    octal(mode, "mode")
    flags = flags_of(read_only=yes(read_only, "read_only"), nosuid=True, nodev=True)
    made_here = Contents(target, contents, mode, flags)
    if not made_here.parts:
        msg = "file: a root is a directory; give the file another target"
        raise DeclarationError(msg)
    return made_here
