"""asyncio and uvloop under `install()`: their children are ours, and each is counted once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from asyncio import create_subprocess_exec as imported_earlier
from asyncio import unix_events
from asyncio.subprocess import PIPE
from warnings import catch_warnings, simplefilter

import pytest
from looping import Run, alone

import clonekit
from clonekit.transport import Transport

uvloop = pytest.importorskip("uvloop")


def test_functions_and_loops_spawn_by_us(run: Run) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        functions = asyncio.create_subprocess_exec, asyncio.subprocess.create_subprocess_exec
        for create in (*functions, imported_earlier):
            process = await create("cat", stdin=PIPE, stdout=PIPE)
            assert type(process._transport) is Transport  # type: ignore[attr-defined]
            assert await process.communicate(b"told") == (b"told", None)
        process = await asyncio.create_subprocess_shell("exit 3")
        assert await process.wait() == 3
        for make, program in ((loop.subprocess_exec, "true"), (loop.subprocess_shell, "exit 0")):
            transport, protocol = await make(asyncio.SubprocessProtocol, program)
            assert type(transport) is Transport
            assert type(protocol) is asyncio.SubprocessProtocol
            assert await transport._wait() == 0
            transport.close()

    with clonekit.install() as installation:
        before = installation.spawned, installation.stock
        run(work)
        assert (installation.spawned, installation.stock) == (before[0] + 6, before[1])


def test_what_asyncio_says_of_wrong_parameters_is_said(run: Run) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        for make in (loop.subprocess_exec, loop.subprocess_shell):
            for wrong in ({"bufsize": 1}, {"universal_newlines": True}):
                with pytest.raises(ValueError, match="must be"):
                    await make(asyncio.SubprocessProtocol, "true", **wrong)

    with clonekit.install():
        run(work)


def test_it_is_taken_out_again() -> None:
    places = (subprocess.Popen, asyncio, asyncio.subprocess, uvloop.Loop)
    hook = vars(asyncio.AbstractEventLoop).copy()
    places += (unix_events._UnixSelectorEventLoop,)  # type: ignore[attr-defined]

    def public() -> list[dict[str, object]]:
        return [{n: v for n, v in vars(of).items() if not n.startswith("_")} for of in places]

    def seams() -> list[object]:
        names = ("_execute_child", "_internal_poll", "_wait")
        loop = vars(places[-1])["_make_subprocess_transport"]
        return [vars(subprocess.Popen)[name] for name in names] + [loop]

    before = public(), seams()
    installation = clonekit.install()
    assert clonekit.install() is installation
    installation.uninstall()
    assert (public(), seams()) != before
    installation.uninstall()
    assert (public(), seams()) == before
    installation.uninstall()
    assert vars(asyncio.AbstractEventLoop) == hook
    with clonekit.install():
        assert (public(), seams()) != before
    assert (public(), seams()) == before


LATER = """
import asyncio
import clonekit
from clonekit.transport import Transport
installation = clonekit.install()
import uvloop
async def main(kind):
    loop = asyncio.get_running_loop()
    for make in (loop.subprocess_exec, loop.subprocess_shell):
        transport, _ = await make(asyncio.SubprocessProtocol, "true")
        assert (type(transport) is Transport) is kind
        await transport._wait()
        transport.close()
uvloop.run(main(True))
print(installation)
installation.uninstall()
uvloop.run(main(False))
class Own(uvloop.Loop):
    pass
