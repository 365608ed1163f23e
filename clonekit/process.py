"""The handle of a child: a pidfd, which cannot come to mean another process."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import time
from _thread import get_ident
from os import CLD_DUMPED, CLD_EXITED, CLD_KILLED

from clonekit.linux.abi import NUMBERS, ffi, lib
from clonekit.linux.block import Owned, here
from clonekit.linux.pidfd import exit_code, pidfd_getfd, pidfd_info

TYPE_CHECKING = False
if TYPE_CHECKING:
    import resource
    from collections.abc import Sequence
    from typing import Any, Self

_MAKING = object()
MOST_WAITS = 10_000  # for a thread that has reaped it and has yet to say so, of a millisecond each
#: What poll(2) can be told, in milliseconds: some 24 days.
MOST_MS = (1 << 31) - 1


class Exit:
    """How a process ended.

    Made of what waitid tells: CLD_EXITED and a status, or CLD_KILLED or CLD_DUMPED and a signal.
    """

    __slots__ = ("_code", "_number", "_usage")

    def __init__(self, code: int, number: int, usage: Any | None = None) -> None:
        self._code = code
        self._number = number
        self._usage = usage

    @property
    def status(self) -> int | None:
        """The exit status 0 to 255, or None if a signal ended it."""
        return self._number if self._code == CLD_EXITED else None

    @property
    def signal(self) -> int | None:
        """The signal's number, or None."""
        return None if self._code == CLD_EXITED else self._number

    @property
    def core(self) -> bool:
        """Whether memory was dumped."""
        return self._code == CLD_DUMPED

    @property
    def returncode(self) -> int:
        """The status, or the signal's number below zero, as `subprocess` has it."""
        return self._number if self._code == CLD_EXITED else -self._number

    @property
    def usage(self) -> resource.struct_rusage | None:
        """What it and the children that it waited for used: seconds and, for `ru_maxrss`, KiB.

        None where the kernel did not say (the status came from PIDFD_GET_INFO).
        """
        if self._usage is None:
            return None
        import resource

        user, user_us, system, system_us, *counts = self._usage.usage
        return resource.struct_rusage((user + user_us / 1e6, system + system_us / 1e6, *counts))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Exit):
            return NotImplemented
        return (self._code, self._number) == (other._code, other._number)

    def __hash__(self) -> int:
        return hash((self._code, self._number))

    def __repr__(self) -> str:
        return f"<Exit {self.how}>"

    @property
    def how(self) -> str:
        """`with status 0`, `by signal SIGTERM`."""
        if self.signal is not None:
            return f"by signal {name_of_signal(self.signal)}{', core dumped' * self.core}"
        return f"with status {self.status}"


