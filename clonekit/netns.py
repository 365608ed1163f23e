"""Network namespaces that have names, as `ip netns` knows them: files in /run/netns.

A name is a file with the namespace mounted on it, which keeps that alive. As there, the directory
is a shared mount, so that a name appears, and goes, in all mount namespaces that have the
directory.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from clonekit.errors import DeclarationError
from clonekit.linux.abi import call, lib
from clonekit.linux.memory import address
from clonekit.network import Network, networks
from clonekit.steps.namespaces import kind_of

#: Where the names are.
DIRECTORY = "/run/netns"
MOST_BYTES = 255


def create(name: str) -> Network:
    """A new network namespace of this name: clone3(CLONE_NEWNET), move_mount on /run/netns/NAME.

    It stays until it is removed, also when the handle is closed. Its loopback interface is down.

    Raises: FileExistsError; PermissionError without CAP_SYS_ADMIN; DeclarationError.
    Since: Linux 5.2. See: ip-netns(8), move_mount(2).
    """
    name = checked(name)
    directory = shared_directory()
    try:
        network = networks(1)[0]
        flags = os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(name, flags, 0, dir_fd=directory)
        try:
            mount(network.fileno(), file)
        except BaseException:
            network.close()
            os.unlink(name, dir_fd=directory)
            raise
        finally:
            os.close(file)
    finally:
        os.close(directory)
    return network


def find(name: str) -> Network:
    """The network namespace of this name: open.

    Raises: FileNotFoundError; OSError EINVAL for a file on which none is mounted. See: ip-netns(8).
    """
    path = os.path.join(DIRECTORY, checked(name))  # noqa: PTH118 - pathlib is slow to import
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if kind_of(fd) != lib.CLONE_NEWNET:
        os.close(fd)
        raise OSError(errno.EINVAL, f"{path}: no network namespace is mounted there")
    return Network(fd)


def remove(name: str) -> None:
    """Take the name away: umount2(MNT_DETACH), unlink. The network ends when nobody has it.

    Raises: FileNotFoundError; PermissionError without CAP_SYS_ADMIN. See: ip-netns(8).
    """
    path = os.path.join(DIRECTORY, checked(name))  # noqa: PTH118 - pathlib is slow to import
    try:
        text = bytearray(os.fsencode(path) + b"\0")
        call("umount2", address(text), lib.MNT_DETACH | lib.UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno != errno.EINVAL:  # nothing is mounted there: who made it, was ended
            raise type(error)(error.errno, error.strerror, path) from None
    os.unlink(path)  # noqa: PTH108 - pathlib is slow to import


def names() -> list[str]:
    """The names that there are."""
    try:
        return sorted(os.listdir(DIRECTORY))  # noqa: PTH208 - pathlib is slow to import
    except FileNotFoundError:
        return []


def checked(name: object) -> str:
    """A name that is one file of the directory."""
    if (
        not isinstance(name, str)
        or name in {"", ".", ".."}
        or set(name) & {"/", "\0"}
        or len(os.fsencode(name)) > MOST_BYTES
    ):
        msg = f"{name!r} cannot name a network; give 1 to {MOST_BYTES} bytes without a slash"
        raise DeclarationError(msg)
    return name


def shared_directory() -> int:
    """A descriptor of the directory, made if need be, and a mount that is shared."""
    import fcntl

    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with suppress(FileExistsError):
        os.mkdir(DIRECTORY, 0o755)  # noqa: PTH102 - pathlib is slow to import
    below = os.open(DIRECTORY, flags)
    path = bytearray(os.fsencode(DIRECTORY) + b"\0")
    try:
        # Two that make it a mount at once would make two mounts. `ip netns` takes this lock, too.
        fcntl.flock(below, fcntl.LOCK_EX)
        try:
            call("mount", 0, address(path), 0, lib.MS_SHARED | lib.MS_REC)
        except OSError as error:
            if error.errno != errno.EINVAL:  # it is no mount yet
                raise
            call("mount", address(path), address(path), 0, lib.MS_BIND | lib.MS_REC)
            call("mount", 0, address(path), 0, lib.MS_SHARED | lib.MS_REC)
        return os.open(DIRECTORY, flags)
    finally:
        os.close(below)


def mount(namespace: int, file: int) -> None:
    """Mount a namespace on a file, both by descriptor: no path can be swapped meanwhile."""
    empty = bytearray(1)
    flags = lib.OPEN_TREE_CLONE | lib.OPEN_TREE_CLOEXEC | lib.AT_EMPTY_PATH
    tree = call("open_tree", namespace, address(empty), flags)
    try:
        call(
            "move_mount", tree, address(empty), file, address(empty),
            lib.MOVE_MOUNT_F_EMPTY_PATH | lib.MOVE_MOUNT_T_EMPTY_PATH,
        )  # fmt: skip
    finally:
        os.close(tree)
