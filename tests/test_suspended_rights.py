"""Suspended processes of other ids, in namespaces, of other word sizes; and what survives exec."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from suspending import PYTHON, compiled, ends, printed, status, suspended

from clonekit import Suspended, nascent
from clonekit.steps import (
    execute,
    set_capabilities,
    set_host_name,
    set_umask,
    stop_at_exec,
    system_call,
)

NOBODY = 65534
DEATH = """
#include <stdio.h>
#include <sys/prctl.h>
int main(void)
{
    int death = -1;
    prctl(PR_GET_PDEATHSIG, &death);
    printf("%d\\n", death);
    return 0;
}
"""
OTHER_WORDS = """
void _start(void)
{
    __asm__ volatile("movl $1, %eax; movl $7, %ebx; int $0x80");
}
"""
SET_ID = ("su", "mount", "passwd", "newgrp", "chsh", "sudo")
Need = Callable[[str], None]


def is_nobody(held: Suspended) -> None:
    assert status(held.pid, "Uid").split() == [str(NOBODY)] * 4
    assert held.syscall("getuid") == NOBODY
    assert held.give(0).number >= 3
    assert held.read(held.auxv()["phdr"], 4) == bytes([6, 0, 0, 0])


def test_one_of_another_uid_is_driven_by_root(need: Need) -> None:
    need("setuid")
    text = printed(["id", "-u"], is_nobody, uid=NOBODY, gid=NOBODY)
    assert text == f"{NOBODY}\n"


def test_root_may_take_privileges_away_that_the_program_was_loaded_with(need: Need) -> None:
    need("root")

    def drop(held: Suspended) -> None:
        held.do(system_call("setresuid", 1, 1, 1), set_capabilities([]))

    text = printed(["grep", "-E", "Uid|CapEff", "/proc/self/status"], drop)
    assert text.split() == ["Uid:", "1", "1", "1", "1", "CapEff:", f"{0:016x}"]


def test_one_in_namespaces_of_its_own_has_names_of_its_own(need: Need) -> None:
    need("uts")
    ours = os.uname().nodename
    user: dict[str, object] = {"namespaces": ["uts", "pid"]}
    if os.geteuid():
        user = {"namespaces": ["user", "uts", "pid"], "uid_map": 0, "gid_map": 0}

    def change(held: Suspended) -> None:
        assert held.syscall("getpid") == 1
        held.do(set_host_name("held"))

    assert printed(["hostname"], change, **user) == "held\n"
    assert os.uname().nodename == ours


def test_one_in_a_user_namespace_without_maps_is_driven(need: Need) -> None:
    need("user")

    def change(held: Suspended) -> None:
        assert held.syscall("getuid") == NOBODY
        held.do(set_umask(0o027))

    assert printed(["sh", "-c", "umask"], change, namespaces=["user"]) == "0027\n"


def nothing(_: Suspended) -> None:
    """Change nothing."""


@pytest.mark.parametrize(("declared", "seen"), [({}, "0"), ({"pdeathsig": "TERM"}, "15")])
@pytest.mark.parametrize("other", [False, True], ids=["our-uid", "other-uid"])
def test_the_parent_death_signal_is_the_declared_one_or_none(
    declared: dict[str, object], seen: str, tmp_path: Path, need: Need, *, other: bool
) -> None:
    ids = {}
    if other:
        need("setuid")
        ids = {"uid": NOBODY, "gid": NOBODY}
    with open(compiled(tmp_path, DEATH), "rb") as program:  # others may not enter our directory
        told = printed(["death"], nothing, executable=program, **ids, **declared)
    assert told == f"{seen}\n"


def test_a_declared_parent_death_signal_reaches_the_program() -> None:
    made: list[Suspended] = []
    let_go = threading.Event()

    def run() -> None:
        with suspended(["sleep", "1000"], pdeathsig="USR1") as held:
            made.append(held.resume())  # type: ignore[arg-type]
            let_go.wait()

    thread = threading.Thread(target=run)
    thread.start()
    let_go.set()
    thread.join()
    with made[0] as process:
        assert process.wait().signal == signal.SIGUSR1  # type: ignore[attr-defined]


def set_id_program() -> str | None:
    """A program here that is set-uid to root."""
    for name in SET_ID:
        path = shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin")
        if path:
            seen = os.stat(path)
            if seen.st_mode & stat.S_ISUID and seen.st_uid == 0 and os.access(path, os.X_OK):
                return path
    return None


def test_a_set_uid_program_gets_no_privileges() -> None:
    program = set_id_program()
    if program is None:
        pytest.skip("no set-uid program here")
    ids = {"uid": 1, "gid": 1} if os.geteuid() == 0 else {}
    with suspended([program], **ids) as held:
        own = 1 if os.geteuid() == 0 else os.getuid()
        assert status(held.pid, "Uid").split() == [str(own)] * 4
        assert held.auxv()["euid"] == own


def test_one_of_another_word_size_is_refused_and_ended(tmp_path: Path) -> None:
    source, program = tmp_path / "words.c", tmp_path / "words"
    source.write_text(OTHER_WORDS)
    command: list[str | Path] = ["gcc", "-m32", "-static", "-nostdlib", "-o", program, source]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no 32-bit programs are made here: {made.stderr.splitlines()[-1]}")
    try:
        assert subprocess.run([program], check=False).returncode == 7
    except OSError as error:
        pytest.skip(f"no 32-bit programs run here: {error}")
    with pytest.raises(OSError, match="another word size"):
        suspended([program])
    assert ends() == []


def test_it_is_started_by_a_child_that_waited() -> None:
    with nascent() as child:
        child.do(set_umask(0o027))
        held = child.start(["sh", "-c", "umask; nice"], suspended=True)
        assert isinstance(held, Suspended)
        assert "suspended" in repr(held)
        with held.resume() as process:
            assert process.wait().status == 0
    with nascent() as child:
        other = child.start([stop_at_exec(), execute([*PYTHON, "-c", "raise SystemExit(7)"])])
        assert isinstance(other, Suspended)
        with other, other.resume() as process:
            assert process.wait().status == 7
    assert ends() == []


def test_the_one_that_is_resumed_can_be_suspended_no_more() -> None:
    with suspended(["sleep", "1000"]) as held, held.resume() as process:
        for work in (held.resume, held.auxv, lambda: held.do(set_umask(0))):
            with pytest.raises(ValueError, match="holds no child"):
                work()
        held.kill()
        assert process.poll() is None
