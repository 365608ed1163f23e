"""trio and anyio under `install()` spawn by us, over each loop; and trio without it."""

from __future__ import annotations

import pytest
from looping import alone

pytest.importorskip("trio")
pytest.importorskip("anyio")
pytest.importorskip("uvloop")

END = """
import gc, os
gc.collect()
try:
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
except ChildProcessError:
    print("no child is left")
print(sum("pidfd" in os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
    if os.path.lexists(f"/proc/self/fd/{fd}")), "pidfds")
"""

TRIO = """
import signal, subprocess
from subprocess import PIPE
import clonekit, trio
async def main():
    result = await trio.run_process(["cat"], stdin=b"told" * 100_000, capture_stdout=True)
    assert result.stdout == b"told" * 100_000
    result = await trio.run_process("exit 3", shell=True, check=False)
    assert result.returncode == 3
    try:
        await trio.run_process(["false"])
    except subprocess.CalledProcessError as error:
        assert error.returncode == 1
    try:
        await trio.run_process(["/nonexistent"])
    except clonekit.SpawnError as error:
        assert isinstance(error, FileNotFoundError)
    for seconds in (0, 0.001, 0.01):
        with trio.move_on_after(seconds) as scope:
            await trio.run_process(["sleep", "1000"])
        assert scope.cancelled_caught
    process = await trio.lowlevel.open_process(["cat"], stdin=PIPE, stdout=PIPE)
    async with process.stdin, process.stdout:
        await process.stdin.send_all(b"told")
        assert await process.stdout.receive_some() == b"told"
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == -signal.SIGTERM == process.returncode
    async with trio.open_nursery() as nursery:
        async def one(number):
            result = await trio.run_process(["sh", "-c", f"exit {number}"], check=False)
            assert result.returncode == number
        for number in range(100):
            nursery.start_soon(one, number)
with clonekit.install() as installation:
    trio.run(main)
print(installation.spawned >= 106, installation.stock)
"""

ANYIO = """
import signal, subprocess, sys
import anyio, uvloop
import clonekit
async def main():
    result = await anyio.run_process(["cat"], input=b"told" * 100_000)
    assert result.stdout == b"told" * 100_000
    result = await anyio.run_process("exit 3", check=False)
    assert result.returncode == 3
    try:
        await anyio.run_process(["/nonexistent"])
    except clonekit.SpawnError as error:
        assert isinstance(error, FileNotFoundError)
    for seconds in (0, 0.001, 0.01):
        with anyio.move_on_after(seconds) as scope:
            await anyio.run_process(["sleep", "1000"])
        assert scope.cancelled_caught
    async with await anyio.open_process(["cat"], stdin=subprocess.PIPE) as process:
        await process.stdin.send(b"told")
        assert await process.stdout.receive() == b"told"
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == -signal.SIGTERM == process.returncode
    async with await anyio.open_process(["yes"]) as process:  # it blocks on a full pipe
        pass
    async with anyio.create_task_group() as group:
        async def one(number):
            result = await anyio.run_process(["sh", "-c", f"exit {number}"], check=False)
            assert result.returncode == number
        for number in range(100):
            group.start_soon(one, number)
name = sys.argv[1]
options = {"use_uvloop": True} if name == "uvloop" else {}
with clonekit.install() as installation:
    anyio.run(main, backend="trio" if name == "trio" else "asyncio", backend_options=options)
print(installation.spawned >= 105, installation.stock)
"""

WITHOUT = """
import trio
import clonekit
async def main():
    with clonekit.spawn(["sh", "-c", "read line; exit 4"], fds={0: 0, 1: 1, 2: 2}) as process:
        await trio.lowlevel.wait_readable(process.pidfd)
        assert process.wait().status == 4
    process = clonekit.Popen(["sh", "-c", "exit 5"])
    await trio.lowlevel.wait_readable(process.pidfd)
    assert process.wait() == 5
    with clonekit.spawn(["sleep", "1000"]) as process, trio.move_on_after(0.01) as scope:
        await trio.lowlevel.wait_readable(process.pidfd)
    assert scope.cancelled_caught and process.exit.signal == 9
trio.run(main)
print("True 0")
"""


@pytest.mark.parametrize(
    ("program", "loop"),
    [(TRIO, "trio"), (ANYIO, "asyncio"), (ANYIO, "uvloop"), (ANYIO, "trio"), (WITHOUT, "trio")],
    ids=["trio", "anyio-asyncio", "anyio-uvloop", "anyio-trio", "trio without"],
)
def test_its_children_are_ours_and_none_is_left(program: str, loop: str) -> None:
    result = alone(program + END, loop)
    assert (result.stderr, result.stdout) == ("", "True 0\nno child is left\n0 pidfds\n")
