"""A child with asyncio's streams: `create_subprocess_exec` and `create_subprocess_shell`."""

from __future__ import annotations

import asyncio
from asyncio.streams import _DEFAULT_LIMIT as LIMIT  # type: ignore[attr-defined]
from asyncio.subprocess import Process, SubprocessStreamProtocol

from clonekit.transport import transport_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: What asyncio has fixed, for its streams are of bytes and are not buffered.
FIXED = {"bufsize": 0, "encoding": None, "errors": None, "text": False, "universal_newlines": False}


async def created(args: Any, limit: int, parameters: dict[str, Any], *, shell: bool) -> Process:
    """What both functions below do."""
    for name, only in {**FIXED, "shell": shell}.items():
        if bool(parameters.pop(name, only)) != bool(only):
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
    **kwds: Any,
) -> Process:
    """`asyncio.create_subprocess_exec` with this library's child, whose pidfd the loop watches.

    Parameters, streams and the process are those of asyncio; further keywords are those of
    `clonekit.Popen`. `limit` is the size of a stream's buffer, in bytes.

    Raises: what `clonekit.Popen` raises.
    """
    streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
    return await created((program, *args), limit, {**streams, **kwds}, shell=False)


async def create_subprocess_shell(
    cmd: str | bytes,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    limit: int = LIMIT,
    **kwds: Any,
) -> Process:
    """`asyncio.create_subprocess_shell`, likewise: `cmd` is for the shell."""
    if not isinstance(cmd, str | bytes):
        msg = "cmd must be a string"
        raise ValueError(msg)  # noqa: TRY004 - what asyncio raises
    streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
    return await created(cmd, limit, {**streams, **kwds}, shell=True)  # noqa: S604 - as asked
