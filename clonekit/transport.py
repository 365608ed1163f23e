"""asyncio's subprocesses over this library's spawn: a child whose pidfd the loop itself watches.

Streams and `Process` are asyncio's own. Here is how the child is made, how its pipes are connected
and how its end is seen: no thread, no task, no SIGCHLD, no child watcher. Any loop that has
`add_reader` will do, as uvloop has.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import warnings
from asyncio.log import logger
from signal import SIGKILL, SIGTERM

from clonekit.linux.block import here, is_here
from clonekit.popen import Popen, discard

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

#: What asyncio says of a child whose status nobody knows.
UNKNOWN = 255
#: Seconds after which a child that has ended, but could not be reaped, is looked at again.
SOON = 0.001


class Watched(Popen):
    """A Popen whose pidfd stays open, while a loop watches it, when somebody else has reaped it."""

    _ck_watched = True

    def _ck_let_go(self) -> None:
        if not self._ck_watched:
            super()._ck_let_go()

    def _internal_poll(self, _deadstate: int | None = UNKNOWN, **stock: Any) -> int | None:
        return super()._internal_poll(_deadstate, **stock)

    def unwatched(self) -> None:
        """The loop has forgotten the pidfd of this child, which was reaped."""
        self._ck_watched = False
        self._ck_let_go()


class Pipe(asyncio.Protocol):
    """One stream of a child: what happens there is told to the protocol of the child."""

    def __init__(self, of: Transport, number: int, file: IO[bytes]) -> None:
        self.file = file
        self.transport: Any = None
        self.connected = self.lost = False
        self._of = of
        self._number = number

    async def connect(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have the loop read it, or write to it."""
        if not isinstance(loop, asyncio.BaseEventLoop):
            self.file = libuv_owned(self.file)
        connect: Any = loop.connect_read_pipe if self._number else loop.connect_write_pipe
        await connect(lambda: self, self.file)
        self.connected = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is connected."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """The child has written."""
        self._of.tell("pipe_data_received", self._number, data)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        if not self.lost:
            self.lost = True
            self._of.tell("pipe_connection_lost", self._number, exc)
            self._of.finish()

    def pause_writing(self) -> None:
        """The child reads more slowly than we write."""
        self._of.get_protocol().pause_writing()

    def resume_writing(self) -> None:
        """The child has read."""
        self._of.get_protocol().resume_writing()


class Transport(asyncio.SubprocessTransport):
    """`asyncio.SubprocessTransport` of a child that its own loop watches."""

    _closed = True

    def __init__(
        self, loop: asyncio.AbstractEventLoop, protocol: Any, args: Any, extra: Any, **keywords: Any
    ) -> None:
        super().__init__(extra)
        self._loop = loop
        self._protocol = protocol
        self._untold: list[tuple[str, tuple[Any, ...]]] | None = []
        self._waiters: set[asyncio.Future[None]] = set()
        self._returncode: int | None = None
        self._maker = here()
        child = Watched.__new__(Watched)
        try:
            Watched.__init__(child, args, bufsize=0, **keywords)
            self._extra["subprocess"] = child  # type: ignore[attr-defined]
            self._proc: Watched | None = child
            self._pid = child.pid
            files = enumerate((child.stdin, child.stdout, child.stderr))
            self._pipes = {n: Pipe(self, n, file) for n, file in files if file is not None}
        except BaseException:  # a handler of a signal may raise when there is a child already
            discard(child)
            raise
        self._closed = False

    # What the loop sees of the child.

    def _watch(self) -> None:
        """Have the loop look for its end."""
        assert self._proc is not None  # noqa: S101 - it has not been seen to end
        self._loop.add_reader(self._proc.pidfd, self._has_ended)

    def _has_ended(self) -> None:
        """Reap it."""
        child = self._proc
        assert child is not None  # noqa: S101 - as above
        returncode = child.poll()
        self._loop.remove_reader(child.pidfd)
        if returncode is None:  # another thread is at that, or a tracer has not yet let go of it
            self._loop.call_later(SOON, self._watch)
            return
        child.unwatched()
        if self._pipes:  # what they still hold comes first, and is in the loop's queue already
            self._loop.call_soon(self._exited, returncode)
        else:
            self._exited(returncode)

    def _exited(self, returncode: int) -> None:
        self._returncode = returncode
        self.tell("process_exited")
        self.finish()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def finish(self) -> None:
        """Come to an end, if the child has ended and its pipes are closed."""
        ended = self._untold is None and self._returncode is not None
        if ended and all(pipe.lost for pipe in self._pipes.values()):
            self._loop.call_soon(self._finished)

    def _finished(self) -> None:
        protocol, self._proc, self._protocol = self._protocol, None, None
        protocol.connection_lost(None)

    # What the protocol is told.

    def tell(self, what: str, *values: Any) -> None:
        """Tell the protocol, once it knows of the connection."""
        if self._untold is None:
            self._loop.call_soon(getattr(self._protocol, what), *values)
        else:
            self._untold.append((what, values))

    async def connect(self) -> None:
        """Connect the pipes, then tell the protocol.

        The loop looks for the child's end last, so that it sees all output before that or with it.
        """
        for pipe in self._pipes.values():
            await pipe.connect(self._loop)
        self._watch()
        untold, self._untold = [("connection_made", (self,)), *(self._untold or ())], None
        for what, values in untold:
            self.tell(what, *values)
        self.finish()
        await asyncio.sleep(0)

    def abandon(self) -> None:
        """Kill it, as whoever wanted it does so no more. Its protocol, if not told, never is."""
        self.close()
        if self._untold is None:
            return
        self._protocol, self._untold = asyncio.SubprocessProtocol(), None
        for pipe in self._pipes.values():
            if not pipe.connected:
                pipe.lost = True
                if pipe.transport is None:
                    pipe.file.close()
        try:
            self._watch()
        except Exception:  # noqa: BLE001 - the loop is closed, or of a kind that watches nothing
            child = self._extra["subprocess"]  # type: ignore[attr-defined]
            self._returncode = child.wait()
            child.unwatched()

    # What asyncio's Process, and others, call.

    def close(self) -> None:
        """Close its pipes, and kill it if it runs."""
        if self._closed:
            return
        self._closed = True
        for pipe in self._pipes.values():
            if pipe.transport is not None and not self._loop.is_closed():
                pipe.transport.close()
        if self._proc is not None and self._proc.poll() is None:
            if self._loop.get_debug():
                logger.warning("Close running child process: kill %r", self)
            with contextlib.suppress(PermissionError):  # it has ids that we may not signal
                self._proc.kill()

    def is_closing(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Tell another of what happens."""
        self._protocol = protocol

    def get_protocol(self) -> Any:
        """Whom it tells."""
        return self._protocol

    def get_pid(self) -> int:
        """The child's number."""
        return self._pid

    def get_returncode(self) -> int | None:
        """How the child has ended, if that was seen."""
        return self._returncode

    def get_pipe_transport(self, fd: int) -> asyncio.BaseTransport | None:
        """The transport of the pipe at this number of the child's."""
        return self._pipes[fd].transport if fd in self._pipes else None

    def send_signal(self, signal: int) -> None:
        """Send the child a signal, by its pidfd. One that was seen to end has no pidfd."""
        if self._proc is None or self._returncode is not None:
            raise ProcessLookupError
        self._proc.send_signal(signal)

    def terminate(self) -> None:
        """Ask the child to end: SIGTERM."""
        self.send_signal(SIGTERM)

    def kill(self) -> None:
        """End the child: SIGKILL."""
        self.send_signal(SIGKILL)

    async def _wait(self) -> int | None:
        """Wait until the child has ended; its pipes may be open in children of its own."""
        if self._returncode is None:
            waiter = self._loop.create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        return self._returncode

    def __del__(self) -> None:
        if not self._closed and is_here(self._maker):
            msg = f"unclosed transport {self!r}"
            warnings.warn(msg, ResourceWarning, stacklevel=1, source=self)
            if not self._loop.is_closed():
                self.close()

    def __repr__(self) -> str:
        running = "running" if self._returncode is None else f"returncode={self._returncode}"
        return f"<{type(self).__name__} pid={self._pid} {running}{' closed' * self._closed}>"


def libuv_owned(file: IO[bytes]) -> IO[bytes]:
    """The same pipe at a number that this object does not close: libuv does.

    uvloop closes the object after that, or leaves it to be collected; by then the number may be
    that of another file.
    """
    with file:
        return open(os.dup(file.fileno()), file.mode, 0, closefd=False)


async def transport_of(
    loop: asyncio.AbstractEventLoop, protocol: Any, args: Any, *, extra: Any = None, **keywords: Any
) -> Transport:
    """A child that was made, with its pipes connected; or none, if that is cancelled."""
    transport = Transport(loop, protocol, args, extra, **keywords)
    try:
        await transport.connect()
    except BaseException as error:
        transport.abandon()
        if isinstance(error, Exception | asyncio.CancelledError):
            await asyncio.sleep(0)
            await transport._wait()  # noqa: SLF001 - asyncio's own seam
        raise
    return transport