def name_of_signal(number: int) -> str:
    """`SIGTERM` for 15."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


class Process(Owned):
    """A process that was spawned, held by its pidfd.

    As a context manager it leaves neither a stray child nor a zombie: at the block's end a child
    that still runs is killed and reaped. A handle is safe to use from many threads. In a fork of
    ours the block's end does nothing: the child is not the fork's.

    Attributes:
        pid: its number here; meaningful until it is reaped.
        argv: what it was started with, or an empty tuple for one that was not started here.
    """

    __slots__ = ("__weakref__", "_exit", "_pidfd", "_waiting", "argv", "pid")

    def __init__(self, token: object, pid: int, pidfd: int, argv: Sequence[Any] = ()) -> None:
        if token is not _MAKING:
            msg = "use spawn(); for one that runs already, Process.from_pid() or from_pidfd()"
            raise TypeError(msg)
        self.pid = pid
        self._pidfd = pidfd
        self.argv = tuple(argv)
        self._exit: Exit | None = None
        self._waiting: list[int] = []  # the thread of each that is in waitid
        self._maker = here()

    @classmethod
    def from_pid(cls, pid: int) -> Self:
        """Hold a process by its number: pidfd_open. Only its parent can `wait` for it.

        The number must be known to be its own, as that of an unreaped child is.

        Raises: ProcessLookupError. Since: Linux 5.3. See: pidfd_open(2).
        """
        return cls(_MAKING, pid, os.pidfd_open(pid))

    @classmethod
    def from_pidfd(cls, pidfd: int) -> Self:
        """Hold a process by a pidfd, which the handle then owns and closes.

        Raises: ValueError if the descriptor is no pidfd.
        """
        with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:  # noqa: PTH123 - pathlib is slow to import
            pids = [line.split()[1] for line in file if line.startswith("Pid:")]
        if not pids:
            msg = f"descriptor {pidfd} is no pidfd; make one with os.pidfd_open"
            raise ValueError(msg)
        return cls(_MAKING, int(pids[0]), pidfd)

    @property
    def pidfd(self) -> int:
        """The pidfd, which the handle owns: readable when the process has ended. -1 when closed."""
        return self._pidfd

    def fileno(self) -> int:
        """The pidfd, for `select` and its kin.

        Raises: ValueError when the handle is closed.
        """
        if self._pidfd < 0:
            msg = "the handle is closed"
            raise ValueError(msg)
        return self._pidfd

    @property
    def exit(self) -> Exit | None:
        """How it ended, once `wait` or `poll` has seen that."""
        return self._exit

    def wait(self, timeout: float | None = None) -> Exit:
        """Wait until it has ended, and reap it: waitid by pidfd. `timeout` is in seconds.

        It sleeps until then; signal handlers run meanwhile.

        Raises: TimeoutError; ChildProcessError if it is not our child, was reaped elsewhere or
            SIGCHLD is ignored, and the kernel does not keep its status (Linux 6.15 does).
        See: waitid(2), P_PIDFD.
        """
        if timeout is not None and self.poll() is None:
            until = time.monotonic() + timeout
            while not self._ready(until - time.monotonic()):
                if time.monotonic() >= until:
                    msg = f"{self!r} still runs after {timeout} s"
                    raise TimeoutError(msg)
        while self._exit is None:
            self._reap(0)
        return self._exit

    def poll(self) -> Exit | None:
        """How it ended, or None if it has not. It reaps, and does not wait."""
        if self._exit is None:
            self._reap(os.WNOHANG)
        return self._exit

    def _ready(self, timeout: float | None) -> bool:
        """Whether it ends within so many seconds, if any: whether the pidfd is readable."""
        poller = select.poll()
        poller.register(self.fileno(), select.POLLIN)
        most = None if timeout is None else min(max(0.0, timeout) * 1000, MOST_MS)
        return bool(poller.poll(most))

    def _reap(self, options: int) -> None:
        """Call waitid once, and note what it says."""
        ended = ffi.new("struct ck_exit *")
        thread = get_ident()
        self._waiting.append(thread)
        try:
            result = lib.ck_wait(self.fileno(), os.WEXITED | options, ended)
            if result == 0 and ended.pid:
                self._exit = Exit(ended.code, ended.status, ended)
        finally:
            self._waiting.remove(thread)
        if result == -errno.ECHILD:
            self._reaped_elsewhere(options)
        elif result == -errno.EAGAIN:  # the pidfd was made non-blocking, as libuv does
            self._ready(None)
        elif result not in (0, -errno.EINTR):
            raise OSError(-result, f"waitid: {os.strerror(-result)}")

    def _reaped_elsewhere(self, options: int) -> None:
        """Another thread has just reaped it by this handle, or somebody else by other means."""
        for _ in range(MOST_WAITS):
            if self._exit is not None:
                return
            if not any(map(is_another_of_ours, self._waiting.copy())):
                break
            time.sleep(0.001)
        self._kept_status(options)

    def _kept_status(self, options: int) -> None:
        """The status of a process that somebody else reaped, where the kernel keeps it."""
        waits = not options & os.WNOHANG
        reaping = not waits and self._is_child()  # another thread of ours, just now
        code = exit_code(self.fileno(), wait=waits)
        if code is None and not waits and (reaping or not self._ready(0)):
            return
        if code is None:
            msg = (
                f"{self!r} cannot be waited for: it is not our child, or it was reaped elsewhere "
                "(os.wait, SIGCHLD ignored); its status is lost"
            )
            raise ChildProcessError(errno.ECHILD, msg)
        if os.WIFEXITED(code):
            self._exit = Exit(CLD_EXITED, os.WEXITSTATUS(code))
        else:
            self._exit = Exit(CLD_DUMPED if os.WCOREDUMP(code) else CLD_KILLED, os.WTERMSIG(code))

    def _is_child(self) -> bool:
        """Whether it is a child of ours that nobody has reaped; the kernel may not say."""
        try:
            return self.info().get("ppid") == os.getpid()
        except OSError:
            return False

    def send_signal(self, number: int) -> None:
        """Send a signal to this process and never to another: pidfd_send_signal.

        Raises: ProcessLookupError when it has been reaped, PermissionError.
        See: pidfd_send_signal(2).
        """
        result = lib.ck_raw(NUMBERS["pidfd_send_signal"], self.fileno(), int(number), 0, 0, 0, 0)
        if result < 0:
            raise OSError(-result, f"pidfd_send_signal: {os.strerror(-result)}")

    def terminate(self) -> None:
        """Ask it to end: SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it: SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def getfd(self, fd: int) -> int:
        """A descriptor of ours for the open file behind its descriptor `fd`: pidfd_getfd.

        The number is the child's, the result ours, close-on-exec.

        Raises: EPERM without the right to trace it, EBADF, ESRCH. Since: Linux 5.6.
        See: pidfd_getfd(2).
        """
        return pidfd_getfd(self.fileno(), fd)

    def info(self) -> dict[str, int]:
        """What the kernel tells of it: pids, ids, cgroup, exit: PIDFD_GET_INFO.

        Raises: OSError (ENOTTY, EINVAL) before Linux 6.13. See: ioctl_pidfd(2).
        """
        return pidfd_info(self.fileno())

    def adopt(self, outcome: Any) -> None:
        """Own the child of a struct ck_outcome: for a handle that was made before it."""
        self.pid, self._pidfd = outcome.pid, outcome.pidfd
        outcome.pidfd = -1

    def become(self, other: Any) -> None:
        """Hold the process of another handle instead, which holds none then."""
        self.close()
        self.pid, self._pidfd, self._exit = other.pid, other._pidfd, None  # noqa: SLF001
        other._pidfd = -1  # noqa: SLF001 - our own

    def hold(self) -> None:
        """It has begun, and needs no holding."""

    def close(self) -> None:
        """Close the pidfd. A process that still runs goes on, and nobody here can reap it."""
        fd, self._pidfd = self._pidfd, -1
        if fd >= 0:
            os.close(fd)

    def _leave(self) -> None:
        if self._pidfd < 0 or not self.is_own():
            return
        try:
            if self._exit is None:
                self.kill()
                self.wait()
        except (ProcessLookupError, ChildProcessError):
            pass
        finally:
            self.close()

    def __del__(self) -> None:
        if getattr(self, "_pidfd", -1) >= 0 and self.is_own():
            self.close()

    def __repr__(self) -> str:
        state = "running" if self._exit is None else f"ended {self._exit.how}"
        name = f" {os.fsdecode(self.argv[0])!r}" if self.argv else ""
        return f"<Process {self.pid}{name}: {state}>"


def is_another_of_ours(thread: int) -> bool:
    """Whether a thread is not this one, and is there: in a fork of ours, it is not."""
    return thread != get_ident() and thread in sys._current_frames()  # noqa: SLF001 - documented


def blank(argv: Sequence[Any]) -> Process:
    """The handle of a child that is yet to be made, so that the child has an owner at once."""
    return Process(_MAKING, -1, -1, argv)
