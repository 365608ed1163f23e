"""The first stage: a memory of the child's own before its program begins."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from parent_snapshot import unchanged
from step_cases import missing

from clonekit import DeclarationError, Fd, Program, Slot, SpawnError, nascent, spawn
from clonekit.explain import rows
from clonekit.linux.landlock import Ruleset
from clonekit.records import Ask
from clonekit.steps import (
    change_directory,
    deny_write_execute,
    disable_huge_pages,
    execute,
    new_namespaces,
    open_file,
    open_pipe,
    place_descriptors,
    run_init,
    set_umask,
    system_call,
    write,
)
from clonekit.steps.step import KINDS, Step, step

BLOCKS = system_call("ppoll", 0, 0, 0, 0, 8)
ME = system_call("getpid", result="me")
LOADS = disable_huge_pages()
PATIENCE = 30


def program(*steps: Step, argv: str = "true", deadline: float | None = None) -> Program:
    """A program of these steps, the first of which is in the first stage."""
    return Program([LOADS, *steps, execute([argv])], deadline=deadline)


# ---- what the program has ----


def test_it_is_used_where_it_is_needed_and_not_otherwise() -> None:
    assert [row["step"] for row in program().explain()].count("load_first_stage()")
    without = Program([set_umask(0), execute(["true"])])
    assert not [row for row in without.explain() if row["step"] == "load_first_stage()"]


def test_the_parents_settings_stay_as_they_are() -> None:
    fields: dict[str, object] = {"no_thp": True, "coredump_filter": 0x11}
    if not missing("mdwe"):
        fields["mdwe"] = True
    with unchanged(), spawn(["true"], **fields) as process:
        assert process.wait().status == 0


def test_the_program_has_exactly_its_descriptors(built: Path) -> None:
    with open("/dev/null") as one, open("/proc/stat") as other:
        pairs = {one.fileno(): other, other.fileno(): one, 700: one}
        seen = [f"{to}:{os.fstat(of.fileno()).st_dev}:{os.fstat(of.fileno()).st_ino}"
                for to, of in pairs.items()]  # fmt: skip
        for deadline in (None, 60):
            with spawn(
                [built / "see", *seen], fds=pairs, no_thp=True, deadline=deadline
            ) as process:
                assert process.wait().status == 0


def test_the_program_inherits_what_it_would_without() -> None:
    with open("/dev/null") as kept, open("/dev/zero") as closed:
        os.set_inheritable(kept.fileno(), True)  # noqa: FBT003 - the function's own
        uses = system_call("fcntl", Fd(kept), fcntl.F_GETFD)
        reads = system_call("fcntl", Fd(closed), fcntl.F_GETFD)
        told = []
        for own in ({}, {"no_thp": True}):
            steps = [place_descriptors("inherit"), *([LOADS] if own else []), uses, reads]
            argv = ["ls", "/proc/self/fd"]
            reader, writer = os.pipe2(os.O_CLOEXEC)
            steps += [system_call("dup3", Fd(writer), 1, 0)]
            with open(reader) as text, Program([*steps, execute(argv)]).spawn() as process:
                os.close(writer)
                told.append(text.read())
                assert process.wait().status == 0
        assert told[0] == told[1]


def test_slots_are_carried_over() -> None:
    steps = [
        open_pipe("r", "w"), ME, LOADS, write(Slot("w"), b"12345678"),
        system_call("kill", Slot("me"), 0), system_call("fcntl", Fd(Slot("given")), 1),
        place_descriptors({0: Slot("r"), 2: 2}), system_call("fcntl", Fd(Slot("w")), 1),
        execute(["sh", "-c", "test $(head -c 8) = 12345678"]),
    ]  # fmt: skip
    compiled = Program(steps)
    assert compiled.slots == ("given",)
    for _ in range(3):
        with compiled.spawn(given=2) as process:
            assert process.wait().status == 0


def test_a_descriptor_that_crosses_as_a_number_is_refused() -> None:
    steps = [open_file("/dev/null", name="log"), LOADS, system_call("close", Slot("log"))]
    with pytest.raises(DeclarationError, match=r"opened before the first stage; write Fd"):
        Program([*steps, execute(["true"])])


def test_the_callers_mask_is_the_programs() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        for _ in range(2):
            reader, writer = os.pipe2(os.O_CLOEXEC)
            with open(reader) as text, spawn(
                ["grep", "SigBlk", "/proc/self/status"], fds={1: writer}, no_thp=True
            ) as process:  # fmt: skip
                os.close(writer)
                assert text.read() == f"SigBlk:\t{1 << signal.SIGUSR2 - 1:016x}\n"
                process.wait()
            signal.pthread_sigmask(signal.SIG_SETMASK, [signal.SIGUSR2])
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])


@pytest.mark.parametrize("limits", [{"nofile": 3}, {"fsize": 0}, {"as": 1 << 24}])
def test_low_limits_of_the_program_are_no_hindrance(limits: dict[str, int], built: Path) -> None:
    fields: dict[str, object] = {"coredump_filter": 1, "no_new_privs": True, "pdeathsig": "TERM"}
    with ExitStack() as stack:
        if not missing("landlock"):
            fields["landlock"] = stack.enter_context(Ruleset(write=["/dev"]))
        null = stack.enter_context(open("/dev/null", "w"))
        process = spawn([built / "see"], fds={1: null}, rlimits=limits, **fields)
        assert stack.enter_context(process).wait().status == 0


def test_a_trace_is_that_of_both_parts() -> None:
    clone = new_namespaces(["pid"] if os.geteuid() == 0 else ["user", "pid"])
    init = [clone, run_init()] if not missing("pid") else []
    for deadline in (None, 60):
        compiled = program(*init, set_umask(0), deadline=deadline)
        process, times = compiled.trace()
        with process:
            assert process.wait().status == 0
        shown = [row.get("syscall") for row in rows(compiled)][: len(times.records)]
        assert shown.count("umask") == 1
        assert {"prctl", "execveat", "execve"} <= set(shown)
        begins = [begin for begin, _, _ in times.records]
        assert begins == sorted(begins)
        assert begins[-1] <= times.total


# ---- what is refused ----


def test_what_it_cannot_do_is_refused_before_anything_is_made() -> None:
    with unchanged():
        for steps in ([LOADS], [deny_write_execute()]):
            with pytest.raises(DeclarationError, match="leave suspended out"):
                spawn(["true"], suspended=True, steps=steps)
        with nascent() as child:
            with pytest.raises(DeclarationError, match="give it to spawn"):
                child.start(["true"], no_thp=True)
            with child.start(["true"]) as process:
                process.wait()
        with spawn(["true"], suspended=True) as held:
            with pytest.raises(DeclarationError, match="cannot be forked"):
                held.do(run_init())
            held.do(LOADS)
            with held.resume() as process:
                assert process.wait().status == 0


# ---- errors, each at its step ----


@pytest.mark.parametrize("deadline", [None, PATIENCE])
def test_each_step_that_fails_is_named(deadline: float | None) -> None:
    with unchanged():
        for before in range(4):
            wrong = program(*[set_umask(0)] * before, change_directory("/none"), deadline=deadline)
            with pytest.raises(FileNotFoundError) as caught:
                wrong.spawn()
            error = caught.value
            rows = [row for row in wrong.explain() if row.get("syscall") == "chdir"]
            assert isinstance(error, SpawnError)
            assert (error.step, error.syscall) == ("change_directory(/none)", "chdir")
            assert [error.step_number] == [row["step_number"] for row in rows]
        with pytest.raises(FileNotFoundError):
            program(argv="/nonexistent", deadline=deadline).spawn()


def test_a_child_that_is_killed_there_is_an_error_that_names_the_step() -> None:
    dies = system_call("kill", Slot("me"), signal.SIGKILL)
    with unchanged():
        for before in range(3):
            with pytest.raises(ChildProcessError, match=r"^system_call\(kill, \$me") as caught:
                program(ME, *[set_umask(0)] * before, dies).spawn()
            assert caught.value.signal == signal.SIGKILL  # type: ignore[attr-defined]


@pytest.mark.parametrize("holds", [BLOCKS, system_call("kill", Slot("me"), signal.SIGSTOP)])
def test_a_deadline_is_that_of_both_parts(holds: Step) -> None:
    with unchanged():
        for steps in ([ME, LOADS, holds, set_umask(0)], [ME, holds, LOADS]):
            with pytest.raises(TimeoutError, match="the child was killed"):
                Program([*steps, execute(["true"])], deadline=0.1).spawn()


def test_ctrl_c_ends_it_there_and_before() -> None:
    interrupts = system_call("kill", os.getpid(), signal.SIGINT)
    with unchanged():
        for _ in range(20):
            for steps in ([LOADS, interrupts, BLOCKS], [interrupts, LOADS, BLOCKS]):
                with pytest.raises(KeyboardInterrupt):
                    Program([*steps, execute(["true"])]).spawn()


def test_what_was_asked_for_is_undone_when_it_fails_there() -> None:
    done: list[str] = []

    @step(phase="namespaces", asks=True)
    def ask() -> Iterator[Ask]:
        yield Ask("do something", lambda _: lambda: done.append("undone"))

    del KINDS["ask"]
    with pytest.raises(FileNotFoundError):
        Program([ask(), LOADS, execute(["/nonexistent"])]).spawn()  # type: ignore[operator]
    assert done == ["undone"]
    with Program([ask(), LOADS, execute(["true"])]).spawn() as process:  # type: ignore[operator]
        assert process.wait().status == 0
    assert done == ["undone"]
    with pytest.raises(DeclarationError, match="cannot be asked from the first stage"):
        program(ask())  # type: ignore[operator]