"""


def test_a_loop_that_is_imported_later_spawns_by_us_and_is_left_again() -> None:
    assert alone(LATER).stdout == "<Installation: installed, 2 spawned, 0 left to stock>\n"


def test_what_was_not_made_is_not_counted(run: Run) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        for create in (asyncio.create_subprocess_exec, imported_earlier):
            with pytest.raises(FileNotFoundError):
                await create("/nowhere/to/be/found")
        with pytest.raises(FileNotFoundError):
            await loop.subprocess_exec(asyncio.SubprocessProtocol, "/nowhere/to/be/found")

    with clonekit.install() as installation, catch_warnings():
        before = installation.spawned, installation.stock
        for keywords in ({}, {"preexec_fn": os.getpid}):
            simplefilter("ignore")
            with pytest.raises(FileNotFoundError):
                subprocess.run(["/nowhere/to/be/found"], check=False, **keywords)  # type: ignore[call-overload]
        with pytest.raises(FileNotFoundError):
            subprocess.run(["true"], cwd="/nowhere/to/be/found", check=False)
        run(work)
        assert (installation.spawned, installation.stock) == before
        subprocess.run(["true"], check=True)
        assert (installation.spawned, installation.stock) == (before[0] + 1, before[1])


def test_many_threads_count_each_child_once() -> None:
    def work() -> None:
        for _ in range(250):
            subprocess.run(["true"], check=True)

    with clonekit.install() as installation:
        before = installation.spawned
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert installation.spawned == before + 2000


PREEXEC = """
import asyncio, sys, warnings
import clonekit, uvloop
from clonekit.transport import Transport
warnings.simplefilter("always")
async def main():
    loop = asyncio.get_running_loop()
    for keywords in ({}, {"preexec_fn": lambda: None}):
        process = await asyncio.create_subprocess_exec("true", **keywords)
        assert await process.wait() == 0
        assert (type(process._transport) is Transport) is not bool(keywords)
        transport, _ = await loop.subprocess_shell(asyncio.SubprocessProtocol, "true", **keywords)
        await transport._wait()
        transport.close()
        assert (type(transport) is Transport) is not bool(keywords)
with clonekit.install() as installation:
    asyncio.run(main()) if sys.argv[1] == "asyncio" else uvloop.run(main())
print(installation)
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_preexec_fn_goes_to_the_stock_code_with_one_warning(loop: str) -> None:
    result = alone(PREEXEC, loop)
    assert result.stdout == "<Installation: not installed, 2 spawned, 2 left to stock>\n"
    assert result.stderr.count("RuntimeWarning: preexec_fn") == 1


MEANWHILE = """
import asyncio, random, subprocess, sys, threading
import clonekit, uvloop
from clonekit.transport import Transport
ends, wrong, kinds = [], [], set()
def wait():
    while not ends:
        status = random.randrange(256)
        process = subprocess.Popen(["sh", "-c", f"sleep 0.00{random.randrange(3)}; exit {status}"])
        kinds.add(("Popen", process.__dict__.get("_ck_child") is None))
        call = random.choice((process.wait, lambda: process.wait(60), process.communicate))
        call()
        if process.returncode != status:
            wrong.append((process, status))
async def one():
    status = random.randrange(256)
    command = f"sleep 0.00{random.randrange(3)}; exit {status}"
    process = await asyncio.create_subprocess_shell(command)
    kinds.add(("asyncio", type(process._transport) is Transport))
    if await process.wait() != status:
        wrong.append((process, status))
async def main():
    while not ends:
        await asyncio.gather(*(one() for _ in range(5)))
threads = [threading.Thread(target=wait) for _ in range(2)]
threads.append(threading.Thread(target=lambda: asyncio.run(main())))
threads.append(threading.Thread(target=lambda: uvloop.run(main())))
heard = []
threading.excepthook = heard.append
for thread in threads:
    thread.start()
turns = 0
while (turns := turns + 1) <= 400 or len(kinds) < 4 and not wrong and not heard:
    with clonekit.install():
        threading.Event().wait(0.002)
    threading.Event().wait(0.002)
ends.append(True)
for thread in threads:
    thread.join()
print(heard, wrong, len(kinds))
"""


def test_installing_meanwhile_disturbs_no_child_of_either_kind() -> None:
    result = alone(MEANWHILE)
    assert (result.stderr, result.stdout) == ("", "[] [] 4\n")
