"""What can be done to a program that has not begun, and what is refused."""

from __future__ import annotations

import errno
import os
import platform
import struct
from pathlib import Path

import pytest
from parent_snapshot import unchanged
from suspending import compiled, printed, stack, status, suspended, symbol

import clonekit
from clonekit import ChildFd, DeclarationError, Slot, Suspended
from clonekit.linux.abi import NUMBERS, lib
from clonekit.steps import (
    change_directory,
    execute,
    new_namespaces,
    open_pipe,
    place_descriptors,
    set_attribute,
    set_nice,
    set_parent_death_signal,
    set_rlimit,
    set_signal_mask,
    set_umask,
    system_call,
    write,
    write_file,
)
from clonekit.steps.step import Step

ATTRIBUTES = """
#include <stdio.h>
#include <sys/prctl.h>
int main(void)
{
    int death = -1;
    prctl(PR_GET_PDEATHSIG, &death);
    printf("%d %d %d\\n", death, prctl(65 + 1, 0, 0, 0, 0), prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
    return 0;
}
"""
ANSWER = """
#include <stdio.h>
const char word[] = "before";
__attribute__((noipa)) int answer(void) { __asm__ volatile(""); return 1; }
int main(void) { const char *volatile p = word; printf("%s %d\\n", p, answer()); return 0; }
"""
#: int answer(void) { return 7; }
RETURNS_SEVEN = {"x86_64": "b807000000c3", "aarch64": "e0008052c0035fd6"}


def test_any_system_call_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    with suspended(["true"]) as held:
        assert held.syscall("getppid") == os.getpid()
        assert held.syscall(NUMBERS["getpid"]) == held.pid
        name = bytearray(6 * 65)
        held.syscall("uname", name)
        assert name.split(b"\0")[0] == b"Linux"
        path = os.fsencode(tmp_path / "file") + b"\0"
        fd = held.syscall("openat", lib.AT_FDCWD, path, os.O_RDONLY)
        assert isinstance(fd, ChildFd)
        content = bytearray(16)
        assert held.syscall("pread64", fd, content, 16, 3) == 4
        assert content.rstrip(b"\0") == b"tent"
        fetched = fd.fetch()
        assert os.pread(fetched, 16, 0) == b"content"
        os.close(fetched)
        fd.close()
        assert content_of_table(held.pid) == ["0", "1", "2"]


def content_of_table(pid: int) -> list[str]:
    """The numbers of a process's descriptors."""
    return sorted(os.listdir(f"/proc/{pid}/fd"), key=int)


def test_slots_go_from_order_to_order() -> None:
    with suspended(["true"]) as held:
        assert [fd.number for fd in held.do(open_pipe("r", "w"))] == [3, 4]
        held.do(write(Slot("w"), b"through"))
        content = bytearray(7)
        assert held.syscall("read", Slot("r"), content, 7) == 7
        assert content == b"through"


def test_limits_are_the_programs() -> None:
    argv: list[str | Path] = ["sh", "-c", "ulimit -Sn; ulimit -Hn"]
    assert printed(argv, lambda held: held.do(set_rlimit("nofile", 33, 44))) == "33\n44\n"


def test_descriptors_are_given_at_numbers_and_no_others_stay(built: Path, tmp_path: Path) -> None:
    files = [os.open(tmp_path / name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC) for name in "abc"]
    expected = [
        f"{at}:{seen.st_dev}:{seen.st_ino}"
        for at, seen in zip((3, 7, 500), map(os.fstat, files), strict=True)
    ]
    with suspended([built / "see", *expected], fds={}) as held:
        assert held.give(files[1], at=7).number == 7
        assert held.give(files[2], at=500).number == 500
        with pytest.raises(OSError, match="EBADF"):
            held.do(write(files[0], b"x"), system_call("fsync", 999))
        held.give(files[0], at=3)
        with held.resume() as process:
            assert process.wait().status == 0
    for fd in files:
        os.close(fd)


def test_settings_of_memory_are_the_programs_and_not_ours(tmp_path: Path) -> None:
    program = compiled(tmp_path, ATTRIBUTES)

    def change(held: Suspended) -> None:
        held.do(
            set_attribute("PR_SET_MDWE", 1),
            set_attribute("PR_SET_THP_DISABLE", 1),
            write_file("/proc/self/coredump_filter", b"0x7"),
            write_file("/proc/self/oom_score_adj", b"900"),
        )
        assert Path(f"/proc/{held.pid}/coredump_filter").read_text() == "00000007\n"
        assert Path(f"/proc/{held.pid}/oom_score_adj").read_text() == "900\n"

    with unchanged():
        assert printed([program], change) == "0 1 1\n"


