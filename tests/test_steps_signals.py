"""Each step of clonekit.steps.signals does what it says, and says what the kernel refused."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from step_cases import (
    STATUS,
    Case,
    Room,
    apart,
    cases_of,
    check,
    install,
    output,
    refusing,
    seen,
    signals,
)

from clonekit import DeclarationError, Program, Slot, SpawnError, spawn
from clonekit.steps import execute, ignore_signals, set_signal_mask, system_call
from clonekit.steps.step import Step

Need = Callable[[str], None]


@pytest.mark.usefixtures("needs")
@pytest.mark.parametrize("case", cases_of("signals"), ids=str)
def test_a_step_does_what_its_case_says(case: Case, room: Room) -> None:
    check(case, room)


def own_signal(number: int) -> list[Step]:
    """Steps with which the child sends itself a signal, while all are blocked."""
    return [
        system_call("getpid", result="self"),
        system_call("kill", Slot("self"), number, retry=False),
    ]


def test_the_program_has_no_handler_and_nothing_ignored_by_default() -> None:
    earlier = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        assert signals("SigIgn")(output(["cat", "/proc/self/status"]))
    finally:
        signal.signal(signal.SIGUSR1, earlier)


def test_a_handler_of_ours_is_the_default_in_the_program() -> None:
    earlier = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        ended = spawn(["sh", "-c", "kill -TERM $$; sleep 1000"]).wait()
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert ended.signal == signal.SIGTERM


def test_what_we_ignore_stays_ignored_unless_reset() -> None:
    earlier = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        assert signals("SigIgn", signal.SIGUSR2)(output(["cat", "/proc/self/status"]))
        assert signals("SigIgn", signal.SIGPIPE, signal.SIGXFSZ)(
            output(["cat", "/proc/self/status"], sigdefault=["USR2"])
        )
    finally:
        signal.signal(signal.SIGUSR2, earlier)


def test_the_mask_is_that_of_the_thread_that_spawns() -> None:
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGHUP})
    try:
        text = output(["cat", "/proc/self/status"])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
    assert signals("SigBlk", signal.SIGHUP, signal.SIGUSR2)(text)
    assert signals("SigBlk")(output(["cat", "/proc/self/status"]))


def test_a_signal_that_waits_ends_the_child_before_its_exec() -> None:
    with pytest.raises(SpawnError) as caught:
        Program([*own_signal(signal.SIGTERM), execute(["true"])]).spawn()
    assert caught.value.signal == signal.SIGTERM
    assert caught.value.syscall == "rt_sigprocmask"
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)


def test_a_signal_that_is_blocked_still_waits_in_the_program() -> None:
    ended, text = seen([*own_signal(signal.SIGTERM), set_signal_mask(["TERM"])], STATUS)
    assert ended.status == 0
    assert signals("ShdPnd", signal.SIGTERM)(text)


def test_a_signal_that_is_ignored_is_forgotten() -> None:
    ended, text = seen([ignore_signals(["TERM"]), *own_signal(signal.SIGTERM)], STATUS)
    assert ended.status == 0
    assert signals("ShdPnd")(text)


def test_a_group_signal_to_the_child_never_runs_our_handler() -> None:
    ran: list[int] = []
    earlier = signal.signal(signal.SIGUSR1, lambda *_: ran.append(os.getpid()))
    try:
        with pytest.raises(SpawnError) as caught:
            Program([*own_signal(signal.SIGUSR1), execute(["true"])]).spawn()
    finally:
        signal.signal(signal.SIGUSR1, earlier)
    assert caught.value.signal == signal.SIGUSR1
    assert ran == []


DIES = """
import os, sys, clonekit
process = clonekit.spawn(["sleep", "1000"], pdeathsig={signal!r}, fds={{}})
print(process.pid, flush=True)
sys.stdin.read()
os._exit(0)
"""


@pytest.mark.parametrize("signal_name", ["KILL", "TERM"])
def test_the_parents_death_ends_the_program(signal_name: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", DIES.format(signal=signal_name)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        try:
            assert select.select([pidfd], [], [], 0)[0] == []
            parent.stdin.close()
            assert select.select([pidfd], [], [])[0] == [pidfd]
        finally:
            os.close(pidfd)


def test_parent_death_follows_the_thread_that_spawned() -> None:
    spawned = []
    thread = threading.Thread(
        target=lambda: spawned.append(spawn(["sleep", "1000"], pdeathsig="TERM"))
    )
    thread.start()
    thread.join()
    with spawned[0] as process:
        assert process.wait().signal == signal.SIGTERM


@pytest.mark.parametrize("uid", [None, 65534])
def test_parent_death_is_set_after_the_change_of_ids(uid: int | None, need: Need) -> None:
    if uid is not None:
        need("setuid")
    spawned = []

    def run() -> None:
        spawned.append(spawn(["sleep", "1000"], pdeathsig="TERM", uid=uid))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    with spawned[0] as process:
        assert process.wait().signal == signal.SIGTERM


def test_clone2_resets_handlers_too() -> None:
    def attempt() -> None:
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        install(refusing({"clone3": errno.ENOSYS}))
        assert signals("SigIgn", signal.SIGUSR2)(output(["cat", "/proc/self/status"]))
        program = Program([execute(["sh", "-c", "kill -TERM $$; sleep 1000"])])
        assert program.steps[1].kind.name == "clear_handlers"
        assert program.spawn().wait().signal == signal.SIGTERM

    assert apart(attempt) == ""


@pytest.mark.parametrize(
    "fields",
    [{"namespaces": ["time"]}, {"autoreap": True}, {"empty_mounts": True}, {"clone_nnp": True}],
)
def test_what_clone2_cannot_say_is_refused_with_the_reason(fields: dict[str, object]) -> None:
    def attempt() -> None:
        install(refusing({"clone3": errno.ENOSYS}))
        with pytest.raises(DeclarationError, match="needs clone3"):
            spawn(["true"], **fields)

    assert apart(attempt) == ""


@pytest.mark.parametrize("seconds", [0, -1, 1e-9, float("nan"), float("inf"), "soon"])
def test_an_alarm_that_never_comes_is_refused(seconds: object) -> None:
    with pytest.raises(DeclarationError, match="alarm"):
        spawn(["true"], alarm=seconds)


def test_an_alarm_is_the_programs_and_not_inits(need: Need) -> None:
    need("pid")
    namespaces = ["pid"] if os.geteuid() == 0 else ["user", "pid"]
    left = "import signal; print(signal.getitimer(signal.ITIMER_REAL)[0] > 0)"
    soon = "import signal; signal.setitimer(signal.ITIMER_REAL, 0.01); signal.pause()"
    beneath = {"namespaces": namespaces, "init": True}
    for fields, ends in (({}, -signal.SIGALRM), (beneath, 128 + signal.SIGALRM)):
        argv = [sys.executable, "-S", "-c"]
        assert output([*argv, left], alarm=1000, **fields) == "True\n"
        assert spawn([*argv, soon], alarm=1000, **fields).wait().returncode == ends
