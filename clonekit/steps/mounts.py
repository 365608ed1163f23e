"""The program's mounts: its root, what is mounted there, and what of it is hidden or read-only."""

from __future__ import annotations

import errno
import os
import stat

from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib
from clonekit.records import Call, Fd, Slot
from clonekit.steps.step import NO_OPTION, Option, step
from clonekit.trees import (
    ROOT,
    attached,
    attached_at,
    cloned_device,
    cloned_place,
    found,
    made,
    parts_of,
    set_attributes,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from clonekit.mounts import Mount
    from clonekit.records import Records

PROPAGATION = {"private": lib.MS_PRIVATE, "slave": lib.MS_SLAVE}
HERE = b".\0"
TOP = b"/\0"
#: What tells that a path is not there.
ABSENT = (errno.ENOENT, errno.ENOTDIR)
NULL_DEVICE = os.makedev(1, 3)
SEALED = (
    lib.MOUNT_ATTR_RDONLY | lib.MOUNT_ATTR_NOSUID | lib.MOUNT_ATTR_NODEV | lib.MOUNT_ATTR_NOEXEC
)


@step(phase="mounts", field="propagation", lasting=True, option=Option("KIND"))
def set_propagation(kind: str = "private") -> Records:
    """What is mounted in this mount namespace stays in it: mount MS_REC|MS_PRIVATE.

    With "slave", what is mounted outside still comes in. Where there are `mounts` or a `rootfs`,
    "private" is the default.

    Raises: EPERM without CAP_SYS_ADMIN. See: mount_namespaces(7).
    """
    if kind not in PROPAGATION:
        msg = f"propagation is {kind!r}; write {' or '.join(map(repr, PROPAGATION))}"
        raise DeclarationError(msg)
    yield Call("mount", 0, TOP, 0, lib.MS_REC | PROPAGATION[kind], 0)


def root_of(root: object) -> Mount | None:
    """What the root is to be; None for the one that the child has."""
    from clonekit.mounts import Mount, bind

    if isinstance(root, str | bytes | os.PathLike):
        return None if os.fsencode(root) == b"/" else bind(root, "/")
    if not isinstance(root, Mount):
        msg = f'{root!r} is no root; give a path, or a mount as clonekit.mounts.tmpfs("/")'
        raise DeclarationError(msg)
    if root.parts:
        msg = f'rootfs: {root}: a root is mounted on "/"; write that as its target'
        raise DeclarationError(msg)
    return root


def root_here(root: object) -> object:
    """What the steps for a root depend on: a path that is not absolute means another elsewhere."""
    mount = root_of(root)
    return mount if mount is root else (repr(root), mount)


@step(phase="mounts", field="rootfs", lasting=root_here, option=Option("DIR"))
def new_root(root: str | bytes | os.PathLike[str] | Mount) -> Records:
    """The root in which mounts are placed: a directory with all below it, or a mount on "/".

    It stands over the root that the child has, until `enter_root` makes it the root. For "/" it is
    the root that the child has. A bound root that is read-only is so from the start: mount points
    are there already, or the step that wants one fails.

    Raises: ENOENT, EPERM without CAP_SYS_ADMIN. See: open_tree(2), move_mount(2).
    """
    mount = root_of(root)
    if mount is None:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        yield Call("openat", lib.AT_FDCWD, TOP, flags, 0, to=ROOT)
        return
    if mount.is_file():
        msg = f"rootfs: {mount.source()} is no directory; a root is one"
        raise DeclarationError(msg)
    yield from mount.tree(ROOT, mount.flags & ~mount.late_flags())
    yield attached_at(ROOT, lib.AT_FDCWD, b"/")
    yield from mount.furnish(ROOT)


def each_mount(mounts: object) -> Iterable[tuple[object, ...]]:
    """A declaration's `mounts`, in their order."""
    if not isinstance(mounts, list | tuple):
        msg = f'mounts is {mounts!r}; give a list, as [clonekit.mounts.tmpfs("/tmp")]'
        raise DeclarationError(msg)
    return [(mount,) for mount in mounts]


@step(phase="mounts", field="mounts", lasting=True, each=each_mount, option=NO_OPTION)
def mount(what: Mount) -> Records:
    """Mount something in the root: a value of `clonekit.mounts`.

    Its place is found inside the root, whatever symlinks are there, and made if it is missing.

    Raises: EROFS where a mount point is missing and cannot be made; ELOOP, EXDEV, ENOTDIR; EAGAIN
        if somebody renames meanwhile; what the file system raises.
    Since: Linux 5.6; flags of a bind 5.12. See: openat2(2), move_mount(2).
    """
    from clonekit.mounts import Mount

    if not isinstance(what, Mount):
        msg = f'{what!r} is no mount; make one, as clonekit.mounts.tmpfs("/tmp")'
        raise DeclarationError(msg)
    if not what.parts:
        msg = f"{what}: that would be a root; give it as rootfs"
        raise DeclarationError(msg)
    yield from what.records()


def each_path(paths: object) -> Iterable[tuple[object, ...]]:
    """A list of paths; one alone is meant so, too."""
    return [(path,) for path in ([paths] if isinstance(paths, str | bytes) else paths)]  # type: ignore[attr-defined]


def what_is_here(name: bytes) -> str:
    """What a path of /proc or /sys is here, for such are the same in any root.

    "directory", "file" or "nothing"; "unknown" for other paths, and where we may not look.
    """
    if not name.startswith((b"proc/", b"sys/")):
        return "unknown"
    try:
        mode = os.stat(b"/" + name).st_mode  # noqa: PTH116 - pathlib is slow to import
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    except OSError:
        return "unknown"
    return "directory" if stat.S_ISDIR(mode) else "file"


def masked_here(paths: object) -> object:
    """What the steps for masked paths depend on."""
    refuse_other_null()
    return [(path, what_is_here(b"/".join(parts_of(path)))) for (path,) in each_path(paths)]  # type: ignore[arg-type]


@step(
    phase="mounts",
    field="masked_paths",
    lasting=masked_here,
    each=each_path,
    option=Option("PATH", many=list),
)
def mask_path(path: str | bytes | os.PathLike[str]) -> Records:
    """Hide what is at a path of the root: the null device over a file, nothing over a directory.

    A path that is not there is let be. The device is the caller's, opened in the caller's root.
    A path of /proc or /sys is taken to be what it is here when this is compiled: nothing begins
    where that is wrong. `clonekit.mounts.MASKED_PATHS` has what containers usually hide.

    Raises: EINVAL or ENOTDIR for what is a file here and a directory there, or the other way round;
        what `mount` raises. Since: Linux 5.12. See: move_mount(2).
    """
    name = b"/".join(parts_of(path))
    refuse_root(name, path)
    place = Slot()
    here = what_is_here(name)
    if here == "nothing":
        yield found(name, place, expect=-errno.ENOENT)
        return
    yield found(name, place, tolerate=ABSENT)
    if here != "file":
        yield from mask_directory(place, known=here == "directory")
    if here != "directory":
        yield from mask_file(place, known=here == "file")
    yield Call("close", Fd(place), tolerate=(errno.EBADF,))


def mask_directory(place: Slot, *, known: bool) -> Records:
    """Over a directory, an empty one that nobody can fill; over anything else, nothing."""
    directory, empty = Slot(), Slot()
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    not_there = (errno.EBADF,) if known else (errno.EBADF, errno.ENOTDIR)
    yield Call("openat", Fd(place), HERE, flags, 0, to=directory, tolerate=not_there)
    yield from made("tmpfs", {"mode": "755", "nr_inodes": "1"}, SEALED, empty)
    yield attached(empty, directory, tolerate=(errno.EBADF,))
    yield Call("close", Fd(empty))
    yield Call("close", Fd(directory), tolerate=(errno.EBADF,))


def mask_file(place: Slot, *, known: bool) -> Records:
    """Over a file, the null device.

    A directory, which it cannot be mounted on (EINVAL), has been hidden before, unless it is known
    that this is none.
    """
    device = Slot()
    refuse_other_null()
    yield from cloned_device(b"/dev/null\0", device)
    not_file = (errno.EBADF,) if known else (errno.EBADF, errno.EINVAL)
    yield attached(device, place, tolerate=not_file)
    yield Call("close", Fd(device))


def refuse_other_null() -> None:
    """What is mounted over a file is the null device and nothing else."""
    status = os.stat("/dev/null")  # noqa: PTH116 - pathlib is slow to import
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != NULL_DEVICE:
        msg = "/dev/null is not the null device here, so nothing can be hidden by it; restore it"
        raise DeclarationError(msg)


def refuse_root(name: bytes, path: object) -> None:
    """These are for a part of the root."""
    if not name:
        msg = f"{path!r} is the root itself; name something in it"
        raise DeclarationError(msg)


@step(
    phase="mounts",
    field="readonly_paths",
    lasting=True,
    each=each_path,
    option=Option("PATH", many=list),
)
def make_path_read_only(path: str | bytes | os.PathLike[str]) -> Records:
    """Let nobody write to a path of the root and all below it, other mounts too: mount_setattr.

    A path that is not there is let be. `clonekit.mounts.READONLY_PATHS` has what containers usually
    protect so.

    Raises: what `mount` raises. Since: Linux 5.12. See: mount_setattr(2).
    """
    name = b"/".join(parts_of(path))
    refuse_root(name, path)
    place, tree = Slot(), Slot()
    absent = (errno.EBADF,)
    yield found(name, place, tolerate=ABSENT)
    yield cloned_place(place, tree, tolerate=absent)
    yield set_attributes(tree, lib.MOUNT_ATTR_RDONLY, recursive=True, tolerate=absent)
    yield attached(tree, place, tolerate=absent)
    yield Call("close", Fd(tree), tolerate=absent)
    yield Call("close", Fd(place), tolerate=absent)


@step(phase="mounts", field="rootfs", lasting=root_here, option=Option("DIR"))
def enter_root(root: str | bytes | os.PathLike[str] | Mount) -> Records:
    """Make the new root the root, and unmount the old one: pivot_root, umount2 MNT_DETACH.

    `root` is what `new_root` was given. Nothing of the old root can be reached any more, but by
    what the program is given in `fds`. The current directory is "/".

    Raises: EINVAL, EPERM. See: pivot_root(2).
    """
    mount = root_of(root)
    if mount is not None:
        if mount.late_flags():
            yield set_attributes(ROOT, mount.late_flags(), recursive=False)
        yield Call("fchdir", Fd(ROOT))
        yield Call("pivot_root", HERE, HERE)
        yield Call("umount2", HERE, lib.MNT_DETACH)
        yield Call("chdir", TOP)
    yield Call("close", Fd(ROOT))
