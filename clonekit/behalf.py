"""Open files on behalf of a process whose calls are supervised, as it would have named them."""

from __future__ import annotations

import errno
import os
import stat
import struct

from clonekit.linux.abi import call, lib
from clonekit.linux.memory import address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clonekit.request import Request

#: The calls that an `Opening` may be of: `Filter("ALLOW").notify(*OPENING_CALLS, to=listener)`.
OPENING_CALLS = ("open", "creat", "openat", "openat2")
HOW = struct.Struct("=QQQ")
PAGE = 4096
PROC_SUPER_MAGIC = 0x9FA0
MOST_TRIES = 16
INT = 0xFFFFFFFF
STATFS_SIZE = 256
BOUNDS = lib.RESOLVE_BENEATH | lib.RESOLVE_IN_ROOT
TMPFILE = os.O_TMPFILE & ~os.O_DIRECTORY


class Opening:
    """A call that opens a file, read once: the process cannot change it any more.

    Attributes:
        request: the call.
        path: the file's name, as the process gave it.
        flags, mode, resolve: what it asks for.
        directory: the number of its descriptor that the path starts from, or AT_FDCWD.

    Raises: EFAULT and others for what cannot be read, as the kernel would.
    """

    __slots__ = ("directory", "flags", "mode", "path", "request", "resolve")

    def __init__(self, request: Request) -> None:
        name, arguments = request.call, request.arguments
        if name not in OPENING_CALLS:
            msg = f"{request!r} opens no file; give {', '.join(OPENING_CALLS)}"
            raise ValueError(msg)
        self.request = request
        self.directory, self.resolve = lib.AT_FDCWD, 0
        if name.startswith("openat"):
            self.directory = (arguments[0] & INT ^ 1 << 31) - (1 << 31)
            arguments = arguments[1:]
        at, flags, mode = arguments[:3]
        if name == "creat":
            flags, mode = os.O_CREAT | os.O_WRONLY | os.O_TRUNC, flags
        elif name == "openat2":
            if not HOW.size <= mode <= PAGE:
                raise OSError(errno.EINVAL, "openat2: the size of struct open_how")
            how = request.read(flags, mode)
            if any(how[HOW.size :]):
                raise OSError(errno.E2BIG, "openat2: fields of struct open_how that are not known")
            flags, mode, self.resolve = HOW.unpack_from(how)
        self.flags, self.mode = flags & INT, mode & 0o1777  # it would be our id that it sets
        self.path = request.read_string(at)

    def answer(self, path: str | bytes | None = None) -> None:
        """Open it, or another `path` of the process's, and let its call return that: see `open`."""
        fd = self.open(path)
        try:
            self.request.add_fd(fd, cloexec=bool(self.flags & os.O_CLOEXEC))
        finally:
            os.close(fd)

    def open(self, path: str | bytes | None = None) -> int:
        """A descriptor of ours for what the process means by its path, or by another: openat2.

        The path starts where the process's own would, and no symbolic link or `..` leads out of its
        root. But it is opened with *our* rights, and a file that is made is ours, with our umask
        and never setuid: decide by the path whether the process may have it, and remember that a
        symbolic link of its own may stand there. Only files and directories are opened, and none of
        /proc, where "self" would be us; magic links are not followed. Nobody's lease holds us up.

        Raises: what openat2 raises; EACCES for another kind of file, EXDEV where the directory that
            the path starts from is not in the process's root; EAGAIN for a file under a lease;
            EOPNOTSUPP for O_PATH, which the kernel does not hand over; ProcessLookupError.
        Since: Linux 5.6. See: RESOLVE_IN_ROOT in openat2(2).
        """
        name = self.path if path is None else os.fsencode(path)
        if not name:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if self.flags & os.O_PATH:
            raise OSError(errno.EOPNOTSUPP, "a descriptor of O_PATH cannot be given to another")
        of = self.request.directory()
        link = f"{of}/cwd" if self.directory == lib.AT_FDCWD else f"{of}/fd/{self.directory}"
        bounded = self.resolve & BOUNDS  # by its own words it stays in the directory
        root = self._linked(link if bounded else f"{of}/root")
        try:
            if not bounded and not name.startswith(b"/"):
                name = self._start(of, link, root) + b"/" + name
            self.request.check()  # what was read was of this process
            return self._opened(root, name)
        finally:
            os.close(root)

    def _linked(self, link: str) -> int:
        """A directory of the process's.

        Raises: EBADF for a descriptor that it does not have.
        """
        try:
            return os.open(link, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            self.request.check()
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def _start(self, of: str, link: str, root: int) -> bytes:
        """The name in the root of the directory that a relative path starts from."""
        there = self._linked(link)
        try:
            above, name = (os.fsencode(os.readlink(path)) for path in (f"{of}/root", link))  # noqa: PTH115 - pathlib is slow to import
            if above != b"/":
                name = name.removeprefix(above)
            if not is_named(root, name or b"/", os.fstat(there)):
                raise OSError(errno.EXDEV, "the directory has been moved, or is not in the root")
        finally:
            os.close(there)
        return name

    def _opened(self, root: int, path: bytes) -> int:
        """What is there already, looked at before it is opened; or else what is to be made."""
        if self.flags & TMPFILE:
            return openat2(root, path, self.flags, self.mode, self.resolve)
        makes = self.flags & os.O_CREAT
        for left in reversed(range(MOST_TRIES)):
            if not (makes and self.flags & os.O_EXCL):
                try:
                    return self._existing(root, path)
                except FileNotFoundError:
                    if not makes:
                        raise
            try:
                return openat2(root, path, self.flags | os.O_EXCL, self.mode, self.resolve)
            except FileExistsError:
                if self.flags & os.O_EXCL or not left:
                    raise
        raise AssertionError

    def _existing(self, root: int, path: bytes) -> int:
        """To open a FIFO or a device does something, so what it is is seen first."""
        only = self.flags & (os.O_NOFOLLOW | os.O_DIRECTORY)
        fd = openat2(root, path, os.O_PATH | only, 0, self.resolve)
        try:
            refuse_special(fd)
            flags = self.flags & ~(os.O_NOFOLLOW | os.O_CREAT) | os.O_CLOEXEC
            opened = os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK)
            os.set_blocking(opened, not flags & os.O_NONBLOCK)
            return opened
        finally:
            os.close(fd)


