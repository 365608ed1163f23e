"""Landlock rules as values: what a program may do, and what is said of what it may not."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
from parent_snapshot import unchanged
from ruling import SYSTEM, needs_landlock, needs_ports, needs_scopes, rooms, shell
from step_cases import NOBODY, output, privileged

from clonekit import Landlock, Slot, SpawnError, Spec, nascent, spawn
from clonekit.linux import FsAccess, Scope
from clonekit.steps import (
    change_root,
    open_file,
    restrict_with_landlock,
    set_no_new_privs,
    set_rlimit,
)

__all__ = ["rooms"]  # a fixture

pytestmark = needs_landlock


def test_a_program_reads_and_writes_what_the_rules_name_and_nothing_else(
    rooms: tuple[Path, Path],
) -> None:
    rules = Landlock(read=[*SYSTEM, *rooms], write=["/dev", rooms[0]], best_effort=True)
    script = """
        cat "$1/file" "$2/file" && echo new > "$1/new" && mv "$1/new" "$1/newer" &&
        ! rm "$2/file" 2>/dev/null && ! (: > "$2/new") 2>/dev/null &&
        ! cat /proc/version 2>/dev/null
    """
    with unchanged():
        assert shell(script, *rooms, landlock=rules).startswith("openshut")
    assert {path.name for path in rooms[0].iterdir()} == {"file", "newer"}
    assert [path.name for path in rooms[1].iterdir()] == ["file"]


def test_a_rule_may_be_for_a_file_and_serves_many_spawns(rooms: tuple[Path, Path]) -> None:
    rules = Landlock(read=[*SYSTEM, rooms[0] / "file"], write=["/dev/null"], best_effort=True)
    program = Spec(
        ["sh", "-c", 'cat "$1/file" && ! ls "$1" && ! cat "$2/file"', "sh", *map(str, rooms)],
        landlock=rules, no_new_privs=True,
    ).program()  # fmt: skip
    for _ in range(3):
        with program.spawn() as process:
            assert process.wait(60).status == 0


def test_paths_are_those_of_the_programs_own_root(
    tmp_path: Path, built: Path, need: object
) -> None:
    need("chroot")  # type: ignore[operator]
    for name in ("inside", "aside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "see").write_bytes((built / "see").read_bytes())
        (tmp_path / name / "see").chmod(0o755)
    rules = Landlock(execute=["/inside"])
    steps = [*privileged(), change_root(tmp_path)]
    with spawn(["/inside/see"], steps=steps, landlock=rules, no_new_privs=True) as process:
        assert process.wait(60).status == 0
    with pytest.raises(SpawnError, match="Landlock rules") as caught:
        spawn(["/aside/see"], steps=steps, landlock=rules, no_new_privs=True)
    assert isinstance(caught.value, PermissionError)


def test_paths_are_opened_before_the_ids_change(tmp_path: Path, need: object) -> None:
    need("setuid")  # type: ignore[operator]
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "room").mkdir()
    room = os.open(tmp_path / "closed" / "room", os.O_PATH | os.O_DIRECTORY)
    (tmp_path / "closed" / "room" / "file").write_text("seen")
    (tmp_path / "closed").chmod(0o700)
    rules = Landlock(read=[*SYSTEM, "/proc", tmp_path / "closed" / "room"])
    fields = {"fds": {0: 0, 1: 1, 2: 2, 9: room}, "uid": NOBODY, "gid": NOBODY, "landlock": rules}
    argv = ["sh", "-c", 'test "$(cat /proc/self/fd/9/file)" = seen && ! ls /etc 2>&-']
    with spawn(argv, **fields, no_new_privs=True) as process:
        os.close(room)
        assert process.wait(60).status == 0


def test_rules_take_no_descriptor_from_a_program_with_a_limit(rooms: tuple[Path, Path]) -> None:
    rules = Landlock(read=["/"], write=["/dev/null"], best_effort=True)
    told = shell("echo /proc/self/fd/*", landlock=rules, rlimits={"nofile": 5})
    assert told.split() == [f"/proc/self/fd/{number}" for number in (0, 1, 2, 3)]  # 3 is echo's own
    assert rooms[0].exists()


def test_a_place_may_be_a_descriptor_or_a_slot(rooms: tuple[Path, Path]) -> None:
    ours = os.open(rooms[0], os.O_PATH)
    rules = Landlock(read=[*SYSTEM, ours, Slot("theirs")])
    script = 'cat "$1/file" "$2/file" && ! cat /proc/version 2>&-'
    theirs = open_file(rooms[1], os.O_PATH, name="theirs")
    assert shell(script, *rooms, landlock=rules, steps=[theirs]) == "openshut"
    os.close(ours)


def test_a_directory_that_leaked_is_no_way_out(rooms: tuple[Path, Path]) -> None:
    rules = Landlock(read=[*SYSTEM, "/proc", rooms[0]])
    leaked = os.open(rooms[1], os.O_RDONLY | os.O_DIRECTORY)
    argv = ["sh", "-c", "cd /proc/self/fd/9 && ! cat file 2>&- && ! cat ../shut/file 2>&-"]
    fields = {"fds": {0: 0, 1: 1, 2: 2, 9: leaked}, "landlock": rules, "no_new_privs": True}
    with spawn(argv, **fields) as process:
        os.close(leaked)
        assert process.wait(60).status == 0


def test_a_path_over_a_symlink_can_be_refused(rooms: tuple[Path, Path]) -> None:
    (rooms[0] / "link").symlink_to(rooms[1])
    rules = Landlock(read=[rooms[0] / "link"], symlinks=False)
    with unchanged(), pytest.raises(SpawnError, match="ELOOP") as caught:
        spawn(["true"], landlock=rules, no_new_privs=True)
    assert caught.value.step is not None
    assert caught.value.step.startswith("make_ruleset(Landlock(")


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with unchanged(), pytest.raises(FileNotFoundError) as caught:
        spawn(["true"], landlock=Landlock(read=[missing]), no_new_privs=True)
    assert isinstance(caught.value, SpawnError)
    assert caught.value.phase == "rules"
    assert str(missing) in caught.value.arguments


def test_without_no_new_privs_it_takes_a_capability() -> None:
    rules = Landlock(handled=FsAccess.MAKE_BLOCK)
    with pytest.raises(SpawnError, match="no_new_privs=True"):
        spawn(["true"], landlock=rules, steps=[], capabilities={"effective": [], "permitted": []})


# ---- network and processes -------------------------------------------------------------------

TRY = """
import errno, socket, sys
for word in sys.argv[1:]:
    what, _, where = word.partition(":")
    family = socket.AF_UNIX if where.startswith("@") else socket.AF_INET
    address = "\\0" + where[1:] if where.startswith("@") else ("127.0.0.1", int(where))
    with socket.socket(family) as s:
        try:
            getattr(s, what)(address)
            print("ok")
        except OSError as error:
            print(errno.errorcode[error.errno])
