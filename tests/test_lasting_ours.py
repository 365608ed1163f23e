"""What we are and may: a new program is made when it changes."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
from recompiled import OWN, fresh, in_a_child, laid_out, lasts, over, refused
from step_cases import install, refusing

import clonekit
from clonekit import DeclarationError, Program, Spec, mounts
from clonekit.linux.abi import call, ffi, lib
from clonekit.linux.privilege import capabilities

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="it takes root")
OTHER_ID = 1000


def test_stdin_is_closed() -> None:
    fields = {**OWN, "mounts": [mounts.proc()], "init": True}
    for more in ({}, fields):
        first = fresh(**more)

        def attempt(first: Program = first, more: dict[str, Any] = more) -> None:
            os.close(0)
            assert laid_out(fresh(**more)) != laid_out(first)

        in_a_child(attempt)


def test_clone3_is_refused_from_now_on() -> None:
    first = fresh(**OWN)

    def attempt() -> None:
        install(refusing({"clone3": errno.ENOSYS}))
        assert len(fresh(**OWN)) > len(first)

    in_a_child(attempt)


def test_the_limit_of_descriptors_changes() -> None:
    fields = {**OWN, "init": True}
    first = fresh(**fields)

    def attempt() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        assert fresh(**fields).setup.records != first.setup.records

    in_a_child(attempt)


@AS_ROOT
def test_a_new_namespace_is_guarded_from_its_owner_as_long_as_we_are_privileged() -> None:
    declarations: list[dict[str, Any]] = [OWN, {"namespaces": ["user"]}, {**OWN, "init": True}]
    guards = [fresh(**fields).setup.struct.guard for fields in declarations]
    assert guards == [lib.CK_GUARDED_FROM_CLONE] * 3

    def attempt() -> None:
        os.setresuid(OTHER_ID, OTHER_ID, 0)  # which keeps the permitted capabilities
        refused("without being root", **OWN)
        assert fresh(namespaces=["user"]).setup.struct.guard == lib.CK_GUARDED_FROM_CLONE
        os.seteuid(0)
        guards = [fresh(**fields).setup.struct.guard for fields in declarations]
        assert guards == [lib.CK_GUARDED_FROM_CLONE] * 3
        os.setresuid(OTHER_ID, OTHER_ID, OTHER_ID)
        guards = [fresh(**fields).setup.struct.guard for fields in declarations]
        assert guards == [lib.CK_OPEN] * 3
        assert f"0 {OTHER_ID} 1" in str(fresh(**OWN).explain())

    in_a_child(attempt)


@AS_ROOT
def test_who_has_two_ids_maps_the_effective_one() -> None:
    def attempt() -> None:
        os.setresuid(OTHER_ID, OTHER_ID + 1, OTHER_ID)
        for uid in (OTHER_ID + 1, OTHER_ID):
            os.seteuid(uid)
            assert f"0 {uid} 1" in str(fresh(**OWN).explain())

    in_a_child(attempt)


@AS_ROOT
def test_who_gives_up_a_group_maps_another() -> None:
    fields = {"namespaces": ["user"], "gid_map": 0, "gid": 0}
    first = fresh(**fields)

    def attempt() -> None:
        os.setegid(OTHER_ID)
        assert f"0 {OTHER_ID} 1" in str(fresh(**fields).explain())
        assert fresh(**fields).setup is not first.setup

    in_a_child(attempt)
    both = {**fields, "gid_map": (0, OTHER_ID)}
    assert any("setgroups" in str(row["text"]) for row in fresh(**both).explain())

    def mapping_our_own() -> None:
        os.setegid(OTHER_ID)
        texts = [str(row["text"]) for row in fresh(**both).explain()]
        assert not any(text.startswith("setgroups(") for text in texts)

    in_a_child(mapping_our_own)


@AS_ROOT
def test_ranges_are_written_by_us_as_long_as_we_may() -> None:
    fields = {"namespaces": ["user"], "uid_map": [(0, 0, 1), (1, 1 << 20, 10)]}
    first = fresh(**fields)
    assert "write /proc/PID/uid_map" in str(first.explain())
    assert lasts(fields)
    assert first.spawn().wait().status == 0
    assert Spec(["true"], **fields).spawn().wait().status == 0


@AS_ROOT
def test_ranges_that_newuidmap_writes_are_looked_up_each_time(tmp_path: Path) -> None:
    if shutil.which("newuidmap") is None or not Path("/etc/subuid").exists():
        pytest.skip("no newuidmap: apt-get install uidmap")
    fields = {"namespaces": ["user"], "uid_map": [(0, 0, 1), (1, 1 << 20, 10)]}
    fresh(**fields)
    file = tmp_path / "subuid"
    file.write_text(f"root:{1 << 20}:10\n")

    def attempt() -> None:
        over(str(file), "/etc/subuid")
        call("capset", *without(lib.CAP_SETUID))
        assert "newuidmap" in str(fresh(**fields).explain())
        assert not lasts(fields)
        file.write_text(f"root:{1 << 21}:10\n")
        refused("may not use these ids", **fields)

    in_a_child(attempt)


_held: list[Any] = []


def without(number: int) -> tuple[int, int]:
    """The operands of a capset that takes one of root's capabilities out of effect."""
    effective, permitted = capabilities()
    effective &= ~(1 << number)
    header = ffi.new("uint32_t[2]", [lib._LINUX_CAPABILITY_VERSION_3, 0])
    low = (1 << 32) - 1
    data = ffi.new(
        "uint32_t[6]",
        [effective & low, permitted & low, 0, effective >> 32, permitted >> 32, 0],
    )
    _held[:] = [header, data]
    return int(ffi.cast("uintptr_t", header)), int(ffi.cast("uintptr_t", data))


