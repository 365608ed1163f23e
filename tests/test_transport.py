"""asyncio's subprocesses, in asyncio's loop and in uvloop's: the same objects and streams."""

from __future__ import annotations

import asyncio
import inspect
import signal
from asyncio import subprocess as stock
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from pathlib import Path

import pytest
from looping import Run

from clonekit import DeclarationError, SpawnError, Spec, aio

MIB = 1 << 20
FUNCTIONS = ("create_subprocess_exec", "create_subprocess_shell")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_signatures_are_those_of_asyncio(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(of, name)) for of in (aio, stock))
    told = [
        [(p.name, p.kind, p.default) for p in each.parameters.values()] for each in (ours, theirs)
    ]
    assert told[0] == told[1]
    assert inspect.iscoroutinefunction(getattr(aio, name))


def test_the_objects_are_those_of_asyncio(run: Run) -> None:
    async def work() -> None:
        process = await aio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE, stderr=PIPE)
        assert type(process) is stock.Process
        assert type(process.stdin) is asyncio.StreamWriter
        assert type(process.stdout) is type(process.stderr) is asyncio.StreamReader
        assert process.returncode is None
        assert await process.communicate(b"told") == (b"told", b"")
        assert process.returncode == await process.wait() == 0
        for call in (process.kill, process.terminate, lambda: process.send_signal(0)):
            with pytest.raises(ProcessLookupError):
                call()

    run(work)


def test_streams_that_are_no_pipes_are_none(run: Run) -> None:
    async def work() -> None:
        process = await aio.create_subprocess_exec("true", stdin=DEVNULL, stdout=DEVNULL)
        assert (process.stdin, process.stdout, process.stderr) == (None, None, None)
        assert await process.communicate() == (None, None)
        assert process.returncode == 0

    run(work)


def test_the_transport_is_what_asyncio_says(run: Run) -> None:
    async def work() -> None:
        process = await aio.create_subprocess_exec("sleep", "1000", stdout=PIPE)
        transport = process._transport  # type: ignore[attr-defined]
        assert isinstance(transport, asyncio.SubprocessTransport)
        popen = transport.get_extra_info("subprocess")
        assert process.pid == transport.get_pid() == popen.pid
        assert transport.get_returncode() is None
        assert not transport.is_closing()
        assert transport.get_pipe_transport(0) is None
        assert transport.get_pipe_transport(1) is not None
        assert f"pid={process.pid} running" in repr(transport)
        process.terminate()
        assert await process.wait() == -signal.SIGTERM == popen.returncode
        assert transport.is_closing()
        assert "returncode=-15 closed" in repr(transport)

    run(work)


def test_a_command_is_for_the_shell(run: Run) -> None:
    async def work() -> None:
        for command in ("echo $((6 * 7)); exit 3", b"echo $((6 * 7)); exit 3"):
            process = await aio.create_subprocess_shell(command, stdout=PIPE)
            assert await process.communicate() == (b"42\n", None)
            assert process.returncode == 3

    run(work)


def test_what_is_written_is_read_and_closed(run: Run) -> None:
    async def work() -> None:
        process = await aio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        assert process.stdin
        assert process.stdout
        for line in (b"one\n", b"two\n"):
            process.stdin.write(line)
            await process.stdin.drain()
            assert await process.stdout.readline() == line
        process.stdin.close()
        await process.stdin.wait_closed()
        assert await process.stdout.read() == b""
        assert await process.wait() == 0

    run(work)


def test_a_writer_waits_for_a_child_that_does_not_read(run: Run) -> None:
    async def work() -> None:
        process = await aio.create_subprocess_exec("sleep", "1000", stdin=PIPE)
        assert process.stdin
        process.stdin.write(bytes(MIB))
        waiting = asyncio.create_task(process.stdin.drain())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waiting.done()
        process.kill()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await waiting
        assert await process.wait() == -signal.SIGKILL

    run(work)


def test_a_child_that_ends_without_reading_all_is_no_error_of_communicate(run: Run) -> None:
    async def work() -> None:
        process = await aio.create_subprocess_exec("head", "-c1", stdin=PIPE, stdout=PIPE)
        assert await process.communicate(b"x" * MIB) == (b"x", None)

    run(work)


