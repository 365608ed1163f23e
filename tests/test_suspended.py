"""A program that is loaded and has not begun: what it is, and what can be done to it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from suspending import PYTHON, compiled, entry, mask, memory, printed, status, suspended

from clonekit import Suspended
from clonekit.steps import (
    open_file,
    system_call,
)

EVERY = tuple(range(1, 65))
BLOCKABLE = [number for number in EVERY if number not in {signal.SIGKILL, signal.SIGSTOP}]
HELLO = '#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n'
Make = Callable[[Path], list[str | Path]]


def script(directory: Path, text: str) -> list[str | Path]:
    """A script that may be executed."""
    path = directory / "script"
    path.write_text(text)
    path.chmod(0o755)
    return [path]


PROGRAMS: dict[str, Make] = {
    **{
        kind: (lambda directory, kind=kind: [compiled(directory, HELLO, kind)])  # type: ignore[misc]
        for kind in ("static", "static-pie", "dynamic", "dynamic-pie")
    },
    "script": lambda directory: script(directory, "#!/bin/sh\necho hello\n"),
    "python": lambda _: [*PYTHON, "-c", "print('hello')"],
}


# ---- what it is ----


@pytest.mark.parametrize("make", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_of_any_kind_has_not_run_and_runs_when_it_is_resumed(
    make: Make, tmp_path: Path
) -> None:
    argv = make(tmp_path)

    def look(held: Suspended) -> None:
        assert status(held.pid, "State").startswith("t ")
        assert status(held.pid, "TracerPid") == str(os.getpid())
        auxiliary = held.auxv()
        counter = held.registers["rip" if "rip" in held.registers else "pc"]
        if "base" not in auxiliary or not auxiliary["base"]:
            assert counter == auxiliary["entry"]
        else:
            assert counter - auxiliary["base"] == entry(interpreter(held.pid, auxiliary["base"]))
        assert held.syscall("getpid") == held.pid

    assert printed(argv, look) == "hello\n"


def interpreter(pid: int, base: int) -> Path:
    """The file that is mapped at this address."""
    rows = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return Path(next(row.split()[5] for row in rows if int(row.split("-")[0], 16) == base))


def test_nothing_traces_it_when_it_is_resumed() -> None:
    with suspended(["sleep", "1000"]) as held, held.resume() as process:
        assert status(process.pid, "TracerPid") == "0"
        assert status(process.pid, "State")[0] in "RSD"
        with pytest.raises(ValueError, match="holds no child"):
            held.fileno()


@pytest.mark.parametrize(
    "names",
    [[], ["TERM", 64], ["TRAP"], BLOCKABLE, None],
    ids=["none", "two", "trap", "all", "inherited"],
)
def test_its_mask_is_all_until_it_is_resumed_and_then_the_declared_one(
    names: list[int | str] | None,
) -> None:
    def look(held: Suspended) -> None:
        assert status(held.pid, "SigBlk") == mask(*BLOCKABLE)

    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTRAP, signal.SIGUSR1])
    try:
        text = printed(["grep", "SigBlk", "/proc/self/status"], look, sigmask=names)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
    numbers = {
        name if isinstance(name, int) else int(getattr(signal, f"SIG{name}"))
        for name in names or ()
    }
    if names is None:
        numbers = {*earlier, signal.SIGTRAP, signal.SIGUSR1}
    assert text.split()[1] == mask(*numbers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGTRAP, signal.SIGUSR1, 40])
def test_a_signal_that_came_meanwhile_acts_when_it_is_resumed(number: int) -> None:
    with suspended(["sleep", "1000"]) as held:
        os.kill(held.pid, number)
        assert held.syscall("getpid") == held.pid
        with held.resume() as process:
            assert process.wait().signal == number


def test_a_signal_that_came_meanwhile_is_pending_where_it_is_blocked() -> None:
    argv: list[str | Path] = ["grep", "ShdPnd", "/proc/self/status"]
    text = printed(argv, lambda held: os.kill(held.pid, signal.SIGTERM), sigmask=["TERM"])
    assert text.split()[1] == mask(signal.SIGTERM)


@pytest.mark.parametrize("orders", [0, 1])
def test_a_stop_that_came_meanwhile_is_seen_when_it_is_resumed(orders: int) -> None:
    with suspended(["true"]) as held:
        os.kill(held.pid, signal.SIGSTOP)
        for _ in range(orders):
            assert held.syscall("getpid") == held.pid
        with held.resume() as process:
            seen = os.waitid(os.P_PIDFD, process.pidfd, os.WSTOPPED)
            assert seen is not None
            assert seen.si_status == signal.SIGSTOP
            process.send_signal(signal.SIGCONT)
            assert process.wait().status == 0


@pytest.mark.parametrize("orders", [0, 1])
def test_a_stop_that_was_continued_meanwhile_is_over(orders: int) -> None:
    with suspended([*PYTHON, "-c", "pass"]) as held:
        os.kill(held.pid, signal.SIGSTOP)
        for _ in range(orders):
            held.syscall("getpid")
        os.kill(held.pid, signal.SIGCONT)
        with held.resume() as process:
            seen = os.waitid(os.P_PIDFD, process.pidfd, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            assert seen is not None
            assert seen.si_code == os.CLD_EXITED


def test_nothing_of_it_changes_that_no_order_has_changed(tmp_path: Path) -> None:
    with suspended([compiled(tmp_path, HELLO, "dynamic-pie")]) as held:
        before, registers = memory(held.pid), held.registers
        assert held.do(open_file("/dev/null", name="n"), system_call("getuid"))[1] == os.getuid()
        room = bytearray(4096)
        held.syscall("getcwd", room, len(room))
        assert bytes(room).startswith(os.fsencode(os.getcwd()))
        with pytest.raises(FileNotFoundError):
            held.do(open_file("/absent", name="a"))
        with pytest.raises(OSError, match="EBADF"):
            held.syscall("close", 999)
        held.give(0).close()
        assert held.registers == registers
        assert memory(held.pid) == before
        for row, content in before.items():
            start, end = (int(part, 16) for part in row.split()[0].split("-"))
            assert held.read(start, end - start) == content
