"""Directories seen as one."""

from __future__ import annotations

import os
import stat

from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib
from clonekit.mounts.value import Mount, flags_of, look, path_here, yes
from clonekit.records import Call, Fd, Slot
from clonekit.trees import attached_meanwhile, kernel_has, made, mounted, opened, option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from clonekit.records import Records
    from clonekit.trees import Path

#: What separates or escapes layers where they are given by name.
SEPARATORS = b":\\,"
#: The names of the upper layer and its work directory, in memory.
UPPER = (b"upper\0", b"work\0")
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
        for _, path in self.layers():
            if not stat.S_ISDIR(look(path, "overlay", "give directories that exist")):
                msg = f"overlay: {os.fsdecode(path[:-1])} is no directory; a layer is one"
                raise DeclarationError(msg)
        context = Slot()
        yield opened("overlay", context)
        if self.userxattr:
            yield option(context, "userxattr", value=True)
        yield from self._by_descriptor(context) if by_descriptor() else self._by_name(context)
        if not self.in_memory:
            yield from mounted(context, flags, tree)
            return
        memory = Slot()
        yield from made("tmpfs", {"mode": "755"}, 0, memory)
        for name in UPPER:
            yield Call("mkdirat", Fd(memory), name, 0o755)
        yield from attached_meanwhile(memory, self._over(context, flags, tree))
        yield Call("close", Fd(memory))

    def _by_descriptor(self, context: Slot) -> Records:
        """Each layer opened by itself: an error says which is missing, and no name is too long."""
        for name, path in self.layers():
            yield from layer(context, name, path)

    def _by_name(self, context: Slot) -> Records:
        """Layers by name, for kernels before 6.13: one text for all that are below."""
        for _, path in self.layers():
            if any(byte in SEPARATORS for byte in path):
                msg = (
                    f"overlay: {os.fsdecode(path[:-1])!r}: a layer with a colon, a comma or a "
                    "backslash in its name needs Linux 6.13; give it another name"
                )
                raise DeclarationError(msg)
        yield option(context, "lowerdir", b":".join(path[:-1] for path in self.lower))
        for name, path in self.layers()[len(self.lower) :]:
            yield option(context, name, path[:-1])

    def _over(self, context: Slot, flags: int, tree: Slot) -> Records:
        """The layers put together, with those that are in the current directory."""
        for option_name, name in zip(("upperdir", "workdir"), UPPER, strict=True):
            if by_descriptor():
                yield from layer(context, option_name, name)
            else:
                yield option(context, option_name, name[:-1])
        yield from mounted(context, flags, tree)

    def source(self) -> str:
        """Its type, and how many layers it has."""
        return f"overlay of {len(self.lower) + (self.upper is not None or self.in_memory)}"


def by_descriptor() -> bool:
    """Whether a layer can be given by descriptor."""
    return kernel_has(6, 13)


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
