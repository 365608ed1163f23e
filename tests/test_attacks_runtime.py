"""Attacks on whoever makes the container: its program file, its /proc, its first stage."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pytest
from mounting import apart, busybox, nothing_is_left, root, shell
from test_untraceable import Victim, attacker, victim

from clonekit import Process, Program, SpawnError, enter, spawn
from clonekit.linux.execution import SealedProgram
from clonekit.mounts import bind, proc, tmpfs
from clonekit.records import Ask
from clonekit.staged import first_stage
from clonekit.steps import (
    execute,
    join_namespaces,
    new_namespaces,
    run_init,
    set_gid,
    set_groups,
    set_uid,
)
from clonekit.steps.step import KINDS, step

__all__ = ["apart", "nothing_is_left", "root", "victim"]
Fields = dict[str, Any]
MARK = "overwritten"
NOBODY = 65534

pytestmark = pytest.mark.usefixtures("no_hang")


def install(root: Path, program: Path) -> None:
    """Put a program of the tests into a root."""
    shutil.copy(program, root / "bin" / program.name)


@contextmanager
def watched(root: Path, apart: Fields, **fields: Any) -> Iterator[tuple[Process, TextIO]]:
    """A container whose program overwrites what others run from, once; what it says."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(reader) as told:
        argv = ["/bin/escape", "exe", MARK]
        declared = {"mounts": [proc(), tmpfs("/tmp")], "pdeathsig": "KILL", **fields}
        process = spawn(argv, env={}, rootfs=bind(root, "/", read_only=True),
                        fds={0: 0, 1: writer, 2: writer}, **declared,
                        **apart)  # fmt: skip
        os.close(writer)
        with process:
            assert told.readline() == ".\n"
            yield process, told


def until_held(told: TextIO, name: str) -> None:
    """It has a descriptor of what runs under this name."""
    for line in told:
        assert "wrote" not in line
        if line == f"held {name}\n":
            return
    pytest.fail("it has ended")


def test_a_tool_of_the_host_that_enters_is_overwritten(
    root: Path, apart: Fields, built: Path, tmp_path: Path
) -> None:
    """CVE-2019-5736, the control: /proc/PID/exe of a file of the host that runs in there."""
    install(root, built / "escape")
    tool = tmp_path / "tool"
    shutil.copy(busybox(), tool)
    fd = os.open(tool, os.O_RDONLY | os.O_CLOEXEC)
    with watched(root, apart) as (container, told):
        with enter(container, ["sleep", "1000"], executable=fd, env={}):
            until_held(told, "tool")
        assert "wrote" in told.read()
    os.close(fd)
    assert tool.read_bytes()[: len(MARK)] == MARK.encode()


def test_a_sealed_tool_that_enters_is_not(root: Path, apart: Fields, built: Path) -> None:
    """CVE-2019-5736: a program that is held in memory, and sealed, has no file to be written."""
    install(root, built / "escape")
    content = Path(busybox()).read_bytes()
    with watched(root, apart) as (container, told):
        for _ in range(10):
            with SealedProgram(content) as tool:  # each its own: one may be kept busy
                with enter(container, ["sleep", "1000"], executable=tool, env={}):
                    until_held(told, "memfd:program (deleted)")
                assert os.pread(tool.fileno(), 64, 0) == content[:64]
        container.kill()
        assert "wrote" not in told.read()


def test_neither_init_nor_those_that_enter_can_be_overwritten(
    root: Path, apart: Fields, built: Path
) -> None:
    """CVE-2019-5736: the first stage is pid 1 here, and runs in there each time somebody enters."""
    install(root, built / "escape")
    python = os.stat("/proc/self/exe")
    with watched(root, apart, init=True) as (init, told):
        (program,) = Path(f"/proc/{init.pid}/task/{init.pid}/children").read_text().split()
        for _ in range(20):
            with enter(int(program), ["/bin/busybox", "true"], env={}) as process:
                assert process.wait().status == 0
        init.kill()
        assert "wrote" not in told.read()
    after = os.stat("/proc/self/exe")
    assert (python.st_mtime_ns, python.st_size) == (after.st_mtime_ns, after.st_size)


def test_the_first_stage_is_refused_every_way_of_writing() -> None:
    """What a thief of its descriptor could do with it: seals forbid it, and more seals, too."""
    own = first_stage()
    path = f"/proc/self/fd/{own}"
    os.fchmod(own, 0o777)
    fd = os.open(path, os.O_RDWR)
    try:
        for attempt in (
            lambda: os.pwrite(fd, b"x", 0), lambda: os.ftruncate(fd, 0),
            lambda: os.ftruncate(fd, 1 << 20), lambda: os.truncate(path, 0),
        ):  # fmt: skip
            with pytest.raises(PermissionError):
                attempt()
    finally:
        os.close(fd)
        os.close(own)