@pytest.mark.parametrize("at", range(9))
@pytest.mark.parametrize("first", [(), (8,)], ids=["first", "second"])
def test_a_descriptor_can_be_given_at_any_number(
    first: tuple[int, ...], at: int, built: Path, tmp_path: Path
) -> None:
    with open(tmp_path / "file", "w") as file, open("/dev/null", "rb") as null:
        ours = {0: null, 1: null, 2: null, **dict.fromkeys(first, null), at: file}
        seen = {to: os.fstat(of.fileno()) for to, of in ours.items()}
        argv = [f"{to}:{of.st_dev}:{of.st_ino}" for to, of in seen.items()]
        with suspended([built / "see", *argv], fds=dict.fromkeys(range(3), null)) as held:
            for number in first:
                held.give(null, at=number)
            assert held.give(file, at=at).number == at
            held.give(null).close()
            with held.resume() as process:
                assert process.wait().status == 0


@pytest.mark.parametrize("at", range(3, 8))
def test_a_call_may_make_any_descriptor(at: int, built: Path) -> None:
    with open("/dev/null", "rb") as null:
        seen = os.fstat(null.fileno())
        argv = [f"{to}:{seen.st_dev}:{seen.st_ino}" for to in (0, 1, 2, 8, at)]
        with suspended([built / "see", *argv], fds=dict.fromkeys(range(3), null)) as held:
            held.give(null, at=8)
            held.syscall("dup3", 0, at, 0)
            with held.resume() as process:
                assert process.wait().status == 0


def test_what_is_read_only_is_patched_and_its_file_is_not(tmp_path: Path) -> None:
    code = RETURNS_SEVEN.get(platform.machine())
    if code is None:
        pytest.skip("no code for this machine")
    program = compiled(tmp_path, ANSWER)
    content = program.read_bytes()

    def patch(held: Suspended) -> None:
        held.write(symbol(program, "word"), b"after!")
        held.write(symbol(program, "answer"), bytes.fromhex(code))
        assert held.read(symbol(program, "word"), 7) == b"after!\0"

    assert printed([program], patch) == "after! 7\n"
    assert program.read_bytes() == content
    assert printed([program], lambda _: None) == "before 1\n"


def test_memory_that_is_not_there_is_an_error_and_registers_are_known() -> None:
    with suspended(["true"]) as held:
        for address in (0, 1 << 46, (1 << 64) - 8):
            with pytest.raises(OSError, match="of child") as told:
                held.read(address, 8)
            assert told.value.errno in {errno.EIO, errno.EFAULT}
            with pytest.raises(OSError, match="of child"):
                held.write(address, b"x")
        at = stack(held)
        assert struct.unpack("<Q", held.read(at, 8)) == (1,)
        with pytest.raises(DeclarationError, match="no register is called"):
            held.set_registers(nowhere=1)


def test_an_error_names_its_step_and_the_process_can_be_used(tmp_path: Path) -> None:
    def fail(held: Suspended) -> None:
        steps = [set_umask(0o027), change_directory(tmp_path / "absent"), set_nice(19)]
        with pytest.raises(FileNotFoundError, match="absent") as told:
            held.do(*steps)
        error = told.value
        assert isinstance(error, clonekit.SpawnError)
        assert str(error.step).startswith("change_directory(")
        assert (error.phase, error.syscall, error.signal) == ("place", "chdir", None)
        held.do(change_directory("/proc"))

    argv: list[str | Path] = ["sh", "-c", "umask; nice; pwd"]
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    assert printed(argv, fail) == f"0027\n{nice}\n/proc\n"


REFUSED: dict[str, Step] = {
    "clone": new_namespaces("uts"),
    "vector": place_descriptors({}),
    "parent": set_parent_death_signal("KILL"),
    "mask": set_signal_mask([]),
    "exec": execute(["true"]),
    "execve": system_call("execve", b"/bin/true\0", 0, 0),
    "fork": system_call("fork" if "fork" in NUMBERS else "clone"),
    "exit": system_call("exit_group", 0),
    "sigmask": system_call("rt_sigprocmask", 0, 0, 0, 8),
    "slot": write(Slot("unknown"), b"x"),
}


@pytest.mark.parametrize("step", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_there_is_refused_before_anything_is_done(step: Step) -> None:
    with suspended(["true"]) as held:
        with pytest.raises(DeclarationError):
            held.do(set_umask(0), step)
        assert status(held.pid, "Umask") == status(os.getpid(), "Umask")
        with pytest.raises(DeclarationError, match="at least one step"):
            held.do()
        with pytest.raises(DeclarationError, match="protection"):
            held.map(0, 4096, protection="rq")
