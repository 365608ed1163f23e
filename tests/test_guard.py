"""When our memory is made untraceable, what is refused for its sake, and what is left after it."""

from __future__ import annotations

import errno
import os
import signal
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING

import pytest
from step_cases import apart

from clonekit import DeclarationError, Fd, Nascent, Program, Slot, SpawnError, Spec, spawn
from clonekit.linux.abi import call, lib
from clonekit.steps import (
    execute,
    join_namespaces,
    open_file,
    place_descriptors,
    set_umask,
    system_call,
)
from clonekit.untraceable import dumps_end_all

if TYPE_CHECKING:
    from clonekit.steps.step import Step

NOBODY = 65534


def guard_of(*steps: Step) -> int:
    """How a program of these steps is guarded."""
    return int(Program([*steps, execute(["true"])]).struct.guard)


@pytest.mark.parametrize(
    ("name", "operands"),
    [
        ("io_uring_setup", (1, 0)),
        ("keyctl", (lib.KEYCTL_SESSION_TO_PARENT,)),
        ("prctl", (lib.PR_SET_DUMPABLE, 0)),
        ("prctl", (1 << 32 | lib.PR_SET_DUMPABLE, 0)),
        ("prctl", (lib.PR_SET_PTRACER, 1)),
        ("prctl", (Slot("option"), 0)),
        ("mmap", (0, 4096)),
        ("process_madvise", (0,)),
        ("fork", ()),
    ],
)
def test_a_call_that_reaches_the_parent_is_refused(name: str, operands: tuple[object, ...]) -> None:
    with pytest.raises(DeclarationError):
        Program([system_call(name, *operands), execute(["true"])])  # type: ignore[arg-type]


@pytest.mark.parametrize("kinds", [0, 1 << 32, lib.CLONE_NEWUSER, lib.CLONE_NEWUSER | 1, Slot("k")])
def test_a_call_that_may_join_a_user_namespace_is_guarded_from_the_clone(kinds: int | Slot) -> None:
    assert guard_of(system_call("setns", Fd(0), kinds)) == lib.CK_GUARDED_FROM_CLONE


def test_a_join_of_another_namespace_needs_no_guard() -> None:
    with open("/proc/self/ns/net", "rb") as file:
        assert guard_of(join_namespaces(file, "net")) == lib.CK_OPEN


@pytest.mark.parametrize("name", ["setuid", "setresgid", "setfsuid", "capset", "setgroups"])
def test_a_raw_change_of_credentials_is_guarded(name: str) -> None:
    program = Program([system_call(name, 0, 0), execute(["true"])])
    assert program.struct.guard == lib.CK_GUARDED
    texts = [entry["syscall"] for entry in program.explain()]
    at = texts.index(name)
    assert texts[at - 2 : at] == ["prctl", "prlimit64"]


@pytest.mark.parametrize(
    "change", [system_call("setns", Fd(0), lib.CLONE_NEWUSER), system_call("capset", 0, 0)]
)
def test_a_child_that_exists_outlasts_the_checks_of_its_tracers_before_a_change(
    child: Nascent, change: Step
) -> None:
    order = child.starting([change, set_umask(0), execute(["true"])], {})
    assert order.struct.guard == lib.CK_GUARDED
    texts = [entry.get("syscall") for entry in order.explain()]
    at = texts.index("prlimit64")
    assert texts[at - 1] == "prctl"
    assert texts[at + 1] in {"setns", "capset"}


def test_before_linux_5_16_every_child_is_kept_from_dumping_core() -> None:
    assert [dumps_end_all(release) for release in ("5.10.0-8-amd64", "5.15-rc7", "4.19.1")] == [
        True
    ] * 3
    assert not any(dumps_end_all(release) for release in ("5.16-rc1", "6.1.0", "10.2.3"))


def test_an_interrupt_during_the_spawn_leaves_no_child() -> None:
    def attempt() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        before = sorted(os.listdir("/proc/self/fd"))
        told = system_call("kill", os.getpid(), signal.SIGINT)
        program = Program([told, execute(["sleep", "1000"])])
        for _ in range(20):
            with pytest.raises(KeyboardInterrupt):
                program.spawn()
        assert sorted(os.listdir("/proc/self/fd")) == before
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)

    assert apart(attempt) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give up root")