"""


def tried(rules: Landlock, *words: str) -> list[str]:
    """What comes of each `connect:PORT` or `bind:PORT` under the rules."""
    argv = [sys.executable, "-c", TRY, *words]
    return output(argv, landlock=rules, no_new_privs=True).split()


@needs_ports
def test_tcp_ports_are_those_that_are_named() -> None:
    here = ("127.0.0.1", 0)
    with socket.create_server(here) as one, socket.create_server(here) as two:
        first, second = (server.getsockname()[1] for server in (one, two))
        words = (f"connect:{first}", f"connect:{second}", "bind:0")
        assert tried(Landlock(tcp_connect=[first]), *words) == ["ok", "EACCES", "ok"]
        assert tried(Landlock(tcp_bind=[], tcp_connect=[second]), *words) == [
            "EACCES", "ok", "EACCES",
        ]  # fmt: skip


@needs_scopes
def test_signals_and_abstract_sockets_stay_inside() -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0clonekit {os.getpid()}")
        server.listen()
        word = f"connect:@clonekit {os.getpid()}"
        assert tried(Landlock(scopes=["abstract_unix_socket"]), word) == ["EPERM"]
        assert tried(Landlock(scopes="signal"), word) == ["ok"]
    script = "kill -0 $$ && ! kill -0 $PPID 2>&-"
    assert shell(script, landlock=Landlock(scopes=Scope.SIGNAL)) == ""


# ---- other ways ------------------------------------------------------------------------------


def test_a_child_that_waits_restricts_itself_by_an_order(rooms: tuple[Path, Path]) -> None:
    rules = Landlock(read=[*SYSTEM, rooms[0]])
    with nascent() as child:
        child.do(set_no_new_privs(), restrict_with_landlock(rules))
        with pytest.raises(PermissionError):
            child.do(open_file(rooms[1] / "file", name="no"))
        assert os.listdir(f"/proc/{child.pid}/fd")
        process = child.start(["cat", str(rooms[0] / "file")])
    assert process.wait(60).status == 0


def test_a_child_that_waits_is_started_under_rules(rooms: tuple[Path, Path]) -> None:
    rules = Landlock(read=[*SYSTEM, rooms[0]])
    for room, status in zip(rooms, (0, 1), strict=True):
        with nascent() as child, open(os.devnull) as null:
            fds = {0: null, 1: 1, 2: null}
            argv = ["cat", str(room / "file")]
            process = child.start(argv, fds=fds, landlock=rules, no_new_privs=True)
        assert process.wait(60).status == status


def test_a_program_that_has_not_begun_is_restricted(rooms: tuple[Path, Path]) -> None:
    rules = Landlock(read=[*SYSTEM, "/etc", rooms[0]])
    argv = ["sh", "-c", 'cat "$1/file" && ! cat "$2/file"', "sh", *map(str, rooms)]
    with spawn(argv, suspended=True) as held:
        held.do(set_no_new_privs(), set_rlimit("nofile", 64), restrict_with_landlock(rules))
        assert held.resume().wait(60).status == 0
