"""What every mount has: a target, flags, and the calls that make it and put it there."""

from __future__ import annotations

import os

from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib, refuse_nul
from clonekit.records import Call, Fd, Slot
from clonekit.trees import MASK_MEANWHILE, attached, parts_of, place_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clonekit.records import Records
    from clonekit.trees import Path

READ_ONLY: int = lib.MOUNT_ATTR_RDONLY
#: The flags of a mount that a value may ask for.
FLAGS = {
    "read_only": READ_ONLY,
    "nosuid": lib.MOUNT_ATTR_NOSUID,
    "nodev": lib.MOUNT_ATTR_NODEV,
    "noexec": lib.MOUNT_ATTR_NOEXEC,
}

LONGEST = 32  # of a source, where a mount is shown: its end says more than its beginning


class Mount:
    """Something to be mounted, and where. Make one with the functions of `clonekit.mounts`.

    Attributes:
        target: where, in the program's root.
        parts: the components of the target; none for a root.
        flags: MOUNT_ATTR flags.
    """

    __slots__ = ("flags", "parts", "target")

    def __init__(self, target: Path, flags: int = 0) -> None:
        self.parts = parts_of(target)
        self.target = os.fsdecode(target)
        self.flags = flags

    def is_file(self) -> bool:
        """Whether a file is mounted, on a file, and not a directory on a directory.

        Raises: DeclarationError where there is nothing to be mounted.
        """
        return False

    def left_out(self) -> bool:
        """Whether it is left out here."""
        return False

    def tree(self, tree: Slot, flags: int) -> Records:
        """The calls that make it, detached, with these flags."""
        raise NotImplementedError

    def furnish(self, tree: Slot) -> Records:  # noqa: ARG002 - for those that have more to do
        """The calls that complete it where it stands."""
        yield from ()

    def records(self) -> Records:
        """The calls that make it and attach it at its target."""
        if self.left_out():
            return
        is_file = self.is_file()
        tree, place, mask = Slot(), Slot(), Slot()
        yield from self.tree(tree, self.flags)
        yield Call("umask", MASK_MEANWHILE, to=mask)
        yield from place_of(self.parts, place, is_file=is_file)
        yield Call("umask", mask)
        yield attached(tree, place)
        yield Call("close", Fd(place))
        yield from self.furnish(tree)
        yield Call("close", Fd(tree))

    def late_flags(self) -> int:
        """Of a root: the flags that it gets when all is mounted in it."""
        return self.flags & READ_ONLY

    def source(self) -> str:
        """What is mounted, in a word."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mount):
            return NotImplemented
        return type(self) is type(other) and self._values() == other._values()

    __hash__ = None  # type: ignore[assignment]

    def _values(self) -> list[object]:
        kinds = type(self).__mro__[:-1]
        return [getattr(self, name) for kind in kinds for name in kind.__slots__]  # type: ignore[attr-defined]

    def known(self, *seen: object) -> list[object]:
        """For `frozen`, which each kind has: all that it is, and what else its calls depend on."""
        return [*self._values(), *seen]

    def __repr__(self) -> str:
        names = [name for name, flag in FLAGS.items() if self.flags & flag]
        source = self.source()
        if len(source) > LONGEST:
            source = f"...{source[3 - LONGEST :]}"
        return f"{source} on {self.target}{''.join(', ' + name for name in names)}"


def flags_of(**wanted: bool) -> int:
    """The MOUNT_ATTR flags of these names."""
    flags = 0
    for name, value in wanted.items():
        flags |= FLAGS[name] if yes(value, name) else 0
    return flags


def yes(value: object, name: str) -> bool:
    """True or False, and nothing that is only like it."""
    if value is not True and value is not False:
        msg = f"{name} is {value!r}; write True or False"
        raise DeclarationError(msg)
    return value


def number(value: object, name: str, least: int = 0) -> int:
    """A whole number."""
    if type(value) is not int or value < least:
        msg = f"{name} is {value!r}; give a whole number from {least} up"
        raise DeclarationError(msg)
    return value


def octal(value: object, name: str) -> str:
    """A mode as file systems take it."""
    return f"{number(value, name):o}"


def path_here(path: Path, name: str) -> bytes:
    """A path of ours, which means the same wherever the child goes."""
    if not isinstance(path, str | bytes | os.PathLike) or not os.fspath(path):
        msg = f"{name} is {path!r}; give a path"
        raise DeclarationError(msg)
    return refuse_nul(os.path.abspath(os.fsencode(path)), name)  # noqa: PTH100 - pathlib is slow to import


def look(path: bytes, name: str, told: str) -> int:
    """The mode of what stands at a path of ours."""
    try:
        return os.stat(path[:-1]).st_mode  # noqa: PTH116 - pathlib is slow to import
    except OSError as error:
        msg = f"{name}: {os.fsdecode(path[:-1])}: {error.strerror}; {told}"
        raise DeclarationError(msg) from None
