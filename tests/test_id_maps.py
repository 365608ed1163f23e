"""Maps of a user namespace: by the child, by its parent, and by newuidmap."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parent_snapshot import unchanged

from clonekit import DeclarationError, SpawnError, spawn
from clonekit.linux.id_map import IdMap, subordinate_ids
from clonekit.linux.privilege import has_capability
from clonekit.steps.maps import HELPERS, Writer

CAP_SETUID = 7
SHOW = ["sh", "-c", "cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; id -u; id -G"]
RANGES = [(0, 100_000, 1000), (1000, 200_000, 10)]


def words(argv: list[str], **declaration: object) -> list[str]:
    """What a program in a new user namespace prints."""
    reader, writer = os.pipe()
    try:
        process = spawn(argv, fds={1: writer, 2: 2}, namespaces=["user", "mnt"], **declaration)
    finally:
        os.close(writer)
    with process, open(reader, encoding="utf-8") as file:
        text = file.read()
        process.wait()
    return text.split()


@pytest.fixture
def privileged() -> None:
    if not has_capability(CAP_SETUID):
        pytest.skip("it takes CAP_SETUID")


@pytest.fixture
def subordinate() -> None:
    """Skip where newuidmap does not work for us: tried without clonekit."""
    if has_capability(CAP_SETUID):
        pytest.skip("with CAP_SETUID newuidmap is not used")
    if shutil.which("newuidmap") is None:
        pytest.skip("newuidmap is not installed")
    if not list(subordinate_ids("uid")) or not list(subordinate_ids("gid")):
        pytest.skip("this user has no ranges in /etc/subuid and /etc/subgid")
    command = ["unshare", "--user", "--map-auto", "true"]
    tried = subprocess.run(command, capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"unshare --map-auto: {tried.stderr.decode()}")


@pytest.mark.usefixtures("privileged")
def test_ranges_are_written_by_the_parent() -> None:
    shown = words(SHOW, uid_map=RANGES, gid_map=IdMap(*RANGES), uid=1000, gid=1001)
    table = [str(number) for entry in RANGES for number in entry]
    assert shown == [*table, *table, "allow", "1000", "1001"]


@pytest.mark.usefixtures("privileged")
def test_groups_may_be_set_where_the_parent_wrote_the_map() -> None:
    shown = words(SHOW, uid_map=RANGES, gid_map=RANGES, uid=0, gid=0, groups=[5, 6])
    assert shown[-4:] == ["0", "0", "5", "6"]


@pytest.mark.usefixtures("privileged")
def test_the_parent_finds_its_child_where_proc_has_other_numbers() -> None:
    code = """
from clonekit import spawn
fds = {1: 1, 2: 2}
spawn(["cat", "/proc/self/uid_map"], namespaces=["user"], uid_map=[(0, 7, 9)], fds=fds).wait()
"""
    reader, writer = os.pipe()
    with open(reader, encoding="utf-8") as file:
        spawn([sys.executable, "-c", code], namespaces=["pid"], fds={1: writer, 2: 2}).wait()
        os.close(writer)
        assert file.read().split() == ["0", "7", "9"]


@pytest.mark.parametrize("program", ["yes", "/nonexistent"])
def test_a_newuidmap_that_is_none_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    asked: Any = SimpleNamespace(pidfd=os.pidfd_open(os.getpid()))
    monkeypatch.setitem(HELPERS, "uid", program)
    with unchanged(), pytest.raises(OSError, match=program):
        Writer("uid", IdMap((0, 1, 1))).ask(asked)
    os.close(asked.pidfd)


def test_one_id_is_written_by_the_child(need: Callable[[str], None]) -> None:
    need("user")
    shown = words(SHOW, uid_map=7, gid_map=(8, os.getegid()))
    assert shown[:6] == ["7", str(os.geteuid()), "1", "8", str(os.getegid()), "1"]
    assert shown[6:8] == ["deny", "7"]


@pytest.mark.usefixtures("subordinate")
def test_ranges_of_an_ordinary_user_are_written_by_newuidmap() -> None:
    id_maps = IdMap.subordinate("uid"), IdMap.subordinate("gid")
    shown = words(SHOW, uid_map=id_maps[0], gid_map=id_maps[1], uid=5, gid=6, groups=[7])
    table = [str(number) for id_map in id_maps for entry in id_map.ranges for number in entry]
    assert shown == [*table, "allow", "5", "6", "7"]


@pytest.mark.usefixtures("subordinate")
def test_an_ordinary_user_keeps_its_number_inside() -> None:
    own = IdMap.subordinate("uid", 1000)
    shown = words(["id", "-u"], uid_map=own, gid_map=IdMap.subordinate("gid", 1000))
    assert shown == ["1000"]


@pytest.mark.usefixtures("subordinate")
def test_ids_that_are_not_ours_are_refused_by_name() -> None:
    with pytest.raises(DeclarationError, match=r"\(0, 1, 1\).*/etc/subuid"):
        spawn(["true"], namespaces=["user"], uid_map=[(0, 1, 1)])


def test_a_missing_newuidmap_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = list(subordinate_ids("uid"))
    if has_capability(CAP_SETUID) or not ours:
        pytest.skip("it takes an ordinary user with ranges in /etc/subuid")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(DeclarationError, match="newuidmap is not installed"):
        spawn(["/bin/true"], namespaces=["user"], uid_map=[(0, ours[0][0], 5)])


@pytest.mark.usefixtures("privileged")
def test_a_map_without_a_user_namespace_fails_at_its_step() -> None:
    with pytest.raises(SpawnError) as caught:
        spawn(["true"], uid_map=RANGES)
    assert caught.value.step.startswith("map_uid")


@pytest.mark.parametrize("ids", [(0, 0), (1000, 1000)])
def test_in_a_nested_user_namespace_mounts_cannot_be_changed(
    ids: tuple[int, int], need: Callable[[str], None]
) -> None:
    need("user")
    uid, gid = ids
    inside = {"uid_map": (uid, os.geteuid()), "gid_map": (gid, os.getegid())}
    if has_capability(CAP_SETUID):
        inside = {"uid_map": RANGES, "gid_map": RANGES, "uid": uid, "gid": gid}
    try_both = (
        "id -u; mount -t tmpfs x /tmp 2>/dev/null; echo $?; umount /proc 2>/dev/null; echo $?"
    )
    shown = words(["sh", "-c", try_both], nested_user=ids, **inside)
    assert shown[0] == str(uid)
    assert "0" not in shown[1:]


@pytest.mark.parametrize(
    "ranges",
    [
        (),
        ((0, 5, 1), (0, 6, 1)),
        ((0, 5, 2), (7, 6, 1)),
        ((0, 1, 0),),
        ((-1, 1, 1),),
        ((0, 1 << 32, 1),),
        ((0, (1 << 32) - 2, 2),),
        (("0", 1, 1),),
        ((1, 2, 3, 4),),
        (5,),
        tuple((n, n, 1) for n in range(0, 682, 2)),
    ],
)
def test_a_map_that_the_kernel_would_refuse_is_refused_before(ranges: tuple[object, ...]) -> None:
    with pytest.raises(DeclarationError, match="id map"):
        IdMap(*ranges)  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 5)), min_size=1, max_size=30))
def test_ranges_side_by_side_are_a_map(parts: list[tuple[int, int]]) -> None:
    at, ranges = 0, []
    for count, gap in parts:
        ranges.append((at, 100_000 + at, count))
        at += count + gap
    text = IdMap(*ranges).text.decode()
    assert [tuple(map(int, line.split())) for line in text.splitlines()] == ranges
