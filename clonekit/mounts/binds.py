"""What is there already, mounted at another place."""

from __future__ import annotations

import os
import stat

from clonekit.linux.abi import lib
from clonekit.mounts.value import Mount, flags_of, look, path_here, yes
from clonekit.records import Call, Fd, Slot
from clonekit.trees import ROOT, cloned, map_ids, set_attributes, set_propagation_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clonekit.records import Records
    from clonekit.trees import Path


class Bind(Mount):
    """A part of the caller's file system, seen at another place."""

    __slots__ = ("id_map", "optional", "path", "recursive")

    def __init__(
        self,
        path: bytes,
        target: Path,
        flags: int,
        *,
        recursive: bool,
        optional: bool,
        id_map: Fd | None,
    ) -> None:
        super().__init__(target, flags)
        self.path = path
        self.recursive = recursive
        self.optional = optional
        self.id_map = id_map

    def is_file(self) -> bool:
        """Anything but a directory is mounted on a file."""
        told = "give a source that exists, or optional=True to leave it out where it is missing"
        return not stat.S_ISDIR(look(self.path, "bind", told))

    def left_out(self) -> bool:
        """An optional one, where its source is missing."""
        return self.optional and not os.path.exists(self.path[:-1])  # noqa: PTH110 - as above

    def tree(self, tree: Slot, flags: int) -> Records:
        """A copy of what is mounted there."""
        around = self._is_around()
        if around:  # the new root stands over it, and is no part of what is meant
            yield set_propagation_of(ROOT, lib.MS_UNBINDABLE)
        yield cloned(self.path, tree, recursive=self.recursive)
        if around:
            yield set_propagation_of(ROOT, lib.MS_PRIVATE)
        if flags:
            yield set_attributes(tree, flags, recursive=self.recursive)
        if self.id_map is not None:
            yield from map_ids(tree, self.id_map, recursive=self.recursive)

    def _is_around(self) -> bool:
        """Whether the place at which it is mounted is a part of it."""
        return bool(self.recursive and self.parts) and os.path.realpath(self.path[:-1]) == b"/"

    def frozen(self) -> object:
        """What its calls depend on; they look at the source."""
        if self.left_out():
            return self.known("left out")
        source, top = os.stat(self.path[:-1]), os.stat(b"/")  # noqa: PTH116 - pathlib is slow to import
        may_be_top = (source.st_dev, source.st_ino) == (top.st_dev, top.st_ino)
        return self.known(stat.S_ISDIR(source.st_mode), may_be_top and self._is_around())

    def late_flags(self) -> int:
        """None: all of it has its flags from the start, and nothing is made in what is ours."""
        return 0

    def source(self) -> str:
        """Where it comes from."""
        return os.fsdecode(self.path[:-1])


def bind(
    source: Path,
    target: Path,
    *,
    read_only: bool = False,
    recursive: bool = True,
    nosuid: bool = False,
    nodev: bool = False,
    noexec: bool = False,
    optional: bool = False,
    id_map: object = None,
) -> Bind:
    """A file or directory of ours at another place: open_tree, mount_setattr, move_mount.

    What is mounted below it comes along, and the flags are for all of it, unless `recursive` is
    False. With `optional`, nothing is mounted if the source is missing when this is compiled.
    `id_map` is a descriptor of a user namespace, ours or a Slot: the files belong to whom its maps
    say.

    Raises: EINVAL, in a user namespace, for a part with mounts below it that is not bound with
        them; EPERM for an `id_map` without CAP_SYS_ADMIN over the file system.
    Since: flags and `id_map` Linux 5.12. See: open_tree(2), mount_setattr(2).
    """
    return Bind(
        path_here(source, "the source of a bind"),
        target,
        flags_of(read_only=read_only, nosuid=nosuid, nodev=nodev, noexec=noexec),
        recursive=yes(recursive, "recursive"),
        optional=yes(optional, "optional"),
        id_map=None if id_map is None else Fd(id_map),
    )


class Attached(Mount):
    """A detached mount, given by descriptor."""

    __slots__ = ("fd", "file")

    def __init__(self, fd: Fd, target: Path, *, file: bool) -> None:
        super().__init__(target)
        self.fd = fd
        self.file = file

    def is_file(self) -> bool:
        """As it was said: who gives the mount knows."""
        return self.file

    def tree(self, tree: Slot, flags: int) -> Records:  # noqa: ARG002 - it has its flags
        """A descriptor of our own for it."""
        yield Call("fcntl", self.fd, lib.F_DUPFD_CLOEXEC, 0, to=tree)

    def source(self) -> str:
        """The descriptor."""
        return repr(self.fd)


def attach(mount: object, target: Path, *, file: bool = False) -> Attached:
    """A mount that was made before and is nowhere yet, by its descriptor: move_mount.

    It is ours or a Slot, from open_tree or fsmount, and can be attached once.
    `file` says that it is a file that is mounted.

    Raises: EINVAL for one that is attached already. See: move_mount(2).
    """
    return Attached(Fd(mount), target, file=yes(file, "file"))
