"""A system call that waits for a supervisor's answer, and what may be answered."""

from __future__ import annotations

import errno
import os
import struct

from clonekit.linux.abi import call, lib, name_of
from clonekit.linux.block import here, is_here
from clonekit.linux.memory import address as address_of
from clonekit.linux.seccomp import AUDIT_ARCH, seccomp_notif_sizes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from clonekit.notify import Listener

# struct seccomp_notif, seccomp_notif_resp and seccomp_notif_addfd of linux/seccomp.h, as they were
# first published; a younger kernel's may be longer.
NOTIF = struct.Struct("=QII iIQ6Q")
ANSWER = struct.Struct("=QqiI")
ADDFD = struct.Struct("=QIIII")
PAGE = 4096
PATH_MAX = 4096
LAST_ERRNO = 4095
LAST_ADDRESS = (1 << 63) - 1


class Request:
    """A call that a process under the filter has made, and that waits for its answer.

    It is answered once: by `errno`, `result`, `continue_`, or `add_fd`. Each raises
    ProcessLookupError when nobody waits any more, as the process was killed or a signal came.

    Arguments are values. Memory that they point at is the process's own, and another of its threads
    may change it at any time: read it once, and act on what was read.

    Attributes:
        id: the kernel's number for it.
        pid: the number of the calling *thread*, here; 0 if it is outside our PID namespace.
        number, architecture: the call, and its AUDIT_ARCH.
        arguments: the six, as 64 bits without sign.
        instruction_pointer: from where it was made.
        answered: whether it has been.
    """

    __slots__ = (
        "_listener", "_maker", "_memory", "answered", "architecture", "arguments", "id",
        "instruction_pointer", "number", "pid",
    )  # fmt: skip

    def __init__(self, listener: Listener, notif: bytes | bytearray) -> None:
        self._listener = listener
        self._memory, self._maker = -1, here()
        self.answered = False
        self.arguments: tuple[int, ...]
        (
            self.id, self.pid, _, self.number, self.architecture, self.instruction_pointer,
            *arguments,
        ) = NOTIF.unpack_from(notif)  # fmt: skip
        self.arguments = tuple(arguments)

    @property
    def call(self) -> str:
        """The call's name, or `syscall_N`. That of another ABI is looked up by libseccomp."""
        if self.architecture == AUDIT_ARCH:
            return name_of(self.number)
        from clonekit.linux.libseccomp import call_name

        return call_name(self.architecture, self.number) or f"syscall_{self.number}"

    def directory(self) -> str:
        """What /proc has of the calling thread. Look at the request again when that is open.

        Raises: EXDEV where /proc is of another PID namespace than ours: it has others' numbers.
        """
        if os.readlink("/proc/self") != str(os.getpid()):  # noqa: PTH115 - pathlib is slow to import
            raise OSError(errno.EXDEV, "/proc is of another PID namespace than ours")
        return f"/proc/{self.pid}"

    def is_valid(self) -> bool:
        """Whether it still waits: SECCOMP_IOCTL_NOTIF_ID_VALID. See: seccomp_unotify(2)."""
        try:
            self._ioctl(lib.SECCOMP_IOCTL_NOTIF_ID_VALID, bytearray(struct.pack("=Q", self.id)))
        except ProcessLookupError:
            return False
        return True

    def check(self) -> None:
        """See that it still waits: what was read from the process until now was the caller's own.

        Raises: ProcessLookupError.
        """
        if not self.is_valid():
            self._close()
            raise self._gone()

    def read(self, address: int, size: int) -> bytes:
        """That many bytes of the process's memory. What is given was read while it waited.

        A size that the process gave may be huge, and of memory that costs it nothing: bound it.

        Raises: EFAULT where not all of it is there; ENOMEM where we have no room for that;
            ProcessLookupError; EACCES without the right to trace the process, EXDEV where /proc is
            of another PID namespace than ours. See: /proc/PID/mem in proc(5).
        """
        try:
            content = self._peek(address, size)
        except (MemoryError, OverflowError):
            raise OSError(errno.ENOMEM, f"{size} bytes: {os.strerror(errno.ENOMEM)}") from None
        if len(content) < size:
            raise OSError(
                errno.EFAULT, f"{size} bytes at {address:#x}: {os.strerror(errno.EFAULT)}"
            )
        return content

    def read_string(self, address: int, limit: int = PATH_MAX) -> bytes:
        """The C string at an address, without its NUL, of at most `limit` bytes with it.

        Raises: as `read`; ENAMETOOLONG where no NUL is in reach.
        """
        text = b""
        while len(text) < limit:  # to the end of a page: what follows may be nobody's
            part = self._peek(address, min(PAGE - address % PAGE, limit - len(text)))
            if not part:
                raise OSError(errno.EFAULT, f"a string at {address:#x}: no memory is there")
            before, nul, _ = part.partition(b"\0")
            text += before
            if nul:
                return text
            address += len(part)
        raise OSError(errno.ENAMETOOLONG, f"a string of more than {limit - 1} bytes")

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write to the process's memory, even where it may not write itself.

        Raises: as `read`.
        """
        view = memoryview(data).cast("B")
        written = self._reach(os.pwrite, view, address)
        if written < len(view):
            raise OSError(errno.EFAULT, f"{len(view)} bytes at {address:#x}: not all are there")

    def errno(self, number: int) -> None:
        """Let the call fail with this errno. Since: Linux 5.0."""
        if not 0 < number <= LAST_ERRNO:
            msg = f"{number} is no errno; give one from 1 to {LAST_ERRNO}, or use result()"
            raise ValueError(msg)
        self._answer(0, -number, 0)

    def result(self, value: int = 0) -> None:
        """Let the call return this, without being made. Since: Linux 5.0."""
        self._answer(value, 0, 0)

    def continue_(self) -> None:
        """Let the kernel make the call, as if there were no filter.

        This is no security boundary: what its arguments point at may have changed since it was
        looked at. Let only calls continue that the process may make whatever they say.

        Since: Linux 5.5. See: SECCOMP_USER_NOTIF_FLAG_CONTINUE in seccomp_unotify(2).
        """
        self._answer(0, 0, lib.SECCOMP_USER_NOTIF_FLAG_CONTINUE)

    def add_fd(
        self, fd: Any, *, number: int | None = None, cloexec: bool = True, send: bool = True
    ) -> int:
        """Give the process a descriptor for our open file: its number there.

        It is the lowest free one, or `number`, in place of what was there. With `send` it is the
        call's result too, in one step: a process that a signal interrupts has not both lost the
        answer and kept the descriptor. Before Linux 5.14 these are two steps.

        Raises: EMFILE for the process's own limit, EBADF. Since: Linux 5.9.
        See: SECCOMP_IOCTL_NOTIF_ADDFD in seccomp_unotify(2).
        """
        self._once()
        source = fd if isinstance(fd, int) else fd.fileno()
        flags = lib.SECCOMP_ADDFD_FLAG_SETFD if number is not None else 0
        of_new = os.O_CLOEXEC if cloexec else 0
        added = bytearray(
            ADDFD.pack(
                self.id, flags | lib.SECCOMP_ADDFD_FLAG_SEND * send, source, number or 0, of_new
            )
        )
        try:
            given = self._ioctl(lib.SECCOMP_IOCTL_NOTIF_ADDFD, added)
        except OSError as error:
            if not send or error.errno != errno.EINVAL:
                raise
            given = self.add_fd(source, number=number, cloexec=cloexec, send=False)
            self.result(given)
            return given
        if send:
            self._end()
        return given

    def _answer(self, value: int, error: int, flags: int) -> None:
        self._once()
        size = max(seccomp_notif_sizes()[1], ANSWER.size)
        answer = bytearray(ANSWER.pack(self.id, value, error, flags).ljust(size, b"\0"))
        self._ioctl(lib.SECCOMP_IOCTL_NOTIF_SEND, answer)
        self._end()

    def _once(self) -> None:
        if self.answered:
            msg = f"{self!r} has been answered"
            raise ValueError(msg)

    def _end(self) -> None:
        self.answered = True
        self._close()

    def _ioctl(self, request: int, argument: bytearray) -> int:
        """One of the listener's calls about this request."""
        with self._listener.lock:
            while True:
                try:
                    return call("ioctl", self._listener.fd, request, address_of(argument))
                except InterruptedError:
                    continue
                except FileNotFoundError:
                    raise self._gone() from None

    def _gone(self) -> ProcessLookupError:
        return ProcessLookupError(errno.ESRCH, f"{self!r}: nobody waits for its answer any more")

    def _peek(self, address: int, size: int) -> bytes:
        return self._reach(os.pread, size, address)  # type: ignore[no-any-return]

    def _reach(self, move: Any, what: Any, address: int) -> Any:
        """Read or write memory that is surely the process's: one that has died had another's pid.

        A descriptor of its memory stays with that, so it is opened once, and the request is looked
        at after that and again after the data.
        """
        nothing = b"" if move is os.pread else 0
        if not 0 <= address <= LAST_ADDRESS:  # no memory of a process is there
            return nothing
        try:
            if self._memory < 0:
                self._memory = os.open(f"{self.directory()}/mem", os.O_RDWR | os.O_CLOEXEC)
                self.check()
            moved = move(self._memory, what, address)
        except OSError as error:
            self.check()
            if error.errno != errno.EIO:
                raise
            return nothing
        self.check()
        return moved

    def _close(self) -> None:
        """Let go of the process's memory."""
        fd, self._memory = self._memory, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_memory", -1) >= 0 and is_here(self._maker):
            self._close()

    def __repr__(self) -> str:
        name = name_of(self.number) if self.architecture == AUDIT_ARCH else f"foreign {self.number}"
        return f"<Request {self.id:#x}: {name} of thread {self.pid}>"
