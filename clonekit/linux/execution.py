"""Programs: begun, asked about, and held in memory."""

from __future__ import annotations

import errno
import os

from clonekit.linux.abi import call, ffi, lib, refuse_nul
from clonekit.linux.block import Owned, here
from clonekit.linux.memory import address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any, NoReturn, TypeAlias

    Text: TypeAlias = str | bytes | os.PathLike[str]

_ABSENT = (errno.ENOENT, errno.ENOTDIR)
_NAME_LENGTH = 249  # of a memfd, without "memfd:" and the NUL
_CHUNK = 1 << 30


def execveat(
    dirfd: int,
    path: Text,
    argv: Sequence[Text],
    env: Mapping[Text, Text] | None = None,
    flags: int = 0,
) -> NoReturn:
    """Begin another program in this process: execveat.

    `path` is relative to the directory `dirfd`, or with AT_EMPTY_PATH empty and `dirfd` the
    program itself. `env` is the exact environment; None copies ours. Nothing is flushed.

    Raises: what execve does; ENOENT for a script given by a close-on-exec descriptor.
    Since: Linux 3.19. See: execveat(2).
    """
    variables: Mapping[Any, Any] = os.environb if env is None else env
    strings = [b"%b=%b" % (os.fsencode(key), os.fsencode(variables[key])) for key in variables]
    _execveat(dirfd, os.fsencode(path), [os.fsencode(text) for text in argv], strings, flags)
    msg = "execveat came back; AT_EXECVE_CHECK only asks: use check_executable()"
    raise ValueError(msg)


def _execveat(
    dirfd: int, path: bytes, argv: Iterable[bytes], env: Iterable[bytes], flags: int
) -> None:
    """The call, with an error that names the file."""
    name = refuse_nul(path, "the program's path")
    held = []
    vectors = []
    for what, strings in (("argv", argv), ("env", env)):
        texts = [ffi.from_buffer(refuse_nul(text, what)) for text in strings]
        held.append(texts)
        pointers = [ffi.cast("char *", text) for text in texts]
        vectors.append(ffi.new("char *[]", [*pointers, ffi.NULL]))
    try:
        call("execveat", dirfd, address(name), *map(address, vectors), flags)
    except OSError as error:
        named = os.fsdecode(path) if path else dirfd
        raise OSError(error.errno, error.strerror, named) from None


def check_executable(
    program: Text,
    executable: Text | int | object | None = None,
    env: Mapping[Text, Text] | None = None,
) -> None:
    """Ask the kernel whether a file may be executed: execveat with AT_EXECVE_CHECK.

    The file is found as the step `execute` finds it, but here: in our root, with our ids, by the
    rules of our security modules. Whether it is a program at all is not looked at.

    Raises: OSError of the errno's class, naming the file: ENOENT, EACCES; EINVAL before
        Linux 6.14. DeclarationError for a Slot, which has no file yet.
    Since: Linux 6.14. See: execveat(2), AT_EXECVE_CHECK.
    """
    from clonekit.records import Fd
    from clonekit.steps.execute import paths_of

    if executable is not None and not isinstance(executable, str | bytes | os.PathLike | tuple):
        fd = Fd(executable).of
        if not isinstance(fd, int):
            from clonekit.errors import DeclarationError

            msg = f"check: {fd} has no file before the spawn; leave check out"
            raise DeclarationError(msg)
        _without_side_effects(lambda: _check(fd, b""))
        return
    paths = paths_of(program, executable, env)
    _without_side_effects(lambda: _check_first(program, paths))


def _check_first(program: Text, paths: Sequence[bytes]) -> None:
    """All are tried. The first reason counts; being merely absent is none."""
    reason: OSError | None = None
    for path in paths:
        try:
            _check(lib.AT_FDCWD, path)
        except OSError as error:
            if error.errno not in _ABSENT:
                reason = reason or error
        else:
            return
    if reason is None:
        text = f"execveat: {os.strerror(errno.ENOENT)}"
        reason = FileNotFoundError(errno.ENOENT, text, os.fsdecode(program))
    raise reason


