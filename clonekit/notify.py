"""Supervise calls from Python: a filter's listener, and the requests that come over it."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading

from clonekit.linux.abi import call, lib
from clonekit.linux.block import Owned, here
from clonekit.linux.memory import address
from clonekit.linux.pidfd import pidfd_getfd
from clonekit.linux.seccomp import seccomp_notif_sizes
from clonekit.request import LAST_ERRNO, NOTIF, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from clonekit.records import Asking, Slot

    Handler = Callable[[Request], object]

__all__ = ["Listener", "Request"]


class Listener(Owned):
    """Where the calls arrive that a filter has for a supervisor: `Filter().notify(..., to=it)`.

        with Listener() as listener:
            filter = Filter("ALLOW").notify("mkdir", "mkdirat", to=listener)
            process = spawn(argv, no_new_privs=True, seccomp=filter)
            listener.serve(lambda request: request.errno(errno.EROFS))

    It is of one filter, and all processes that have this: make one for each spawn. It gets its
    descriptor when that installs the filter, and `serve` may wait for it since before: in another
    thread, it answers the program's exec too. A filter that asks about this and is not yet served
    is refused.

    While no process of ours holds the descriptor, calls that are waiting or to come fail with
    ENOSYS: a supervisor that dies holds nobody up. It is close-on-exec; a fork keeps it open, and
    in that copy `close` only closes the copy's descriptors.

    Where the kernel can (Linux 5.19), a call that has been received is interrupted by nothing but
    death. Before, a signal with a handler interrupts it, and it is made and received again.

    Since: Linux 5.0; that no process is left is told since 5.9. See: seccomp_unotify(2).
    """

    __slots__ = ("_attending", "_closed", "_end", "_fd", "_poll", "lock")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._fd = -1
        self._attending: list[int] = []
        self._closed = False
        self._end = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.epoll()
        self._poll.register(self._end, select.EPOLLIN)
        self._maker = here()

    def take(self, fd: int) -> None:
        """Own this descriptor of a listener from now on.

        Raises: EBUSY if it has one.
        """
        with self.lock:
            if self._fd >= 0 or self._closed:
                raise OSError(errno.EBUSY, f"{self!r}; make one for each spawn")
            self._poll.register(fd, select.EPOLLIN)
            self._fd = fd

    def take_from(self, child: Asking, slot: Slot, *, about_exec: bool) -> Callable[[], object]:
        """Fetch it from a child that has installed the filter: pidfd_getfd. Gives what undoes it.

        Raises: EDEADLK if the filter asks about the child's exec and nobody serves it; EPERM
            without the right to trace the child, EBUSY.
        """
        if about_exec and not set(self._attending) - {threading.get_ident()}:
            msg = (
                "the filter asks its supervisor about the program's own exec, for which the spawn "
                "waits; let another thread serve the listener before it"
            )
            raise OSError(errno.EDEADLK, msg)
        try:
            fd = pidfd_getfd(child.pidfd, child.value(slot))
        except PermissionError as error:
            msg = (
                f"{error.strerror} (it takes the right to trace the child: CAP_SYS_PTRACE, if its "
                "ids or capabilities change or Yama's ptrace_scope is above 1)"
            )
            raise PermissionError(error.errno, msg) from None
        try:
            self.take(fd)
        except OSError:
            os.close(fd)
            raise
        return self._give_up

    @property
    def fd(self) -> int:
        """The descriptor of the kernel's listener.

        Raises: ValueError when it has none.
        """
        if self._fd < 0:
            msg = f"{self!r}: it gets a descriptor when a filter is installed that tells it"
            raise ValueError(msg)
        return self._fd

    def fileno(self) -> int:
        """A descriptor to wait on: readable when `receive` would not wait.

        Raises: ValueError when it is closed.
        """
        return self._poll.fileno()

    @contextlib.contextmanager
    def attended(self) -> Iterator[None]:
        """For whoever waits for requests in a way of his own: what he waits on stays open.

        A filter that asks about the exec of the program that is made may be installed meanwhile.
        """
        with self.lock:
            self._attending.append(threading.get_ident())
        try:
            yield
        finally:
            with self.lock:
                self._attending.remove(threading.get_ident())
                self._dispose()

    def receive(self, timeout: float | None = None) -> Request | None:
        """The next request: SECCOMP_IOCTL_NOTIF_RECV. It waits for the descriptor, too.

        None after `timeout` seconds, after `stop()`, when it is closed, and when no process is
        left that has the filter. A request whose process has died is passed over.
        """
        from time import monotonic

        until = None if timeout is None else monotonic() + timeout
        with self.attended():
            while not self._poll.closed:
                left = None if until is None else max(until - monotonic(), 0)
                events = self.events(left)
                if events & select.EPOLLIN:
                    request = self._received()
                    if request is not None:
                        return request
                elif events or left == 0:
                    return None
        return None

    def events(self, timeout: float | None = 0) -> int:
        """EPOLLIN if a request waits, EPOLLHUP if none will come any more, 0 if neither."""
        found = dict(self._poll.poll(timeout))
        return select.EPOLLHUP if self._end in found else found.get(self._fd, 0)

    def _received(self) -> Request | None:
        """A request, if its process has not died meanwhile, and nobody else has received it."""
        notif = bytearray(max(seccomp_notif_sizes()[0], NOTIF.size))
        with self.lock, contextlib.suppress(InterruptedError, FileNotFoundError):
            if self.events() & select.EPOLLIN:
                call("ioctl", self._fd, lib.SECCOMP_IOCTL_NOTIF_RECV, address(notif))
                return Request(self, notif)
        return None

    def serve(self, handler: Handler) -> None:
        """Let `handler(request)` answer each request, until `stop()` or no process is left.

        A request that it leaves unanswered gets EPERM. So does one at which it raises an exception,
        which passes through and ends the serving; an OSError instead is the call's own errno, as
        of a file that could not be opened. That nobody waits any more is no error.
        """
        while request := self.receive():
            with answered(request):
                handler(request)

    def stop(self) -> None:
        """Let `serve` and `receive` come back, in all threads and for good; calls wait on."""
        if not self._closed:
            os.eventfd_write(self._end, 1)

    def _give_up(self) -> None:
        """Let go of the descriptor."""
        with self.lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                if self.is_own():
                    self._poll.unregister(fd)
                os.close(fd)

    def close(self) -> None:
        """Close it: unless somebody else holds it too, the calls that it was for fail (ENOSYS)."""
        if not self.is_own():  # the threads that held the lock, or waited, are not in the copy
            self.lock = threading.RLock()
            self._attending = [each for each in self._attending if each == threading.get_ident()]
        with self.lock:
            if not self._closed:
                self._give_up()
                if self.is_own():
                    self.stop()
                self._closed = True
                self._dispose()

    def _dispose(self) -> None:
        """What is waited on goes with whoever is the last to wait."""
        if self._closed and not self._attending and not self._poll.closed:
            self._poll.close()
            os.close(self._end)

    def __repr__(self) -> str:
        state = (
            "is closed" if self._closed else "has no filter" if self._fd < 0 else "has its filter"
        )
        return f"<Listener that {state}>"


@contextlib.contextmanager
def answered(request: Request) -> Iterator[None]:
    """See that it has an answer, whatever becomes of the block: EPERM, or an OSError's errno."""
    number = errno.EPERM
    try:
        yield
    except ProcessLookupError:
        if request.is_valid():
            number = errno.ESRCH
    except OSError as error:
        if error.errno and 0 < error.errno <= LAST_ERRNO:
            number = error.errno
    finally:
        if not request.answered:
            with contextlib.suppress(ProcessLookupError, ValueError):
                request.errno(number)
