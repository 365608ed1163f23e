"""How a child's end is seen by whoever waits, and what a transport or loop leaves at its own."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import subprocess
import sys
import warnings
from asyncio.subprocess import PIPE
from typing import Any

import pytest
from looping import Run, alone, loop_of, nothing_new
from parent_snapshot import children, descriptors

from clonekit import aio
from clonekit.linux.pidfd import pidfd_info


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


TRACER = """
import os, sys
from clonekit.linux.abi import NUMBERS, lib
PTRACE_SEIZE = 0x4206
pid = int(sys.argv[1])
print(lib.ck_raw(NUMBERS["ptrace"], PTRACE_SEIZE, pid, 0, 0, 0, 0), flush=True)
sys.stdin.readline()
os.waitpid(pid, 0)
"""


def test_the_end_of_a_child_is_seen_when_its_tracer_lets_go_of_it(run: Run) -> None:
    """Until then the pidfd is readable, but nobody else may reap it; the loop goes on meanwhile."""

    async def work() -> str | None:
        process = await aio.create_subprocess_exec("sleep", "1000")
        command = (sys.executable, "-c", TRACER, str(process.pid))
        tracer = await aio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        assert tracer.stdout
        seized = await tracer.stdout.readline() == b"0\n"
        process.kill()
        if seized:
            popen = process._transport.get_extra_info("subprocess")  # type: ignore[attr-defined]
            select.select([popen.pidfd], [], [])
            for _ in range(50):
                await asyncio.sleep(0.001)
            assert process.returncode is None
        await tracer.communicate(b"let go\n")
        assert await process.wait() == -signal.SIGKILL
        return None if seized else "the kernel lets nobody trace a sibling (Yama?)"

    if reason := run(work):
        pytest.skip(reason)


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
import asyncio, gc, os, signal
from asyncio.subprocess import PIPE
from clonekit import aio
pids = []
async def main():
    for streams in ({}, {"stdout": PIPE}, {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE}):
        for _ in range(3):
            pids.append((await aio.create_subprocess_exec("sleep", "1000", **streams)).pid)
asyncio.run(main())
gc.collect()
print(sum(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None for pid in pids))
for pid in pids:
    os.kill(pid, signal.SIGKILL)
"""


def test_children_that_are_left_run_on() -> None:
    """Each is warned of, and nothing is raised."""
    result = alone(LEFT)
    assert (result.returncode, result.stdout) == (0, "9\n")
    assert result.stderr.count("unclosed transport <Transport") == 9
    for what in ("Exception ignored", "Traceback", "Error"):
        assert what not in result.stderr


SIGCHLD = """
import asyncio, signal, sys, threading, warnings
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
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # there are no watchers any more, and soon no policies
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
