"""Roots made by somebody who wants out, at rest and while mounts are made."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mounting import apart, make_root, mounts_of_ours, nothing_is_left, root, rows, shell
from step_cases import output

from clonekit import SpawnError
from clonekit.linux.abi import NUMBERS
from clonekit.mounts import bind, dev, file, proc, tmpfs

__all__ = ["apart", "nothing_is_left", "root"]
Fields = dict[str, object]
RENAME_EXCHANGE = 2
ROUNDS = 150
INSIDE = ("proc", "place", "link")


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A directory of ours that no root may reach."""
    path = tmp_path / "ours"
    path.mkdir()
    (path / "file").write_text("ours")
    return path


def untouched(ours: Path) -> bool:
    """Whether nothing was made there, and nothing is mounted there."""
    return (
        sorted(path.name for path in ours.iterdir()) == ["file"]
        and (ours / "file").read_text() == "ours"
    )


# ---- at rest ----


@pytest.mark.parametrize("value", [tmpfs, dev, proc])
@pytest.mark.parametrize("target", ["/link", "/link/below/deeper"])
def test_an_absolute_link_leads_inside(
    root: Path, ours: Path, value: object, target: str, apart: Fields
) -> None:
    """CVE-2021-30465, at rest: the place of a mount is a symlink to ours."""
    (root / "link").symlink_to(ours)
    inside = root / str(ours).lstrip("/")
    inside.mkdir(parents=True)
    shell("true", rootfs=root, mounts=[value(target)], **apart)  # type: ignore[operator]
    assert untouched(ours)
    made = [path.name for path in inside.iterdir()]
    assert made == (["below"] if "below" in target else [])


@pytest.mark.parametrize("link", ["../../../../../../../..", "/..", "/../../..", "work/../../.."])
def test_dots_lead_inside(root: Path, ours: Path, link: str, apart: Fields) -> None:
    (root / "link").symlink_to(f"{link}{ours}")
    (root / str(ours).lstrip("/")).mkdir(parents=True)
    text = shell(f"ls -d {ours}/new", rootfs=root, mounts=[tmpfs("/link/new")], **apart)
    assert text == f"{ours}/new\n"
    assert untouched(ours)


def test_a_dangling_link_makes_nothing(root: Path, ours: Path, apart: Fields) -> None:
    for name in ("dir", "etc/file"):
        (root / name).symlink_to(ours / "new")
    for value in (tmpfs("/dir"), tmpfs("/dir/below"), file("/etc/file", b"data")):
        with pytest.raises(SpawnError) as caught:
            shell("true", rootfs=root, mounts=[value], **apart)
        assert caught.value.syscall == "openat2"
        assert "leads to nothing inside the root" in caught.value.hint
    assert untouched(ours)
    assert not (root / str(ours).lstrip("/")).exists()


@pytest.mark.parametrize(
    "link", ["/proc/self/root", "/proc/self/cwd", "/proc/1/root", "/proc/thread-self/fd/0"]
)
def test_no_link_of_proc_leads_anywhere(root: Path, link: str, apart: Fields) -> None:
    """CVE-2025-52565, CVE-2024-21626: what stands in /proc would lead to our own root."""
    (root / "link").symlink_to(link)
    for target in ("/link/tmp", f"{link}/tmp"):
        with pytest.raises(SpawnError) as caught:
            shell("true", rootfs=root, mounts=[proc(), tmpfs(target)], **apart)
        assert caught.value.strerror == os.strerror(40)


def test_a_proc_that_is_a_link_leads_inside(root: Path, ours: Path, apart: Fields) -> None:
    """CVE-2019-19921: the root has a symlink where /proc is mounted."""
    (root / "proc").rmdir()
    (root / "proc").symlink_to(ours)
    with pytest.raises(SpawnError):
        shell("true", rootfs=root, mounts=[proc()], **apart)
    (root / str(ours).lstrip("/")).mkdir(parents=True)
    text = shell(f"ls {ours}", rootfs=root, mounts=[proc()], masked_paths=["/proc/keys"], **apart)
    assert "self" in text
    assert untouched(ours)


