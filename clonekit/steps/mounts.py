"""The program's mounts: its root, what is mounted there, and what of it is hidden or read-only."""

from __future__ import annotations

import os

from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib
from clonekit.mounts import Mount, bind
from clonekit.records import Call, Fd
from clonekit.steps.step import NO_OPTION, Option, step
from clonekit.trees import ROOT, attached_at, set_attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from clonekit.records import Records

PROPAGATION = {"private": lib.MS_PRIVATE, "slave": lib.MS_SLAVE}
HERE = b".\0"
TOP = b"/\0"


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
    if isinstance(root, str | bytes | os.PathLike):
        return None if os.fsencode(root) == b"/" else bind(root, "/")
    if not isinstance(root, Mount):
        msg = f'{root!r} is no root; give a path, or a mount as clonekit.mounts.tmpfs("/")'
        raise DeclarationError(msg)
    if root.parts:
        msg = f'rootfs: {root}: a root is mounted on "/"; write that as its target'
        raise DeclarationError(msg)
    return root


@step(phase="mounts", field="rootfs", option=Option("DIR"))
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
    yield from mount.tree(ROOT, mount.flags & ~mount.late_flags)
    yield attached_at(ROOT, lib.AT_FDCWD, b"/")
    yield from mount.furnish(ROOT)


def each_mount(mounts: object) -> Iterable[tuple[object, ...]]:
    """A declaration's `mounts`, in their order."""
    if not isinstance(mounts, list | tuple):
        msg = f'mounts is {mounts!r}; give a list, as [clonekit.mounts.tmpfs("/tmp")]'
        raise DeclarationError(msg)
    return [(mount,) for mount in mounts]


@step(phase="mounts", field="mounts", each=each_mount, option=NO_OPTION)
def mount(what: Mount) -> Records:
    """Mount something in the root: a value of `clonekit.mounts`.

    Its place is found inside the root, whatever symlinks are there, and made if it is missing.

    Raises: EROFS where a mount point is missing and cannot be made; ELOOP, EXDEV, ENOTDIR; EAGAIN
        if somebody renames meanwhile; what the file system raises.
    Since: Linux 5.6; flags of a bind 5.12. See: openat2(2), move_mount(2).
    """
    if not isinstance(what, Mount):
        msg = f'{what!r} is no mount; make one, as clonekit.mounts.tmpfs("/tmp")'
        raise DeclarationError(msg)
    if not what.parts:
        msg = f"{what}: that would be a root; give it as rootfs"
        raise DeclarationError(msg)
    yield from what.records()


@step(phase="mounts", field="rootfs", option=Option("DIR"))
def enter_root(root: str | bytes | os.PathLike[str] | Mount) -> Records:
    """Make the new root the root, and unmount the old one: pivot_root, umount2 MNT_DETACH.

    `root` is what `new_root` was given. Nothing of the old root can be reached any more, but by
    what the program is given in `fds`. The current directory is "/".

    Raises: EINVAL, EPERM. See: pivot_root(2).
    """
    mount = root_of(root)
    if mount is not None:
        if mount.late_flags:
            yield set_attributes(ROOT, mount.late_flags, recursive=False)
        yield Call("fchdir", Fd(ROOT))
        yield Call("pivot_root", HERE, HERE)
        yield Call("umount2", HERE, lib.MNT_DETACH)
        yield Call("chdir", TOP)
    yield Call("close", Fd(ROOT))
