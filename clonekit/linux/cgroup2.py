"""The cgroup hierarchy of version 2, by descriptors of its directories.

Everything is done relative to a descriptor of a group: a path could have come to mean another one.
"""

from __future__ import annotations

import errno
import os
import select
import struct
import time

from clonekit.errors import DeclarationError
from clonekit.linux.abi import call
from clonekit.linux.memory import address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAGIC = 0x63677270  # CGROUP2_SUPER_MAGIC of linux/magic.h
STATFS_SIZE = 120
DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
WITHIN = DIRECTORY | os.O_NOFOLLOW
LONGEST_NAME = 255


def open_group(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> int:
    """A descriptor of a group's directory.

    Raises: DeclarationError for what is none.
    """
    shown = os.fsdecode(path)
    try:
        group = os.open(path, DIRECTORY)
    except OSError as error:
        msg = f"cgroup: {shown}: {error.strerror}; give a directory of cgroup2"
        raise DeclarationError(msg) from None
    if not is_cgroup2(group):
        os.close(group)
        msg = f"cgroup: {shown} is no group of version 2; give a directory of a cgroup2 mount"
        raise DeclarationError(msg)
    return group


def is_cgroup2(fd: int) -> bool:
    """Whether this is a file of a cgroup2 mount: fstatfs."""
    status = bytearray(STATFS_SIZE)
    call("fstatfs", fd, address(status))
    return bool(struct.unpack_from("=q", status)[0] == MAGIC)


def read(group: int, name: str | bytes) -> str:
    """The content of a group's file."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=group)
    with open(fd, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123 - pathlib is slow to import
        return file.read()


def write(group: int, name: str, text: str) -> None:
    """Write a group's file with one call.

    Raises: what the kernel answers, with the file and the text.
    """
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=group)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        number = error.errno or 0
        raise OSError(
            number, f"{os.strerror(number)}: {text!r} to {name}", path_of(group)
        ) from None


def path_of(group: int) -> str:
    """Where a group is now, for a person to read."""
    try:
        return os.readlink(f"/proc/self/fd/{group}")  # noqa: PTH115 - as in read
    except OSError:
        return f"descriptor {group}"


def events(fd: int) -> dict[str, str]:
    """What cgroup.events says, read from its start."""
    lines = os.pread(fd, 4096, 0).decode().splitlines()
    return dict(line.split(" ", 1) for line in lines)


def wait_for(group: int, key: str, value: str, timeout: float | None) -> bool:
    """Wait until cgroup.events says so, and whether it does: poll. A group that is gone is empty.

    `timeout` is in seconds. Signal handlers run meanwhile.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        fd = os.open("cgroup.events", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=group)
    except FileNotFoundError:
        return is_gone(group)
    try:
        poller = select.poll()
        poller.register(fd, select.POLLPRI)
        while events(fd)[key] != value:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            poller.poll(None if left is None else left * 1000)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
    finally:
        os.close(fd)
    return True


def is_gone(group: int) -> bool:
    """Whether a group has been removed: its directory has no links."""
    return not os.fstat(group).st_nlink or not os.access("cgroup.procs", os.F_OK, dir_fd=group)


def name_of(name: str) -> str:
    """The name of a group or of a file in one, checked: it leads nowhere else.

    Raises: DeclarationError.
    """
    wrong = not isinstance(name, str) or not name or name in (".", "..") or len(name) > LONGEST_NAME
    if wrong or any(each in name for each in "/\n\0"):
        msg = f"cgroup: {name!r} is no name; write one without slashes and newlines"
        raise DeclarationError(msg)
    return name


def unused_name() -> str:
    """A name that nobody else chooses."""
    return f"clonekit-{os.getpid()}-{os.urandom(6).hex()}"


def parsed(text: str) -> dict[str, Any]:
    """Lines of a key and a number, or of a key and several KEY=NUMBER."""
    return {
        key: {inner: numeric(value) for inner, _, value in (part.partition("=") for part in parts)}
        if parts and "=" in parts[0]
        else numeric(parts[0] if parts else "")
        for key, *parts in (line.split() for line in text.splitlines())
    }


def numeric(text: str) -> int | float | str | None:
    """A number as one; `max` as None; anything else as it is."""
    if text == "max":
        return None
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text
