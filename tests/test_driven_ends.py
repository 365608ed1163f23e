"""What handlers, filters and refusals do while a child is driven: nothing is lost or left."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from awaited import RUNG, Bell, beside, told_in_mid_order
from parent_snapshot import children, descriptors, unchanged
from step_cases import refusing

from clonekit import (
    DeclarationError,
    Fd,
    Process,
    Program,
    SpawnError,
    Suspended,
    aio,
    nascent,
    spawn,
)
from clonekit.linux.abi import lib
from clonekit.steps import (
    execute,
    install_seccomp_filter,
    open_file,
    place_descriptors,
    set_no_new_privs,
    set_parent_death_signal,
    set_umask,
    system_call,
)
from clonekit.steps.step import Step

DEATH = """
import ctypes
number = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(number))  # PR_GET_PDEATHSIG
print(number.value)
"""
ALLOWED = struct.pack("=HBBI", 6, 0, 0, lib.SECCOMP_RET_ALLOW)


def test_a_handler_may_kill_the_child_whose_order_is_waited_for() -> None:
    with unchanged():
        for _ in range(5):
            child = nascent()
            others = [nascent() for _ in range(9)]  # their memory leaves no room in the pool
            for other in others:
                other.kill()
            with (
                told_in_mid_order(child.kill) as waits,
                pytest.raises(SpawnError, match="signal 9"),
            ):
                child.do(*waits)


def test_a_handlers_order_in_mid_order_is_refused_and_harms_nothing() -> None:
    refused: list[OSError] = []

    def orders() -> None:
        with pytest.raises(OSError, match="another order") as told:
            child.do(set_umask(0))
        refused.append(told.value)

    with unchanged(), nascent(umask=0o27) as child:
        with told_in_mid_order(orders) as waits:
            assert child.do(*waits) == RUNG
        assert [error.errno for error in refused] == [errno.EBUSY]
        refused.clear()
        assert child.do(set_umask(0)) == 0o27


def test_another_threads_order_in_mid_order_is_refused_and_harms_nothing() -> None:
    results: list[object] = []
    before = descriptors()
    with nascent() as child, open("/dev/null", "rb") as null, Bell() as bell:
        with beside(lambda: results.append(child.do(*bell.steps))):
            assert bell.heard()
            with pytest.raises(OSError, match="another order") as told:
                child.give(null)
            bell.let_go()
        assert told.value.errno == errno.EBUSY
        assert results == [RUNG]
        fd = child.give(null).fetch()
        assert os.readlink(f"/proc/self/fd/{fd}") == "/dev/null"
        os.close(fd)
    assert (children(), descriptors()) == ([], before)


def test_a_handlers_order_in_a_suspended_process_is_refused() -> None:
    told: list[str] = []

    def orders() -> None:
        for use in (lambda: process.syscall("getpid"), process.resume):
            with pytest.raises(RuntimeError) as error:
                use()
            told.append(str(error.value))

    with unchanged(), spawn(["true"], suspended=True) as process:
        with told_in_mid_order(orders) as waits:
            assert process.do(*waits) == RUNG
        assert len(told) == 2
        with process.resume() as running:
            assert running.wait().status == 0


@pytest.mark.parametrize("answer", [errno.EPERM, None], ids=["refuses", "kills"])
@pytest.mark.parametrize("made", ["spawned", "started"])
def test_a_filter_that_keeps_a_program_from_being_held_leaves_nothing(
    answer: int | None, made: str
) -> None:
    filtered = refusing({"prctl": answer}) if answer else refusing({"prctl": errno.EPERM})
    if answer is None:
        filtered = filtered.replace(
            struct.pack("=I", lib.SECCOMP_RET_ERRNO | errno.EPERM),
            struct.pack("=I", lib.SECCOMP_RET_KILL_PROCESS),
        )
    given = {"suspended": True, "no_new_privs": True, "seccomp": filtered}
    before = descriptors()

    def started() -> None:
        with nascent() as child:
            child.start(["sleep", "1000"], **given)

    with pytest.raises(SpawnError, match="PDEATHSIG") as told:
        started() if made == "started" else spawn(["sleep", "1000"], **given)
    assert told.value.errno == (answer or errno.ECHILD)
    assert "must allow prctl" in told.value.hint
    del told
    assert (children(), descriptors()) == ([], before)


def test_a_sigsys_that_somebody_sends_waits_for_the_resume() -> None:
    with unchanged(), spawn(["sleep", "1000"], suspended=True) as process:
        os.kill(process.pid, signal.SIGSYS)
        for _ in range(5):
            assert process.syscall("getpid") == process.pid
        with process.resume() as running:
            assert running.wait().signal == signal.SIGSYS


def printed(make: Callable[[dict[int, object]], Process]) -> str:
    """What a program prints."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(reader) as told:
        try:
            process = make({0: 0, 1: writer, 2: 2})
        finally:
            os.close(writer)
        with process:
            return told.read()


@pytest.mark.parametrize(
    ("steps", "seen"),
    [
        ([], "0"),
        ([set_parent_death_signal("TERM")], "15"),
        ([set_parent_death_signal("TERM"), system_call("unshare", lib.CLONE_FS)], "15"),
        ([set_no_new_privs(), install_seccomp_filter(ALLOWED)], "0"),
        (
            [
                set_no_new_privs(),
                install_seccomp_filter(ALLOWED),
                system_call("setresgid", os.getgid(), -1, -1),
            ],
            "0",
        ),
    ],
    ids=["none", "declared", "declared-first", "filtered", "filtered-first"],
)
@pytest.mark.parametrize("deadline", [None, 60])
def test_a_program_has_the_parent_death_signal_that_was_declared(
    steps: list[Step], seen: str, deadline: float | None
) -> None:
    argv = ["python3", "-c", DEATH]

    def make(fds: dict[int, object]) -> Process:
        own = [place_descriptors(fds), *steps, execute(argv)]
        return Program(own, deadline=deadline).spawn()

    assert printed(make) == f"{seen}\n"


def test_an_order_that_fails_leaves_no_descriptor_in_a_suspended_program() -> None:
    def held() -> list[str]:
        return sorted(os.listdir(f"/proc/{process.pid}/fd"))

    process: Suspended
    with unchanged(), spawn(["true"], suspended=True) as process:
        before = held()
        with pytest.raises(DeclarationError, match="not open here"):
            process.give(4999)
        with open("/dev/null", "rb") as null, pytest.raises(OSError, match="ENOTTY"):
            process.syscall("ioctl", Fd(null), lib.TIOCSCTTY, 0)
        assert held() == before


def test_a_start_that_failed_and_inherits_keeps_nothing_that_it_was_given() -> None:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with unchanged(), nascent() as child:
        for _ in range(3):
            with pytest.raises(FileNotFoundError):
                child.start(["/nonexistent"], fds="inherit", steps=[system_call("fsync", 0)][:0])
        assert len(os.listdir(f"/proc/{child.pid}/fd")) == 2
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_start_that_is_refused_does_not_take_the_handle_of_another(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    async def work() -> None:
        async with await aio.nascent() as child:
            waits = [open_file(gate)]
            first = asyncio.create_task(child.start(["sleep", "9"], steps=waits, suspended=True))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="another task"):
                await child.start(["true"])
            opened = os.open(gate, os.O_RDWR)
            process = await first
            os.close(opened)
        assert isinstance(process, Suspended)
        process.kill()

    with unchanged():
        asyncio.run(work())