def test_who_gives_up_root_while_others_spawn_stays_untraceable() -> None:
    rounds = count()

    def attempt() -> None:
        program = Spec(["true"], uid=NOBODY, gid=NOBODY).program()
        go_on = True
        spawned = threading.Event()

        def spawn() -> None:
            while go_on:
                try:
                    program.spawn().wait()
                except PermissionError:
                    return
                spawned.set()

        threads = [threading.Thread(target=spawn, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        spawned.wait()
        for _ in range(next(rounds) * 50):
            os.getpid()
        os.setresuid(1000, 1000, 1000)
        go_on = False
        for thread in threads:
            thread.join()
        assert call("prctl", lib.PR_GET_DUMPABLE) == 0

    for _ in range(40):
        assert apart(attempt) == ""
        next(rounds)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give up root")
@pytest.mark.parametrize("whose", ["the process's", "one thread's"])
def test_with_new_ids_we_are_as_dumpable_as_before_only_if_all_threads_have_them(
    whose: str,
) -> None:
    def attempt() -> None:
        Spec(["true"], uid=NOBODY, gid=NOBODY).spawn().wait()
        again = Program([system_call("setuid", 1000), execute(["true"])])

        def with_new_ids() -> None:
            if whose == "the process's":
                os.setresuid(1000, 1000, 1000)
            else:
                call("setresuid", 1000, 1000, 1000)
            call("prctl", lib.PR_SET_DUMPABLE, 1)
            for _ in range(2):
                assert again.spawn().wait().status == 0
            assert call("prctl", lib.PR_GET_DUMPABLE) == (whose == "the process's")

        with ThreadPoolExecutor(1) as pool:
            pool.submit(with_new_ids).result()

    assert apart(attempt) == ""


def test_a_descriptor_that_crosses_the_vector_as_a_number_is_refused() -> None:
    steps = [
        open_file("/dev/null", os.O_WRONLY, name="log"),
        place_descriptors({1: 1}),
        system_call("write", Slot("log"), b"x", 1),
        execute(["true"]),
    ]
    with pytest.raises(DeclarationError, match=r"write Fd\(\$log\)"):
        Program(steps)
    steps[2] = system_call("write", Fd(Slot("log")), b"x", 1)
    assert Program(steps).spawn().wait().status == 0


def test_more_steps_than_a_record_can_count_are_refused() -> None:
    with pytest.raises(DeclarationError, match="too many"):
        Program([*([set_umask(0)] * (1 << 16)), execute(["true"])])


@pytest.mark.parametrize("value", [1 << 64, -(1 << 63) - 1, 3.5, None])
def test_an_operand_that_is_no_word_is_refused(value: object) -> None:
    with pytest.raises(DeclarationError):
        Program([system_call("getppid", value), execute(["true"])])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields", [{}, {"cwd": "/"}, {"executable": "/bin/true"}, {"env": {"PATH": "/bin:/usr/bin"}}]
)
def test_a_declaration_compiles_to_the_same_by_the_short_way(fields: dict[str, object]) -> None:
    for argv in (["true"], ["/bin/true", "one"], ["true", "two"], ["true", "two"]):
        spec = Spec(argv, **fields)
        assert spec.program().explain() == Program(spec.steps()).explain()


def test_the_same_declaration_again_is_the_same_program_until_something_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = [Spec(["true"], umask=0o22).program() for _ in range(3)]
    assert first[1] is first[2]
    assert Spec(["true", "x"], umask=0o22).program() is not first[2]
    assert Spec(["true"], umask=0o27).program() is not first[2]
    monkeypatch.setenv("CLONEKIT_TEST", "1")
    changed = Spec(["true"], umask=0o22).program().explain()[-1]["args"]
    assert "CLONEKIT_TEST=1" in changed[2]  # type: ignore[index]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lib.SECCOMP_RET_ERRNO | errno.EPERM, errno.EPERM),
        (lib.SECCOMP_RET_KILL_PROCESS, errno.ECHILD),
    ],
)
def test_a_filter_that_allows_nothing_holds_nobody(answer: int, error: int) -> None:
    # Of an instruction pointer below 0 nobody can tell before the spawn that there is none.
    load, unless_below, back = 0x20, 0x35, 0x06
    everything = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (load, 0, 0, 8), (unless_below, 0, 1, 0), (back, 0, 0, answer),
            (back, 0, 0, lib.SECCOMP_RET_ALLOW),
        )
    )  # fmt: skip
    with pytest.raises(SpawnError, match="set_signal_mask") as caught:
        spawn(["true"], no_new_privs=True, seccomp=everything)
    assert caught.value.errno == error
    assert "filter" in caught.value.hint
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