def _check(dirfd: int, path: bytes) -> None:
    flags = lib.AT_EXECVE_CHECK | (0 if path else lib.AT_EMPTY_PATH)
    try:
        _execveat(dirfd, path, [path], [], flags)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOSYS):
            msg = "execveat: asking whether a file may be executed needs Linux 6.14"
            raise OSError(error.errno, msg, error.filename) from None
        raise


def _without_side_effects(check: Callable[[], None]) -> None:
    """Run a check so that other threads do not notice.

    While any exec is under way, this check too, the kernel refuses (EAGAIN) every new thread that
    would share the checking thread's root and directory. So, unless it is the only one, the check
    has a thread whose root and directory are copies.
    """
    try:
        call("unshare", lib.CLONE_THREAD)  # changes nothing; EINVAL if there are other threads
    except OSError:
        pass
    else:
        check()
        return
    import threading

    raised: list[OSError] = []

    def run() -> None:
        try:
            call("unshare", lib.CLONE_FS)
            check()
        except OSError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


class SealedProgram(Owned):
    """A copy of a program in memory that nobody can change: memfd_create, sealed.

    Made from a path, or from bytes that are the program itself. Give it to a declaration as
    `executable`. It cannot be busy (ETXTBSY) nor be replaced meanwhile. But who sees a process
    that runs it, by /proc/PID/exe, and may, can keep it open for writing, so that it cannot be
    begun again: for a container that is not trusted make one of its own. A script cannot be run so:
    its interpreter could not open it.

    It owns a descriptor, close-on-exec, which `close` or the end of the block closes; programs
    that run go on.

    Raises: ENOENT, EACCES and others for the path; EACCES where sysctl vm.memfd_noexec is 2;
        ENOMEM. Since: Linux 3.17. See: memfd_create(2), F_ADD_SEALS in fcntl(2).
    """

    __slots__ = ("_fd", "name")

    #: What the kernel calls it: `/memfd:NAME (deleted)` in /proc/PID/exe.
    name: str

    def __init__(self, program: Text, name: str | None = None) -> None:
        self._fd, self._maker = -1, here()
        if name is None:
            name = "program" if isinstance(program, bytes) else os.path.basename(program)  # noqa: PTH119 - pathlib is slow to import
        self.name = name
        self._fd = _executable_memory(name)
        try:
            if isinstance(program, bytes):
                _write(self._fd, program)
            else:
                _copy(self._fd, program)
            import fcntl

            seals = lib.F_SEAL_WRITE | lib.F_SEAL_GROW | lib.F_SEAL_SHRINK | lib.F_SEAL_SEAL
            fcntl.fcntl(self._fd, lib.F_ADD_SEALS, seals)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Its descriptor.

        Raises: ValueError when it is closed.
        """
        if self._fd < 0:
            msg = "the program is closed"
            raise ValueError(msg)
        return self._fd

    def close(self) -> None:
        """Close its descriptor; the memory goes with the last process that runs it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __repr__(self) -> str:
        return f"<SealedProgram {self.name!r}{', closed' * (self._fd < 0)}>"


def _executable_memory(name: str) -> int:
    """An empty file in memory that may be executed."""
    text = refuse_nul(os.fsencode(name)[:_NAME_LENGTH], "the program's name")
    flags = lib.MFD_CLOEXEC | lib.MFD_ALLOW_SEALING
    try:
        return call("memfd_create", address(text), flags | lib.MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:  # before Linux 6.3 such memory was always executable
            raise
    return call("memfd_create", address(text), flags)


def _write(fd: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _copy(fd: int, path: Text) -> None:
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while os.sendfile(fd, source, None, _CHUNK):
            pass
    finally:
        os.close(source)
