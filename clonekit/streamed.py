"""A child with asyncio's streams: `create_subprocess_exec` and `create_subprocess_shell`."""

from __future__ import annotations

import asyncio
from asyncio.streams import _DEFAULT_LIMIT as LIMIT  # type: ignore[attr-defined]
from asyncio.subprocess import PIPE, Process, SubprocessStreamProtocol

from clonekit.transport import Transport, transport_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Unpack

    from _typeshed import StrOrBytesPath

    from clonekit.signatures import File, OfAsyncio

#: What asyncio has fixed, for its streams are of bytes and are not buffered.
FIXED = {"bufsize": 0, "encoding": None, "errors": None, "text": False, "universal_newlines": False}


async def connected(
    loop: asyncio.AbstractEventLoop,
    protocol_factory: Callable[[], Any],
    args: Any,
    parameters: dict[str, Any],
    *,
    shell: bool,
) -> tuple[Transport, Any]:
    """What all functions below do."""
    for name, only in {**FIXED, "shell": shell}.items():
        if bool(parameters.pop(name, only)) != bool(only):
            msg = f"{name} must be {only}"
            raise ValueError(msg)
    if shell and not isinstance(args, str | bytes):
        msg = "cmd must be a string"
        raise ValueError(msg)
    protocol = protocol_factory()
    return await transport_of(loop, protocol, args, shell=shell, **parameters), protocol


async def subprocess_exec(
    loop: asyncio.AbstractEventLoop,
    protocol_factory: Callable[[], Any],
    program: Any,
    *args: Any,
    stdin: Any = PIPE,
    stdout: Any = PIPE,
    stderr: Any = PIPE,
    **kwds: Any,
) -> tuple[Transport, Any]:
    """`loop.subprocess_exec` of any loop."""
    parameters = {"stdin": stdin, "stdout": stdout, "stderr": stderr, **kwds}
    return await connected(loop, protocol_factory, (program, *args), parameters, shell=False)


async def subprocess_shell(
    loop: asyncio.AbstractEventLoop,
    protocol_factory: Callable[[], Any],
    cmd: str | bytes,
    *,
    stdin: Any = PIPE,
    stdout: Any = PIPE,
    stderr: Any = PIPE,
    **kwds: Any,
) -> tuple[Transport, Any]:
    """`loop.subprocess_shell` of any loop."""
    parameters = {"stdin": stdin, "stdout": stdout, "stderr": stderr, **kwds}
    return await connected(loop, protocol_factory, cmd, parameters, shell=True)  # noqa: S604 - as asked


async def create_subprocess_exec(
    program: StrOrBytesPath,
    *args: StrOrBytesPath,
    stdin: File = None,
    stdout: File = None,
    stderr: File = None,
    limit: int = LIMIT,
    **kwds: Unpack[OfAsyncio],
) -> Process:
    """`asyncio.create_subprocess_exec` with this library's child, whose pidfd the loop watches.

    Parameters, streams and the process are those of asyncio; further keywords are those of
    `clonekit.Popen`. `limit` is the size of a stream's buffer, in bytes.

    If it is cancelled, there is no child. `Process.wait` ends with the child, whoever else has its
    pipes.

    Raises: what `clonekit.Popen` raises.
    """
    streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
    loop, protocol_factory = streamed(limit)
    made = await subprocess_exec(loop, protocol_factory, program, *args, **streams, **kwds)
    return Process(*made, loop)


async def create_subprocess_shell(
    cmd: str | bytes,
    stdin: File = None,
    stdout: File = None,
    stderr: File = None,
    limit: int = LIMIT,
    **kwds: Unpack[OfAsyncio],
) -> Process:
    """`asyncio.create_subprocess_shell`, likewise: `cmd` is for the shell."""
    streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
    loop, protocol_factory = streamed(limit)
    return Process(*await subprocess_shell(loop, protocol_factory, cmd, **streams, **kwds), loop)


def streamed(limit: int) -> tuple[asyncio.AbstractEventLoop, Callable[[], Any]]:
    """The loop that runs, and what makes a protocol with streams."""
    loop = asyncio.get_running_loop()
    return loop, lambda: SubprocessStreamProtocol(limit=limit, loop=loop)
