"""How a child's end is seen by whoever waits, and what a transport or loop leaves at its own."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import warnings
from asyncio.subprocess import PIPE
from typing import Any

import pytest
from looping import Run, alone, loop_of, nothing_new
from parent_snapshot import children, descriptors

from clonekit import aio
from clonekit.linux.pidfd import pidfd_info
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


def test_many_tasks_wait_for_one_child(run: Run) -> None:
    async def work() -> None:
        process = await aio.create_subprocess_shell("read line; exit 9", stdin=PIPE)
        waits = [asyncio.create_task(process.wait()) for _ in range(500)]
        await asyncio.sleep(0)
        await process.communicate(b"go\n")
        assert await asyncio.gather(*waits) == [9] * 500
        assert await process.wait() == 9

    run(work)


def test_a_wait_ends_with_the_child_though_its_own_child_has_the_pipes(run: Run) -> None:
    async def work() -> None:
        reader, writer = os.pipe()
        process = await aio.create_subprocess_shell(
            f"cat /dev/fd/{reader} & exit 5", stdin=PIPE, stdout=PIPE, pass_fds=[reader]
        )
        os.close(reader)
        assert await process.wait() == 5
        os.write(writer, b"later")
        os.close(writer)
        assert await process.communicate() == (b"later", None)

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


def test_a_loop_that_cannot_watch_leaves_nothing() -> None:
    class Blind(asyncio.SelectorEventLoop):
        def add_reader(self, *_: Any) -> None:
            raise NotImplementedError

    async def work() -> None:
        with nothing_new():
            for stream in (None, PIPE):
                with pytest.raises(NotImplementedError):
                    await aio.create_subprocess_exec("sleep", "1000", stdin=stream, stdout=stream)

    with asyncio.Runner(loop_factory=Blind) as runner:
        runner.run(work())


@pytest.mark.parametrize("streams", [{}, {"stdin": PIPE, "stdout": PIPE}])
@pytest.mark.parametrize("name", ["asyncio", "uvloop"])
def test_a_loop_that_is_closed_meanwhile_leaves_a_warning_and_no_descriptor(
    name: str, streams: dict[str, int]
) -> None:
    make = loop_of(name)
    before = descriptors()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        loop = make()
        process = loop.run_until_complete(aio.create_subprocess_exec("sleep", "1000", **streams))
        popen = process._transport.get_extra_info("subprocess")  # type: ignore[attr-defined]
        loop.close()
        del process, loop
        gc.collect()
        assert popen.poll() is None
        popen.kill()
        assert popen.wait() == -signal.SIGKILL
        told = [(each.category, str(each.message)) for each in warned]
        del popen, warned[:]
        gc.collect()
    assert {category for category, _ in told} == {ResourceWarning}
    assert sum("unclosed transport <Transport" in message for _, message in told) == 1
    assert descriptors().items() - before.items() == set()
    assert children() == []


LEFT = """
import warnings
warnings.simplefilter("always")
import asyncio, gc, os, signal, sys
from asyncio.subprocess import PIPE
import clonekit
of = clonekit.aio if sys.argv[1] == "ours" else asyncio
pids = []
async def main():
    for streams in ({}, {"stdout": PIPE}, {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE}):
        for _ in range(3):
            pids.append((await of.create_subprocess_exec("sleep", "1000", **streams)).pid)
asyncio.run(main())
gc.collect()
print(sum(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None for pid in pids))
for pid in pids:
    os.kill(pid, signal.SIGKILL)
"""


@pytest.mark.parametrize("of", ["ours", "stock"])
def test_children_that_are_left_run_on(of: str) -> None:
    """As they do with the threads of asyncio's own; each is warned of, and nothing is raised."""
    result = alone(LEFT, of)
    assert result.returncode == 0
    assert result.stdout == "9\n"
    if of == "ours":
        assert result.stderr.count("unclosed transport <Transport") == 9
        for what in ("Exception ignored", "Traceback", "Error"):
            assert what not in result.stderr


SIGCHLD = """
import asyncio, signal, sys, threading
from asyncio.subprocess import PIPE
from clonekit import aio
how = sys.argv[1]
if how == "ignored":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
elif how == "blocked":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
elif how == "handled":
    signal.signal(signal.SIGCHLD, lambda *_: None)
handler = signal.getsignal(signal.SIGCHLD)
async def one(status):
    process = await aio.create_subprocess_shell(f"cat; exit {status}", stdin=PIPE, stdout=PIPE)
    assert await process.communicate(b"told") == (b"told", None)
    process = await aio.create_subprocess_shell(f"exit {status}")
    assert threading.active_count() == 1
    return await process.wait()
async def main():
    assert asyncio.get_running_loop()._signal_handlers == {}
    return await asyncio.gather(*(one(status) for status in range(30)))
with asyncio.Runner() as runner:
    runner.get_loop()._signal_handlers.clear()
    ended = runner.run(main())
assert signal.getsignal(signal.SIGCHLD) is handler
assert getattr(asyncio.get_event_loop_policy(), "_watcher", None) is None
print(ended == list(range(30)) or (how == "ignored" and ended == [255] * 30 and "lost"))
"""


def keeps_status() -> bool:
    """Whether the kernel keeps the status of a child that was reaped."""
    process = subprocess.Popen(["true"])
    pidfd = os.pidfd_open(process.pid)
    try:
        process.wait()
        return "exit_code" in pidfd_info(pidfd)
    except OSError:
        return False
    finally:
        os.close(pidfd)


@pytest.mark.parametrize("how", ["default", "ignored", "blocked", "handled"])
def test_no_thread_no_handler_and_no_watcher_sees_the_end(how: str) -> None:
    result = alone(SIGCHLD, how)
    assert result.stderr == ""
    known = how != "ignored" or keeps_status()
    assert result.stdout == ("True\n" if known else "lost\n")
