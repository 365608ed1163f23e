"""Where the program is: its directory, root, umask, session and terminal."""

from __future__ import annotations

import os
import struct

from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib
from clonekit.records import Call, Data, Fd, Slot
from clonekit.steps.opening import OPEN_HOW, path_of
from clonekit.steps.step import Option, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clonekit.records import Records

MOST_UMASK = 0o777


def entered(path: str | bytes | os.PathLike[str]) -> Records:
    """Be in a directory that no link of /proc leads to, H13."""
    place = Slot()
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    how = Data(OPEN_HOW.pack(flags, 0, lib.RESOLVE_NO_MAGICLINKS))
    yield Call(
        "openat2", lib.AT_FDCWD, path_of(path), how, OPEN_HOW.size, to=place, retry=True
    )  # fmt: skip
    yield Call("fchdir", Fd(place))
    yield Call("close", Fd(place))


@step(phase="place", field="root", lasting=True, option=Option("PATH"))
def change_root(path: str | bytes | os.PathLike[str] | int, *, magic_links: bool = True) -> Records:
    """Make `path`, or a directory's descriptor, the root, and be in it: chroot, chdir.

    A root is not a jail for a privileged program: give up CAP_SYS_CHROOT too. `magic_links` is as
    for `change_directory`.

    Raises: EPERM without CAP_SYS_CHROOT, ENOENT, ENOTDIR, EACCES. See: chroot(2).
    """
    if not isinstance(path, str | bytes | os.PathLike):
        yield Call("fchdir", Fd(path))
        yield Call("chroot", b".\0")
    elif magic_links:
        yield Call("chroot", path_of(path))
    else:
        yield from entered(path)
        yield Call("chroot", b".\0")
    yield Call("chdir", b"/\0")


@step(phase="place", field="cwd", lasting=True, option=Option("PATH"))
def change_directory(
    path: str | bytes | os.PathLike[str] | int, *, magic_links: bool = True
) -> Records:
    """Change the current directory, to a path in the child's root or a descriptor: chdir, fchdir.

    Without `magic_links`, a path that leads over a link of /proc, as /proc/self/fd/3, is refused:
    the child still has descriptors that the program will not have, and who wrote the root could
    have put a symlink to one of them there. A declaration with a root of its own, or a namespace
    that is joined, does so.

    Raises: ENOENT, ENOTDIR, EACCES; ELOOP for a link of /proc. Since: without `magic_links` Linux
        5.6. See: chdir(2), openat2(2).
    """
    if not isinstance(path, str | bytes | os.PathLike):
        yield Call("fchdir", Fd(path))
    elif magic_links:
        yield Call("chdir", path_of(path))
    else:
        yield from entered(path)


@step(phase="place", field="umask", lasting=True, option=Option("OCTAL", lambda text: int(text, 8)))
def set_umask(mask: int) -> Records:
    """Set the bits that new files do not get: umask.

    See: umask(2).
    """
    if not 0 <= mask <= MOST_UMASK:
        msg = f"umask {mask:#o} is not between 0 and 0o777"
        raise DeclarationError(msg)
    yield Call("umask", mask)


@step(phase="session", field="setsid", lasting=True)
def new_session() -> Records:
    """Start a session and a process group, without a controlling terminal: setsid.

    Raises: EPERM if the child leads a group already. See: setsid(2).
    """
    yield Call("setsid")


@step(phase="session", field="pgid", lasting=True, option=Option("PGID", int))
def set_process_group(pgid: int = 0) -> Records:
    """Join the process group `pgid` of this session; 0 starts one of its own: setpgid.

    Raises: EPERM for a group of another session. See: setpgid(2).
    """
    yield Call("setpgid", 0, pgid)


@step(phase="session", field="ctty", option=Option("FD", int))
def set_controlling_terminal(fd: object) -> Records:
    """Make a terminal the session's own; needs `setsid`: ioctl TIOCSCTTY.

    Raises: EPERM if the child leads no session, or the terminal has another.
    See: TIOCSCTTY(2const).
    """
    yield Call("ioctl", Fd(fd), lib.TIOCSCTTY, 0)


@step(phase="session", field="foreground", option=Option("FD", int))
def take_foreground(fd: object, pgid: int | None = None) -> Records:
    """Make a process group the terminal's foreground group: ioctl TIOCSPGRP.

    `pgid` is the group; without it, the child's own, which getpgid tells.

    Raises: ENOTTY, EPERM. See: TIOCSPGRP(2const).
    """
    from clonekit.records import Move, Scratch, Slot

    room = Scratch(struct.pack("<i", pgid or 0))
    if pgid is None:
        group = Slot()
        yield Call("getpgid", 0, to=group)
        yield Move(room.at(0), value=group)
    yield Call("ioctl", Fd(fd), lib.TIOCSPGRP, room)