def test_big_outputs_are_read_whole(run: Run) -> None:
    async def work() -> None:
        command = "head -c 33554432 /dev/zero & head -c 25165824 /dev/zero >&2; wait"
        process = await aio.create_subprocess_shell(command, stdout=PIPE, stderr=PIPE)
        output, errors = await process.communicate()
        assert (len(output), len(errors)) == (32 * MIB, 24 * MIB)
        process = await aio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        output, _ = await process.communicate(bytes(16 * MIB))
        assert len(output) == 16 * MIB

    run(work)


def test_the_limit_is_that_of_a_line(run: Run) -> None:
    async def work() -> None:
        command = ("printf", "%0100d\nnext\n", "0")
        process = await aio.create_subprocess_exec(*command, stdout=PIPE, limit=40)
        assert process.stdout
        with pytest.raises(ValueError, match="limit"):
            await process.stdout.readline()
        await process.communicate()

    run(work)


def test_streams_go_where_they_are_sent(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"

    async def work() -> None:
        command = "cat; echo error >&2"
        process = await aio.create_subprocess_shell(command, PIPE, PIPE, STDOUT)
        assert await process.communicate(b"told\n") == (b"told\nerror\n", None)
        with path.open("w+b") as file:
            for target in (file, file.fileno()):
                process = await aio.create_subprocess_shell(command, DEVNULL, DEVNULL, target)
                assert await process.wait() == 0
            file.seek(0)
            process = await aio.create_subprocess_exec("cat", stdin=file, stdout=PIPE)
            assert await process.communicate() == (b"error\n" * 2, None)

    run(work)


def test_what_asyncio_has_fixed_is_fixed(run: Run) -> None:
    async def work() -> None:
        for wrong in (
            {"text": True}, {"universal_newlines": True}, {"bufsize": 1}, {"encoding": "utf8"},
            {"errors": "strict"}, {"shell": True},
        ):  # fmt: skip
            with pytest.raises(ValueError, match="must be"):
                await aio.create_subprocess_exec("true", **wrong)
        with pytest.raises(ValueError, match="shell must be True"):
            await aio.create_subprocess_shell("true", shell=False)
        with pytest.raises(ValueError, match="cmd must be a string"):
            await aio.create_subprocess_shell(["true"])  # type: ignore[arg-type]
        right = {"text": False, "universal_newlines": False, "bufsize": 0, "encoding": None}
        process = await aio.create_subprocess_exec("true", shell=False, **right)
        assert await process.wait() == 0

    run(work)


def test_a_program_that_is_not_there_is_an_error_that_leaves_nothing(run: Run) -> None:
    async def work() -> None:
        for wrong in ({"cwd": "/nonexistent"}, {}):
            program = "true" if wrong else "/nonexistent"
            with pytest.raises(FileNotFoundError) as told:
                await aio.create_subprocess_exec(
                    program, stdin=PIPE, stdout=PIPE, stderr=PIPE, **wrong
                )
            assert isinstance(told.value, SpawnError)
            assert told.value.filename == "/nonexistent"
        with pytest.raises(PermissionError):
            await aio.create_subprocess_exec("/etc", stdin=PIPE, stdout=PIPE)

    run(work)


def test_a_declaration_is_said_beside(run: Run) -> None:
    async def work() -> None:
        told = "ulimit -n; umask"
        process = await aio.create_subprocess_shell(
            told, stdout=PIPE, rlimits={"nofile": 77}, umask=0o27
        )
        assert await process.communicate() == (b"77\n0027\n", None)
        spec = Spec(["sh", "-c", told], rlimits={"nofile": 78}, umask=0o26)
        process = await aio.create_subprocess_exec(*spec.argv, spec=spec, stdout=PIPE)
        assert await process.communicate() == (b"78\n0026\n", None)
        for wrong, match in (
            ({"preexec_fn": print}, "preexec_fn"),
            ({"rlimits": {"nofiles": 1}}, "nofile"),
            ({"suspended": True}, "clonekit.spawn"),
        ):
            with pytest.raises((DeclarationError, TypeError), match=match):
                await aio.create_subprocess_exec("true", stdin=PIPE, stdout=PIPE, **wrong)

    run(work)


def test_a_loop_in_debug_mode_says_nothing_more(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        process = await aio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        assert await process.communicate(b"told") == (b"told", None)
        process = await aio.create_subprocess_exec("sleep", "1000")
        process._transport.close()  # type: ignore[attr-defined]
        assert await process.wait() == -signal.SIGKILL

    run(work, debug=True)
    told = [record.message for record in caplog.records if "slow" not in record.message.lower()]
    assert [each for each in told if "Executing" not in each][-1:] == [
        each for each in told if each.startswith("Close running child process: kill")
    ]
