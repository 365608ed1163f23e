"""What a protocol of one's own is told of a child, and in which order."""

from __future__ import annotations

import asyncio
import signal
from asyncio.subprocess import PIPE
from typing import Any

import pytest
from looping import Run

from clonekit.transport import Transport, transport_of


class Told(asyncio.SubprocessProtocol):
    """All that a protocol is told, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.lost = asyncio.get_running_loop().create_future()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.events.append(("made",))

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.events.append(("data", fd, data))

    def pipe_connection_lost(self, fd: int, _: Exception | None) -> None:
        self.events.append(("pipe lost", fd))

    def process_exited(self) -> None:
        assert self.transport.get_returncode() is not None
        self.events.append(("exited",))

    def connection_lost(self, exc: Exception | None) -> None:
        assert exc is None
        self.events.append(("lost",))
        self.lost.set_result(None)


async def told_of(*argv: str, **keywords: Any) -> tuple[Transport, Told]:
    protocol = Told()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"))
    loop = asyncio.get_running_loop()
    transport = await transport_of(loop, protocol, argv, shell=False, **{**streams, **keywords})
    return transport, protocol


def test_a_protocol_is_told_of_all_output_before_the_end(run: Run) -> None:
    async def one(length: int) -> None:
        command = f"head -c {length} /dev/zero; head -c {length} /dev/zero >&2; exit 7"
        transport, protocol = await told_of("sh", "-c", command, stdout=PIPE, stderr=PIPE)
        await protocol.lost
        kinds = [event[0] for event in protocol.events]
        assert (kinds[0], kinds[-1]) == ("made", "lost")
        until = protocol.events[: kinds.index("exited")]
        for fd in (1, 2):
            told = [event[2] for event in until if event[:2] == ("data", fd)]
            assert sum(map(len, told)) == length
            assert protocol.events.count(("pipe lost", fd)) == 1
        assert kinds.count("exited") == 1
        assert transport.get_returncode() == 7
        transport.close()

    async def work() -> None:
        for length in (1, 4096, 65536):
            for _ in range(20):
                await one(length)
            await asyncio.gather(*(one(length) for _ in range(20)))

    run(work)


def test_a_protocol_without_pipes_is_told_of_the_end(run: Run) -> None:
    async def work() -> None:
        transport, protocol = await told_of("true")
        await protocol.lost
        assert protocol.events == [("made",), ("exited",), ("lost",)]
        assert await transport._wait() == 0
        transport.close()

    run(work)


def test_closing_the_transport_kills_and_reaps(run: Run) -> None:
    async def work() -> None:
        for stream in (None, PIPE):
            transport, protocol = await told_of("sleep", "1000", stdin=stream, stdout=stream)
            transport.close()
            transport.close()
            await protocol.lost
            assert await transport._wait() == -signal.SIGKILL
            assert transport.is_closing()
            with pytest.raises(ProcessLookupError):
                transport.kill()

    run(work)


def test_closing_the_transport_of_a_child_that_has_ended_kills_nobody(run: Run) -> None:
    async def work() -> None:
        transport, protocol = await told_of("sh", "-c", "exit 3")
        popen = transport.get_extra_info("subprocess")
        assert popen.wait() == 3
        transport.close()
        await protocol.lost
        assert transport.get_returncode() == 3

    run(work)