@pytest.mark.usefixtures("root")
def test_who_keeps_one_first_stage_open_for_writing_hinders_no_other(apart: Fields) -> None:
    """The file of a spawn is its own. The control: a file that is open for writing is not begun."""
    declared = {**apart, "init": True}
    with spawn(["sleep", "1000"], **declared) as init:
        held = os.open(f"/proc/{init.pid}/exe", os.O_PATH)
        init.kill()
        init.wait()
    fd = os.open(f"/proc/self/fd/{held}", os.O_RDWR if os.geteuid() == 0 else os.O_RDONLY)
    with spawn(["true"], **declared) as process:
        assert process.wait().status == 0
    if os.geteuid() == 0:
        with pytest.raises(OSError, match="Text file busy"):
            spawn(["clonekit"], executable=fd)
    os.close(fd)
    os.close(held)


# ---- /proc ----


@pytest.mark.parametrize("kind", ["files", "links"])
def test_a_false_proc_of_the_root_is_not_believed(root: Path, apart: Fields, kind: str) -> None:
    """CVE-2025-52881 and its kin: what is to be written to /proc goes to a file that looks so."""
    false = root / "proc/self"
    false.mkdir()
    for name in ("setgroups", "uid_map", "gid_map"):
        if kind == "files":
            (false / name).write_text("")
        else:
            (false / name).symlink_to("/work/victim")
    (root / "work/victim").write_text("")
    with pytest.raises(SpawnError) as caught:
        shell("id -u", rootfs=root, nested_user=(0, 0), **apart)
    assert caught.value.step == "nest_user_namespace((0, 0))"
    assert caught.value.phase == "nest"
    assert caught.value.syscall in {"getuid", "openat"}
    assert shell("id -u", rootfs=root, mounts=[proc()], nested_user=(0, 0), **apart) == "0\n"


def test_maps_are_written_to_our_own_proc(root: Path, apart: Fields) -> None:
    """The maps come before the root: nothing of the root is looked at."""
    (root / "proc/self").mkdir()
    (root / "proc/self/uid_map").write_text("")
    shell("true", rootfs=root, **apart)
    assert (root / "proc/self/uid_map").read_text() == ""


# ---- tracing ----


@step(phase="keys", asks=True)
def linger(attempt: Callable[[int], object]) -> Iterator[Ask]:
    """A parent that is slow, while its child has other ids already."""
    yield Ask("be slow", lambda child: attempt(child.pid) and None)


del KINDS["linger"]  # it is no step of the library


def test_nobody_of_the_new_uid_writes_us_while_the_parent_is_slow(
    built: Path, victim: Victim, need: Callable[[str], None]
) -> None:
    """process_vm_writev and ptrace on a child that has changed its ids, and waits for us."""
    need("setuid")
    attempts: list[int] = []

    def attack(pid: int) -> None:
        with attacker(built, victim, pid, uid=NOBODY, gid=NOBODY):
            done = subprocess.run(["sleep", "0.02"], check=False)
            attempts.append(done.returncode)

    steps = [set_groups([]), set_gid(NOBODY), set_uid(NOBODY), linger(attack)]
    program = Program([*steps, execute(["true"], env={"PATH": os.defpath})])
    for _ in range(5):
        with program.spawn() as process:
            assert process.wait().status == 0
        assert victim.intact
    assert attempts == [0] * 5


def test_no_root_of_a_joined_namespace_writes_us_while_the_parent_is_slow(
    built: Path, victim: Victim, need: Callable[[str], None]
) -> None:
    """The same by uid 0 of the user namespace that the child has joined."""
    need("user")
    with spawn(["sleep", "1000"], namespaces=["user"], uid_map=0, gid_map=0,
               pdeathsig="KILL") as holder:  # fmt: skip
        users = [(holder.pidfd, ["user"])]

        def attack(pid: int) -> None:
            with attacker(built, victim, pid, join=users):
                subprocess.run(["sleep", "0.02"], check=False)

        joined = join_namespaces(holder.pidfd, "user")
        program = Program([joined, linger(attack), execute(["true"], env={"PATH": os.defpath})])
        for _ in range(5):
            with program.spawn() as process:
                assert process.wait().status == 0
            assert victim.intact
        holder.kill()


def test_nobody_of_the_new_uid_writes_us_by_the_first_stage(
    built: Path, victim: Victim, need: Callable[[str], None]
) -> None:
    """Before its exec the child has our memory and the new ids; after it neither is worth much."""
    need("setuid")
    need("mount")
    steps = [set_groups([]), set_gid(NOBODY), set_uid(NOBODY), run_init()]
    program = Program(
        [new_namespaces(["pid"]), *steps, execute(["true"], env={"PATH": os.defpath})]
    )
    with attacker(built, victim, uid=NOBODY, gid=NOBODY):
        for _ in range(50):
            with program.spawn() as process:
                process.wait()
            assert victim.intact
