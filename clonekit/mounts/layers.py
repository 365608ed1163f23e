"""Directories seen as one."""

from __future__ import annotations

import os
import stat
from itertools import chain

from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib
from clonekit.mounts.value import Mount, flags_of, look, path_here, yes
from clonekit.records import Call, Fd, Slot
from clonekit.trees import (
    attached_meanwhile,
    cloned,
    kernel_has,
    made,
    mounted,
    opened,
    option,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from clonekit.records import Record, Records
    from clonekit.trees import Path

#: What separates or escapes layers where they are given by name.
SEPARATORS = b":\\,"
OVERLAY = b"overlay\0"
#: The names of directories in memory: the upper layer, its work, and all layers together.
UPPER, WORK, TOGETHER = b"upper\0", b"work\0", b"all\0"
PAGE = 4096  # of options, with the NUL that ends them
DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Overlay(Mount):
    """Layers of directories."""

    __slots__ = ("in_memory", "lower", "upper", "userxattr", "work")

    def __init__(
        self,
        target: Path,
        lower: list[bytes],
        upper: bytes | None,
        work: bytes | None,
        flags: int,
        *,
        in_memory: bool,
        userxattr: bool,
    ) -> None:
        super().__init__(target, flags)
        self.lower = lower
        self.upper = upper
        self.work = work
        self.in_memory = in_memory
        self.userxattr = userxattr

    def layers(self) -> list[tuple[str, bytes]]:
        """Each directory with what it is for."""
        layers = [("lowerdir+", path) for path in self.lower]
        if self.upper is not None and self.work is not None:
            layers += [("upperdir", self.upper), ("workdir", self.work)]
        return layers

    def tree(self, tree: Slot, flags: int) -> Records:
        """The layers put together."""
        self._check()
        yield from (
            self._by_descriptor(tree, flags) if kernel_has(6, 13) else self._by_name(tree, flags)
        )

    def frozen(self) -> object:
        """What its calls depend on.

        Raises: DeclarationError as they do.
        """
        self._check()
        return self.known(kernel_has(6, 13))

    def _check(self) -> None:
        """Refuse a layer that is no directory."""
        for _, path in self.layers():
            if not stat.S_ISDIR(look(path, "overlay", "give directories that exist")):
                msg = f"overlay: {os.fsdecode(path[:-1])} is no directory; a layer is one"
                raise DeclarationError(msg)

    def _by_descriptor(self, tree: Slot, flags: int) -> Records:
        """Each layer opened by itself: an error says which is missing, and no name is too long."""
        context = Slot()
        yield opened("overlay", context)
        if self.userxattr:
            yield option(context, "userxattr", value=True)
        for name, path in self.layers():
            yield from layer(context, name, path)
        finished = mounted(context, flags, tree)
        if not self.in_memory:
            yield from finished
            return
        upper = chain(layer(context, "upperdir", UPPER), layer(context, "workdir", WORK), finished)
        yield from in_memory([UPPER, WORK], upper)

    def _by_name(self, tree: Slot, flags: int) -> Records:
        """For kernels before 6.13, by the old call, which takes as many names as fill a page.

        The overlay is mounted where nobody comes by, and copied from there.
        """
        if any(byte in SEPARATORS for _, path in self.layers() for byte in path):
            msg = (
                "overlay: a layer with a colon, a comma or a backslash in its name needs Linux "
                "6.13; give it another name"
            )
            raise DeclarationError(msg)
        options = [b"lowerdir=" + b":".join(path[:-1] for path in self.lower)]
        for name, path in self.layers()[len(self.lower) :]:
            options.append(name.encode() + b"=" + path[:-1])
        if self.in_memory:
            options += [b"upperdir=upper", b"workdir=work"]
        if self.userxattr:
            options.append(b"userxattr")
        data = b",".join(options)
        if len(data) >= PAGE:
            msg = (
                f"overlay: the names of the layers take {len(data)} bytes, and before Linux 6.13 "
                f"no more than {PAGE - 1}; give shorter ones"
            )
            raise DeclarationError(msg)
        calls = (
            Call(
                "mount", OVERLAY, TOGETHER, OVERLAY, flags, data + b"\0"
            ),  # MS_ and MOUNT_ATTR_ agree
            cloned(TOGETHER, tree, recursive=False),
        )
        yield from in_memory([TOGETHER, *[UPPER, WORK] * self.in_memory], calls)

    def source(self) -> str:
        """Its type, and how many layers it has."""
        return f"overlay of {len(self.lower) + (self.upper is not None or self.in_memory)}"


def in_memory(names: list[bytes], records: Iterable[Record]) -> Records:
    """Calls in a tmpfs of which nobody else knows, with these directories."""
    memory = Slot()
    yield from made("tmpfs", {"mode": "755"}, 0, memory)
    for name in names:
        yield Call("mkdirat", Fd(memory), name, 0o755)
    yield from attached_meanwhile(memory, records)
    yield Call("close", Fd(memory))


def layer(context: Slot, name: str, path: bytes) -> Records:
    """One layer, by descriptor."""
    directory = Slot()
    yield Call("openat", lib.AT_FDCWD, path, DIRECTORY, 0, to=directory)
    yield option(context, name, Fd(directory))
    yield Call("close", Fd(directory))


def overlay(
    target: Path,
    lower: Sequence[Path] | Path,
    *,
    upper: Path | None = None,
    work: Path | None = None,
    in_memory: bool = False,
    userxattr: bool = False,
    read_only: bool = False,
    nosuid: bool = False,
    nodev: bool = False,
    noexec: bool = False,
) -> Overlay:
    """Directories of ours seen as one, the first of `lower` on top: overlay.

    What is written goes to `upper`; `work` is an empty directory of the same file system. With
    `in_memory` it goes to a tmpfs, and is gone with the program. With neither, nothing can be
    written. `userxattr` is for a user namespace where directories are replaced: the file system of
    `upper` then needs extended attributes of users.

    Raises: EINVAL for layers that cannot be; EPERM in a user namespace before Linux 5.11.
    Since: in a user namespace Linux 5.11. See: overlayfs in the kernel's documentation.
    """
    many = [lower] if isinstance(lower, str | bytes | os.PathLike) else list(lower)
    if not many:
        msg = "overlay: no lower directory; give one or more"
        raise DeclarationError(msg)
    if (upper is None) != (work is None):
        msg = "overlay: upper and work belong together; give both or neither"
        raise DeclarationError(msg)
    if yes(in_memory, "in_memory") and upper is not None:
        msg = "overlay: in_memory and upper exclude each other; give one"
        raise DeclarationError(msg)
    return Overlay(
        target,
        [path_here(path, "a lower directory") for path in many],
        None if upper is None else path_here(upper, "upper"),
        None if work is None else path_here(work, "work"),
        flags_of(read_only=read_only, nosuid=nosuid, nodev=nodev, noexec=noexec),
        in_memory=in_memory,
        userxattr=yes(userxattr, "userxattr"),
    )