def is_named(root: int, path: bytes, about: os.stat_result) -> bool:
    """Whether a directory has this name in a root."""
    try:
        fd = openat2(root, path, os.O_PATH | os.O_DIRECTORY, 0, 0)
    except OSError:
        return False
    try:
        return os.path.samestat(about, os.fstat(fd))
    finally:
        os.close(fd)


def openat2(root: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
    """Open a path inside a root: openat2, RESOLVE_IN_ROOT or what bounds it already."""
    resolve |= lib.RESOLVE_NO_MAGICLINKS | (0 if resolve & BOUNDS else lib.RESOLVE_IN_ROOT)
    how = HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    text = path + b"\0"
    for left in reversed(range(MOST_TRIES)):
        try:
            return call("openat2", root, address(text), address(how), HOW.size)
        except (InterruptedError, BlockingIOError):  # EAGAIN: something was moved meanwhile
            if not left:
                raise
    raise AssertionError


def refuse_special(fd: int) -> None:
    """What is no file or directory, or one of /proc.

    Raises: EACCES; ELOOP for a symbolic link that was not to be followed.
    """
    kind = os.fstat(fd).st_mode
    if stat.S_ISLNK(kind):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    about = bytearray(STATFS_SIZE)
    call("fstatfs", fd, address(about))
    (system,) = struct.unpack_from("@l", about)
    if system == PROC_SUPER_MAGIC or not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise PermissionError(errno.EACCES, "no file that is opened on another's behalf")
