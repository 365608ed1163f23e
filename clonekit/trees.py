"""Detached trees of mounts, and how they find their place: the calls.

A tree is made where nobody can see it, from a path in the root that the child still has or from a
new file system. Its place is found inside the new root, by openat2, which lets no symlink lead out
and follows none of /proc's; what was found is held by a descriptor, and there the tree is attached.
Between the look and the deed stands no name that another process could change.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from itertools import takewhile

from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib, refuse_nul
from clonekit.records import AGAIN, Call, Data, Fd, Move, Scratch, Slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from clonekit.records import Record, Records

    Path = str | bytes | os.PathLike[str]

#: The root in which places are found: the new one, or the one that the child has.
ROOT = Slot(".root")
NOTHING = b"\0"
ATTRIBUTES = struct.Struct("<4Q")  # struct mount_attr: set, clear, propagation, userns_fd
OPEN_HOW = struct.Struct("<3Q")
INSIDE = lib.RESOLVE_IN_ROOT | lib.RESOLVE_NO_MAGICLINKS
LONGEST_OPTION = 255  # fsconfig's own limit
MODE_OF_DIRECTORIES = 0o755
MODE_OF_FILES = 0o644
MASK_MEANWHILE = 0o022


def kernel_has(major: int, minor: int) -> bool:
    """Whether the kernel is at least this one, where only its version can tell before the spawn."""
    first, second = os.uname().release.split(".")[:2]
    return (int(first), int("".join(takewhile(str.isdigit, second)))) >= (major, minor)


def parts_of(target: Path) -> list[bytes]:
    """A place in a root, as its components; none for the root itself.

    Raises: DeclarationError for one that does not say where it is.
    """
    text = os.fsencode(target)
    if not text.startswith(b"/"):
        told = f"write {os.fsdecode(b'/' + text)!r}" if text else "write '/tmp', for example"
        msg = f"{os.fsdecode(text)!r} is no place in the root, which starts with /; {told}"
        raise DeclarationError(msg)
    refuse_nul(text, "a path")
    parts = [part for part in text.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        msg = f"{os.fsdecode(text)!r}: where .. leads is for symlinks to say; write it without"
        raise DeclarationError(msg)
    return parts


def set_attributes(
    tree: Slot, flags: int, *, recursive: bool, tolerate: tuple[int, ...] = ()
) -> Call:
    """Flags of a mount, or of all in its tree, set and never cleared: some are locked."""
    at = lib.AT_EMPTY_PATH | (lib.AT_RECURSIVE if recursive else 0)
    wanted = Data(ATTRIBUTES.pack(flags, 0, 0, 0))
    return Call("mount_setattr", Fd(tree), NOTHING, at, wanted, ATTRIBUTES.size, tolerate=tolerate)


def set_propagation_of(tree: Slot, propagation: int) -> Call:
    """What a mount tells its peers."""
    wanted = Data(ATTRIBUTES.pack(0, 0, propagation, 0))
    return Call("mount_setattr", Fd(tree), NOTHING, lib.AT_EMPTY_PATH, wanted, ATTRIBUTES.size)


def map_ids(tree: Slot, users: object, *, recursive: bool) -> Records:
    """Files in the tree belong to whom this user namespace says."""
    at = lib.AT_EMPTY_PATH | (lib.AT_RECURSIVE if recursive else 0)
    wanted = Scratch(ATTRIBUTES.pack(lib.MOUNT_ATTR_IDMAP, 0, 0, 0))
    yield Move(wanted.at(24), value=Fd(users), width=8)
    yield Call("mount_setattr", Fd(tree), NOTHING, at, wanted, ATTRIBUTES.size)


def cloned(path: bytes, tree: Slot, *, recursive: bool) -> Call:
    """A copy of what is mounted at a path of the root that the child has."""
    flags = lib.OPEN_TREE_CLONE | lib.OPEN_TREE_CLOEXEC | (lib.AT_RECURSIVE if recursive else 0)
    return Call("open_tree", lib.AT_FDCWD, path, flags, to=tree)


def cloned_device(path: bytes, tree: Slot) -> Records:
    """A device of ours for others: it works, but its mode and owner, which are ours, stay."""
    flags = lib.MOUNT_ATTR_RDONLY | lib.MOUNT_ATTR_NOSUID | lib.MOUNT_ATTR_NOEXEC
    yield cloned(path, tree, recursive=False)
    yield set_attributes(tree, flags, recursive=False)


def cloned_place(place: Slot, tree: Slot, *, tolerate: tuple[int, ...] = ()) -> Call:
    """A copy of what is mounted at a place that was found, and of all below it."""
    flags = lib.OPEN_TREE_CLONE | lib.OPEN_TREE_CLOEXEC | lib.AT_EMPTY_PATH | lib.AT_RECURSIVE
    return Call("open_tree", Fd(place), NOTHING, flags, to=tree, tolerate=tolerate)


def copies_detached() -> bool:
    """Whether a part of a tree that is mounted nowhere can be copied."""
    return kernel_has(6, 15)


def cloned_in(directory: Slot, name: bytes, tree: Slot) -> Records:
    """A copy of a file in a tree that is mounted nowhere, but for a moment before Linux 6.15."""
    clone = lib.OPEN_TREE_CLONE | lib.OPEN_TREE_CLOEXEC
    copy = Call("open_tree", Fd(directory), name, clone, to=tree)
    yield from [copy] if copies_detached() else attached_meanwhile(directory, [copy])


def attached_meanwhile(tree: Slot, records: Iterable[Record]) -> Records:
    """A tree is mounted over the root that the child has, for calls that want it to be mounted.

    Nobody comes across it there: a path begins at the root, not at what stands over it.
    """
    here = Slot()
    yield Call("openat", lib.AT_FDCWD, b".\0", os.O_PATH | os.O_CLOEXEC, 0, to=here)
    yield attached_at(tree, lib.AT_FDCWD, b"/")
    yield Call("fchdir", Fd(tree))
    yield from records
    yield Call("umount2", b".\0", lib.MNT_DETACH)
    yield Call("fchdir", Fd(here))
    yield Call("close", Fd(here))


def opened(kind: str, context: Slot) -> Call:
    """The context in which a file system is put together."""
    name = refuse_nul(os.fsencode(kind), "the type of a file system")
    return Call("fsopen", name, lib.FSOPEN_CLOEXEC, to=context)


def mounted(context: Slot, flags: int, tree: Slot) -> Records:
    """The file system of a context, as a tree; the context is closed."""
    yield Call("fsconfig", Fd(context), lib.FSCONFIG_CMD_CREATE, 0, 0, 0)
    yield Call("fsmount", Fd(context), lib.FSMOUNT_CLOEXEC, flags, to=tree)
    yield Call("close", Fd(context))


def made(kind: str, options: Mapping[str, object], flags: int, tree: Slot) -> Records:
    """A new file system: fsopen, fsconfig, fsmount."""
    context = Slot()
    yield opened(kind, context)
    for name, value in options.items():
        if value is not None:
            yield option(context, name, value)
    yield from mounted(context, flags, tree)


def option(context: Slot, name: str, value: object) -> Call:
    """One option of a file system: a text, a number, a descriptor, or True."""
    key = refuse_nul(os.fsencode(name), "an option")
    if value is True:
        return Call("fsconfig", Fd(context), lib.FSCONFIG_SET_FLAG, key, 0, 0)
    if isinstance(value, Fd):
        return Call("fsconfig", Fd(context), lib.FSCONFIG_SET_FD, key, 0, value)
    if not isinstance(value, str | bytes | int) or value is False:
        msg = f"option {name} is {value!r}; give a text, a number, True, or leave it out"
        raise DeclarationError(msg)
    text = os.fsencode(str(value) if isinstance(value, int) else value)
    if len(text) > LONGEST_OPTION:
        msg = f"option {name} has {len(text)} bytes; the kernel takes {LONGEST_OPTION}"
        raise DeclarationError(msg)
    return Call("fsconfig", Fd(context), lib.FSCONFIG_SET_STRING, key, refuse_nul(text, name), 0)


def found(
    path: bytes,
    to: Slot,
    flags: int = 0,
    *,
    tolerate: tuple[int, ...] = (),
    expect: int | None = None,
) -> Call:
    """A descriptor for what stands at this place in the root.

    The kernel does not follow a `..` while anything is renamed or mounted, anywhere: EAGAIN.
    """
    how = Data(OPEN_HOW.pack(os.O_PATH | os.O_CLOEXEC | flags, 0, INSIDE))
    return Call(
        "openat2", Fd(ROOT), path + b"\0", how, OPEN_HOW.size, to=to, expect=expect,
        tolerate=tolerate, retry=True, flags=AGAIN,
    )  # fmt: skip


def place_of(parts: list[bytes], to: Slot, *, is_file: bool) -> Records:
    """A descriptor for a place in the root, each component of which is made where it is missing.

    Each is looked up from the root, so that a symlink leads where it leads inside, and made in the
    directory that was found. What is there already is never followed when something is made.
    """
    directory = ROOT
    for count, name in enumerate(parts, 1):
        last = count == len(parts)
        if last and is_file:
            mode = stat.S_IFREG | MODE_OF_FILES
            make = Call("mknodat", Fd(directory), name + b"\0", mode, 0, tolerate=(errno.EEXIST,))
        else:
            mode = MODE_OF_DIRECTORIES
            make = Call("mkdirat", Fd(directory), name + b"\0", mode, tolerate=(errno.EEXIST,))
        yield make
        here = to if last else Slot()
        yield found(b"/".join(parts[:count]), here, 0 if last and is_file else os.O_DIRECTORY)
        if directory is not ROOT:
            yield Call("close", Fd(directory))
        directory = here


def attached(tree: object, place: Slot, *, tolerate: tuple[int, ...] = ()) -> Call:
    """The tree where the descriptor of its place points."""
    flags = lib.MOVE_MOUNT_F_EMPTY_PATH | lib.MOVE_MOUNT_T_EMPTY_PATH
    return Call("move_mount", Fd(tree), NOTHING, Fd(place), NOTHING, flags, tolerate=tolerate)


def attached_at(tree: Slot, directory: Slot | int, path: bytes) -> Call:
    """The tree at a path that nobody else could have changed."""
    start = directory if isinstance(directory, int) else Fd(directory)
    return Call("move_mount", Fd(tree), NOTHING, start, path + b"\0", lib.MOVE_MOUNT_F_EMPTY_PATH)
