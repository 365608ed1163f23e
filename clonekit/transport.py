"""asyncio's subprocesses over this library's spawn: a child whose pidfd the loop itself watches.

Streams, pipes and `Process` are asyncio's own. Here is only how the child is made and its end seen:
no thread, no SIGCHLD, no child watcher. Any loop that has `add_reader` will do, as uvloop has.
"""

from __future__ import annotations

import asyncio
from asyncio import base_subprocess
from asyncio.streams import _DEFAULT_LIMIT as LIMIT  # type: ignore[attr-defined]
from asyncio.subprocess import Process, SubprocessStreamProtocol

from clonekit.popen import Popen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: What asyncio has fixed, for its streams are of bytes and are not buffered.
FIXED = {"bufsize": 0, "encoding": None, "errors": None, "text": None, "universal_newlines": False}


class Watched(Popen):
    """A Popen whose pidfd stays open, while a loop watches it, when somebody else has reaped it."""

    _watched = True

    def _let_go(self) -> None:
        if not self._watched:
            super()._let_go()

    def unwatched(self) -> None:
        """The loop has forgotten the pidfd."""
        self._watched = False
        self._let_go()


class Transport(base_subprocess.BaseSubprocessTransport):
    """`asyncio.SubprocessTransport` of a child that its own loop watches."""

    _proc: Watched | None

    def _start(self, args: Any, **parameters: Any) -> None:  # type: ignore[override]
        """Spawn it, and have the loop tell when it has ended."""
        self._proc = Watched(args, **parameters)
        self._loop.add_reader(self._proc.pidfd, self._has_ended)

    def _has_ended(self) -> None:
        """Reap it. If another thread is just doing that, the loop calls again."""
        child = self._proc
        assert child is not None  # noqa: S101 - the loop watches it
        returncode = child.poll()
        if returncode is None:
            return
        self._loop.remove_reader(child.pidfd)
        child.unwatched()
        # What its pipes still hold is read first: these callbacks are in the loop's queue already.
        self._loop.call_soon(self._process_exited, returncode)


async def transport_of(
    loop: asyncio.AbstractEventLoop, protocol: Any, args: Any, **parameters: Any
) -> Transport:
    """A child that was made, with its pipes connected."""
    waiter = loop.create_future()
    transport = Transport(loop, protocol, args, waiter=waiter, bufsize=0, **parameters)
    try:
        await waiter
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException:
        transport.close()
        await transport._wait()  # noqa: SLF001 - asyncio's own seam
        raise
    return transport


async def created(args: Any, limit: int, parameters: dict[str, Any], *, shell: bool) -> Process:
    """What both functions below do."""
    for name, only in {**FIXED, "shell": shell}.items():
        if parameters.pop(name, only) not in {only, None}:
            msg = f"{name} must be {only}"
            raise ValueError(msg)
    loop = asyncio.get_running_loop()
    protocol = SubprocessStreamProtocol(limit=limit, loop=loop)
    transport = await transport_of(loop, protocol, args, shell=shell, **parameters)
    return Process(transport, protocol, loop)


async def create_subprocess_exec(
    program: Any,
    *args: Any,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    limit: int = LIMIT,
    **parameters: Any,
) -> Process:
    """`asyncio.create_subprocess_exec` with this library's child, whose pidfd the loop watches.

    Parameters, streams and the process are those of asyncio; further keywords are those of
    `clonekit.Popen`. `limit` is the size of a stream's buffer, in bytes.

    Raises: what `clonekit.Popen` raises.
    """
    streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
    return await created((program, *args), limit, {**streams, **parameters}, shell=False)


async def create_subprocess_shell(
    cmd: str | bytes,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    limit: int = LIMIT,
    **parameters: Any,
) -> Process:
    """`asyncio.create_subprocess_shell`, likewise: `cmd` is for the shell."""
    if not isinstance(cmd, str | bytes):
        msg = "cmd must be a string"
        raise ValueError(msg)  # noqa: TRY004 - what asyncio raises
    streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
    return await created(cmd, limit, {**streams, **parameters}, shell=True)  # noqa: S604 - as asked
