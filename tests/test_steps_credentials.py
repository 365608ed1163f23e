"""Each step of clonekit.steps.credentials does what it says, and says what the kernel refused."""

from __future__ import annotations

import errno
import os
import pwd
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from step_cases import (
    NOBODY,
    STATUS,
    Case,
    Room,
    apart,
    capabilities,
    cases_of,
    check,
    install,
    instruction_if,
    line,
    output,
    refusing,
    unforeseen,
)

from clonekit import DeclarationError, Program, Spec, spawn
from clonekit.linux.abi import NUMBERS, call, lib
from clonekit.steps import change_directory, execute, set_capabilities

Need = Callable[[str], None]


@pytest.mark.usefixtures("needs")
@pytest.mark.parametrize("case", cases_of("credentials"), ids=str)
def test_a_step_does_what_its_case_says(case: Case, room: Room) -> None:
    check(case, room)


def dumpable() -> int:
    return call("prctl", lib.PR_GET_DUMPABLE)


def test_a_uid_without_groups_gives_up_all(need: Need) -> None:
    need("setuid")
    text = output(list(STATUS), uid=NOBODY, gid=NOBODY)
    assert line("Uid", "\t".join(["65534"] * 4))(text)
    assert line("Gid", "\t".join(["65534"] * 4))(text)
    assert line("Groups", "")(text)


def test_groups_are_kept_if_that_is_said(need: Need) -> None:
    need("setuid")
    ours = " ".join(map(str, sorted(os.getgroups())))
    assert line("Groups", ours)(output(list(STATUS), uid=NOBODY, groups="keep"))


def test_ids_may_be_names(need: Need) -> None:
    need("setuid")
    entry = pwd.getpwuid(NOBODY)
    text = output(["id", "-u"], uid=entry.pw_name)
    assert text.strip() == str(entry.pw_uid)


def test_one_list_of_capabilities_survives_the_uid(need: Need) -> None:
    need("setuid")
    text = output(list(STATUS), uid=NOBODY, gid=NOBODY, capabilities=["net_bind_service"])
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert capabilities(name, "net_bind_service")(text)


def test_a_uid_without_capabilities_has_none(need: Need) -> None:
    need("setuid")
    assert capabilities("CapEff")(output(list(STATUS), uid=NOBODY))


def test_no_new_privs_and_bounds_together(need: Need) -> None:
    need("privilege")
    inside = {} if os.geteuid() == 0 else {"namespaces": ["user"], "uid_map": 0, "gid_map": 0}
    text = output(list(STATUS), capabilities=[], no_new_privs=True, **inside)
    assert line("NoNewPrivs", 1)(text)
    assert capabilities("CapBnd")(text)
    assert capabilities("CapEff")(text)


@pytest.mark.parametrize(
    "fields",
    [
        {"capabilities": {"permitted": []}},
        {"capabilities": {"permitted": []}, "setsid": True},
        {"uid": NOBODY},
        {"uid": NOBODY, "setsid": True},
        {"gid": NOBODY, "uid": NOBODY, "groups": []},
    ],
    ids=str,
)
def test_the_parent_is_dumpable_again_after_success_and_failure(
    fields: dict[str, object], need: Need
) -> None:
    if "uid" in fields:
        need("setuid")
    assert dumpable() == 1
    for _ in range(50):
        with spawn(["true"], **fields) as process:
            assert dumpable() == 1
            process.wait()
        with pytest.raises(FileNotFoundError):
            spawn(["/nonexistent"], **fields)
        assert dumpable() == 1


def test_the_parent_is_dumpable_again_after_an_early_failure(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Program(
            [change_directory(tmp_path / "absent"), set_capabilities([]), execute(["true"])]
        ).spawn()
    assert dumpable() == 1


def test_the_parent_is_dumpable_again_where_the_clone_fails() -> None:
    def attempt() -> None:
        program = Program([set_capabilities([]), execute(["true"])])
        install(refusing({"clone3": errno.EAGAIN}))
        with pytest.raises(BlockingIOError):
            program.spawn()
        assert dumpable() == 1

    assert apart(attempt) == ""


@pytest.mark.usefixtures("no_hang")
def test_the_parent_is_dumpable_again_where_the_exec_is_killed() -> None:
    filtered = unforeseen(killing("execve"))
    for fields in ({}, {"setsid": True}):
        with spawn(
            ["true"], capabilities={"permitted": []}, no_new_privs=True, seccomp=filtered, **fields
        ) as process:
            assert process.wait().signal == signal.SIGSYS
        assert dumpable() == 1


def test_the_parent_is_dumpable_again_where_the_program_ends_at_once(room: Room) -> None:
    broken = room.path / "broken"
    elf = bytearray((room.see or Path("/bin/true")).read_bytes())
    start = int.from_bytes(elf[32:40], "little")  # e_phoff
    elf[start + 16 : start + 24] = (0xFFFF_FFFF_F000).to_bytes(8, "little")  # no such address
    broken.write_bytes(elf)
    broken.chmod(0o755)
    for _ in range(20):
        try:
            with spawn([str(broken)], capabilities={"permitted": []}) as process:
                process.wait()
        except OSError:
            pass
        assert dumpable() == 1


def test_a_parent_that_was_not_dumpable_stays_so() -> None:
    def attempt() -> None:
        call("prctl", lib.PR_SET_DUMPABLE, 0)
        assert spawn(["true"], capabilities={"permitted": []}).wait().status == 0
        assert dumpable() == 0
        with pytest.raises(FileNotFoundError):
            spawn(["/nonexistent"], capabilities={"permitted": []})
        assert dumpable() == 0

    assert apart(attempt) == ""


def killing(name: str) -> bytes:
    """A filter that kills whoever makes this call."""
    kill = struct.pack("<HBBI", 0x06, 0, 0, lib.SECCOMP_RET_KILL_PROCESS)
    return (
        struct.pack("<HBBI", 0x20, 0, 0, 0)
        + instruction_if(NUMBERS[name], kill)
        + kill
        + struct.pack("<HBBI", 0x06, 0, 0, lib.SECCOMP_RET_ALLOW)
    )


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (["no_such"], "no capability"),
        ({"permited": []}, "no set is called"),
        ({"effective": ["chown"]}, "permitted"),
        ({"permitted": [], "effective": ["chown"]}, "effective may hold only"),
        (
            {"permitted": ["chown"], "inheritable": [], "ambient": ["chown"]},
            "ambient may hold only",
        ),
    ],
)
def test_capabilities_that_cannot_be_are_refused(value: object, told: str) -> None:
    with pytest.raises(DeclarationError, match=told):
        Spec(["true"], capabilities=value).program()
