"""The groups below a group, and their processes.

They may have been made by a hostile process: names are bytes here, and nothing limits how deep or
how many they are but the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal

from clonekit.linux.cgroup2 import WITHIN, path_of, read, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


#: What it takes to end what is in a group.
NEEDED = ("cgroup.kill", "cgroup.procs", "cgroup.events", "cgroup.freeze", "cgroup.max.descendants")


def name_in_parent(group: int) -> str:
    """A group's name, by which the one above knows it; nothing for the hierarchy's own."""
    inode = os.fstat(group).st_ino
    above = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=group)
    try:
        with os.scandir(above) as entries:
            return next((entry.name for entry in entries if entry.inode() == inode), "")
    finally:
        os.close(above)


def names_in(group: int) -> list[bytes]:
    """The names of the groups in this one; none if it is gone."""
    try:
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=group)
    except FileNotFoundError:
        return []
    try:
        with os.scandir(fd) as entries:
            return [
                os.fsencode(entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)
            ]
    finally:
        os.close(fd)


def below(
    group: int, visit: Callable[[int], object] = lambda _: None
) -> Iterator[tuple[int, bytes]]:
    """Each group below this one, the deepest first: a descriptor of its parent, and its name.

    However deep they are, one descriptor is open at a time. In cgroup2 nothing can be renamed, so
    ".." is where we came from. Each group is visited as it is entered, this one too.
    """
    at = os.dup(group)
    try:
        visit(at)
        path: list[bytes] = []
        pending = [names_in(at)]
        while path or pending[0]:
            if not pending[-1]:
                pending.pop()
                at = moved(at, "..")
                yield at, path.pop()
                continue
            name = pending[-1].pop()
            with contextlib.suppress(FileNotFoundError):  # somebody else has removed it
                at = moved(at, name)
                path.append(name)
                visit(at)
                pending.append(names_in(at))
    finally:
        os.close(at)


def take_back(group: int) -> None:
    """Restore our rights to a group and those below: a process of our uid took them away."""
    with contextlib.suppress(OSError):  # it may be at it still
        for _ in below(group, restore):
            pass


def restore(group: int) -> None:
    """Our rights to one group."""
    os.chmod(f"/proc/self/fd/{group}", 0o700)  # noqa: PTH101 - by descriptor
    for name in NEEDED:
        with contextlib.suppress(OSError):
            os.chmod(name, 0o644, dir_fd=group)


def moved(at: int, name: bytes | str) -> int:
    """A descriptor of a group beside the given one, which is closed."""
    to = os.open(name, WITHIN, dir_fd=at)
    os.close(at)
    return to


def pids_in(group: int, name: str = "") -> list[int]:
    """The processes of a group, as our PID namespace numbers them; 0 for one that is outside.

    None of a group of threads: its processes are those of the group above that is none.
    """
    try:
        return [int(line) for line in read(group, f"{name}cgroup.procs").split()]
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENODEV, errno.ENOENT):
            raise
        return []


def kill_each(group: int) -> None:
    """End every process of a group and of those below, one by one, before Linux 5.14.

    They are frozen meanwhile, so that none can fork away. A pid is looked for again once its pidfd
    is open: a process that has got the number of one that has ended is not hit.
    """
    frozen = read(group, "cgroup.freeze").strip()
    write(group, "cgroup.freeze", "1")
    try:
        hit: set[int] = set()
        while new := [pid for pid in all_pids(group) if pid not in hit]:
            hit.update(new)
            if 0 in new:
                msg = "a process of the group is in a PID namespace that we do not see into"
                raise PermissionError(errno.EPERM, msg, path_of(group))
            for pid in new:
                with contextlib.suppress(ProcessLookupError):
                    kill_member(group, pid)
    finally:
        write(group, "cgroup.freeze", frozen)


def all_pids(group: int) -> list[int]:
    """The processes of a group and of those below."""
    found = pids_in(group)
    for parent, name in below(group):
        found += pids_in(parent, os.fsdecode(name) + "/")
    return found


def kill_member(group: int, pid: int) -> None:
    """Kill a process if it is (still) in the group or below."""
    pidfd = os.pidfd_open(pid)
    try:
        if pid in all_pids(group):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)


def remove_below(group: int) -> None:
    """Remove the groups below this one, the deepest first. One that is busy stays."""
    for parent, name in below(group):
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOENT):
                raise