@AS_ROOT
def test_debug_dumps_are_refused_from_when_the_sysctl_says_so(tmp_path: Path) -> None:
    file = tmp_path / "suid_dumpable"
    file.write_text("1\n")
    declarations: list[dict[str, Any]] = [
        OWN, {"uid": OTHER_ID}, {"gid": OTHER_ID}, {"groups": []}, {"capabilities": []},
        {"namespaces": ["user"]}, {**OWN, "init": True},
    ]  # fmt: skip
    harmless: list[dict[str, Any]] = [{"umask": 0}, {"namespaces": ["uts"], "hostname": "x"}]
    for fields in (*declarations, *harmless):
        fresh(**fields)

    def attempt() -> None:
        over(str(file), "/proc/sys/fs/suid_dumpable")
        for fields in declarations:
            refused("suid_dumpable", **fields)
        for fields in harmless:
            fresh(**fields)

    in_a_child(attempt)
    for fields in declarations:
        fresh(**fields)


@AS_ROOT
def test_a_popen_of_other_ids_is_refused_likewise(tmp_path: Path) -> None:
    file = tmp_path / "suid_dumpable"
    file.write_text("1\n")
    ids: list[dict[str, Any]] = [{"user": OTHER_ID}, {"group": OTHER_ID}, {"extra_groups": []}]
    for parameters in ids:
        assert clonekit.call(["true"], **parameters) == 0

    def attempt() -> None:
        over(str(file), "/proc/sys/fs/suid_dumpable")
        for parameters in ids:
            with pytest.raises(DeclarationError, match="suid_dumpable"):
                clonekit.call(["true"], **parameters)
        assert clonekit.call(["true"], umask=0) == 0

    in_a_child(attempt)
    for parameters in ids:
        assert clonekit.call(["true"], **parameters) == 0


def test_a_nested_namespace_needs_a_memory_of_its_own_where_we_are_privileged() -> None:
    fields = {"nested_user": (0, 0)}
    program = fresh(**fields)
    assert (program.rest is None) == (os.geteuid() != 0)
    if os.geteuid() == 0:
        in_a_child(lambda: (os.setresuid(*[OTHER_ID] * 3), nested_in_place(fields)))


def nested_in_place(fields: dict[str, Any]) -> None:
    """It is made on our memory."""
    assert fresh(**fields).rest is None