def test_a_link_in_a_mount_of_the_roots_own_leads_inside(
    root: Path, ours: Path, tmp_path: Path, apart: Fields
) -> None:
    """What is bound into a root was written by others, too."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/link").symlink_to(ours)
    (root / str(ours).lstrip("/")).mkdir(parents=True)
    declared = [bind(tmp_path / "volume", "/work"), tmpfs("/work/link/new")]
    shell("true", rootfs=root, mounts=declared, **apart)
    assert untouched(ours)


def test_the_directory_of_a_program_cannot_be_one_of_ours(root: Path, apart: Fields) -> None:
    """CVE-2024-21626: a working directory by way of a descriptor of the old root."""
    (root / "link").symlink_to("/proc/self/fd/7")
    for number in range(3, 20):
        for path in (f"/proc/self/fd/{number}", f"/proc/self/fd/{number}/etc"):
            with pytest.raises(SpawnError) as caught:
                shell("pwd", rootfs=root, mounts=[proc()], cwd=path, **apart)
            assert caught.value.syscall == "openat2"


# ---- while mounts are made ----


@contextmanager
def swapping(one: Path, other: Path) -> Iterator[list[int]]:
    """Exchange two names, again and again, in a thread of our own."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = [os.fsencode(one), os.fsencode(other)]
    exchange = NUMBERS["renameat2"]
    done, count = threading.Event(), [0]

    def swap() -> None:
        while not done.is_set():
            count[0] += not libc.syscall(exchange, -100, names[0], -100, names[1], RENAME_EXCHANGE)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield count
    finally:
        done.set()
        thread.join()


def test_no_swap_of_a_target_leads_out(root: Path, ours: Path, apart: Fields) -> None:
    """CVE-2021-30465: a directory becomes a symlink between the look and the mount."""
    (root / "place").mkdir()
    (root / "link").symlink_to(ours)
    argv = ["/bin/busybox", "cat", "/proc/self/mountinfo"]
    declared = [proc(), tmpfs("/place"), tmpfs("/place/deep/er"), file("/place/file", b"data")]
    masks = {"masked_paths": ["/place"], "readonly_paths": ["/place/deep"]}
    mounted, refused = 0, set()
    before = mounts_of_ours()
    with swapping(root / "place", root / "link") as swaps:
        for _ in range(ROUNDS):
            try:
                text = output(argv, rootfs=root, mounts=declared, **masks, **apart)
            except SpawnError as error:
                refused.add((error.phase, error.syscall))
            else:
                mounted += 1
                assert {row.point.split("/")[1] for row in rows(text)} <= {"", *INSIDE}, text
            assert untouched(ours)
            assert mounts_of_ours() == before
        while swaps[0] < ROUNDS:
            pass
    assert refused <= {("mounts", name) for name in ("openat2", "mkdirat", "mknodat")}
    assert mounted or refused


def test_no_swap_unmasks(root: Path, apart: Fields) -> None:
    """A masked path is a directory at one moment and a file at the next: it is hidden as either."""
    (root / "path").mkdir()
    (root / "other").write_text("secret")
    argv = ["/bin/busybox", "cat", "/proc/self/mountinfo"]
    seen: set[str] = set()
    rounds = 0
    with swapping(root / "path", root / "other"):
        while rounds < ROUNDS or seen != {"tmpfs", "devtmpfs"}:
            rounds += 1
            text = output(argv, rootfs=root, mounts=[proc()], masked_paths=["/path"], **apart)
            masks = [row.kind for row in rows(text) if row.point.startswith(("/path", "/other"))]
            assert len(masks) == 1, text
            seen |= set(masks)


def test_a_root_is_not_changed_by_what_is_mounted_in_it(tmp_path: Path, apart: Fields) -> None:
    path = make_root(tmp_path / "another")
    before = sorted(str(found) for found in path.rglob("*"))
    declared = [proc(), dev(), tmpfs("/tmp"), bind("/usr", "/work", read_only=True)]
    shell("touch /tmp/x /dev/shm/x", rootfs=path, mounts=declared, **apart)
    assert sorted(str(found) for found in path.rglob("*")) == before
