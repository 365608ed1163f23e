"""A program in the foreground of a terminal, as a shell's job."""

from __future__ import annotations

import contextlib
import os
import select
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clonekit.process import Exit, Process

#: Signals that the terminal itself sends to our whole process group.
FROM_KEYS = (signal.SIGINT, signal.SIGQUIT)
#: Signals that a program which is stopped shall see at once.
CONTINUED_AFTER = (signal.SIGCONT, signal.SIGHUP, signal.SIGTERM, *FROM_KEYS)


class Job:
    """A program in the foreground, with signals and the terminal as a shell's job has them.

    Where the program is in our process group, the terminal tells it and us alike: we live through
    INT and QUIT to report its end, and stop and go on with it. Where it has a group of its own,
    what we are told is passed on; its stop is ours too, and the terminal, if it took that from
    us, is ours again while it is stopped and after its end.
    """

    __slots__ = ("_borrower", "_early", "_had", "_lent", "_process", "_terminal", "_woken")

    def __init__(self) -> None:
        self._process: Process | None = None
        self._early: list[int] = []
        self._borrower = 0  # the group that took the terminal from us
        self._lent = False  # whether it has it now
        self._terminal = -1
        with contextlib.suppress(OSError):
            self._terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        self._had = self._foreground() == os.getpgrp()
        for number in (
            signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1,
            signal.SIGUSR2, signal.SIGCONT, signal.SIGCHLD,
        ):  # fmt: skip
            # What is ignored here is ignored by the program too, which a handler would undo.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._told)
        # A handler of Python's runs between two calls: without this, a signal that comes just
        # before a wait would be seen after it.
        self._woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)

    def attend(self, process: Process) -> Exit:
        """Wait for the program's end, and for its stops meanwhile."""
        self._process = process
        group = self._foreground()
        if self._had and group != os.getpgrp():
            self._borrower, self._lent = group, True
        for number in self._early:
            self._told(number, None)
        try:
            while not self._has_ended(process):
                if self._is_apart(process):
                    self._take_back()
                    os.kill(os.getpid(), signal.SIGTSTP)
            self._process = None  # nothing is passed on to a number that is free again
            return process.wait()
        finally:
            self._take_back()

    def _has_ended(self, process: Process) -> bool:
        """Wait until the program ends (True) or stops (False)."""
        poller = select.poll()
        poller.register(process.fileno(), select.POLLIN)
        poller.register(self._woken, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poller.poll()]
            if process.fileno() in ready:
                return True
            os.read(self._woken, 4096)
            with contextlib.suppress(ChildProcessError):  # of one that sends no SIGCHLD
                stop = os.WSTOPPED | os.WNOHANG
                if os.waitid(os.P_PIDFD, process.fileno(), stop) is not None:
                    return False

    def _told(self, number: int, _frame: object) -> None:
        """A signal has reached us: pass it on, unless the program was told the same."""
        process = self._process
        if number == signal.SIGCHLD:
            return
        if process is None:
            self._early.append(number)
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if not self._is_apart(process):
                if number not in FROM_KEYS:
                    process.send_signal(number)
                return
            group = os.getpgid(process.pid)
            if number == signal.SIGCONT:
                self._lend_again()
            elif number in FROM_KEYS:
                os.killpg(group, number)
            else:
                process.send_signal(number)
            if number in CONTINUED_AFTER:
                os.killpg(group, signal.SIGCONT)

    def _is_apart(self, process: Process) -> bool:
        """Whether the program is in a process group of its own."""
        try:
            return os.getpgid(process.pid) != os.getpgrp()
        except ProcessLookupError:
            return False

    def _foreground(self) -> int:
        """The group that has our terminal; -1 without one."""
        try:
            return os.tcgetpgrp(self._terminal)
        except OSError:
            return -1

    def _take_back(self) -> None:
        """The terminal is ours again, if it was and the program took it."""
        if self._lent:
            self._lent = False
            self._give(os.getpgrp())

    def _lend_again(self) -> None:
        """We go on: in the foreground, the program has the terminal as before."""
        if self._borrower and self._foreground() == os.getpgrp():
            self._lent = True
            self._give(self._borrower)

    def _give(self, group: int) -> None:
        """Make a group the terminal's foreground group."""
        # In the background this very call would stop us, were SIGTTOU not blocked.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
        with contextlib.suppress(OSError):
            os.tcsetpgrp(self._terminal, group)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
