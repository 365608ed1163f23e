"""Attacks on mounts: places that change under the hand, masks that are tricked or taken away."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from mounting import apart, mounts_of_ours, nothing_is_left, root, rows, shell

from clonekit import SpawnError, spawn
from clonekit.mounts import MASKED_PATHS, READONLY_PATHS, bind, dev, proc, tmpfs

__all__ = ["apart", "nothing_is_left", "root"]
Fields = dict[str, Any]
SWAPS = 150
RENAME_EXCHANGE = 2
AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)

pytestmark = pytest.mark.usefixtures("no_hang")


@contextmanager
def swapping(one: Path, other: Path) -> Iterator[list[int]]:
    """Exchange these two names all the while; the count of exchanges."""
    count, stop = [0], threading.Event()
    names = os.fsencode(one), os.fsencode(other)

    def swap() -> None:
        while not stop.is_set():
            for _ in range(50):
                _libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE)
            count[0] += 50

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield count
    finally:
        stop.set()
        thread.join()


def test_a_name_that_is_looked_up_twice_may_change(tmp_path: Path) -> None:
    """The control: who looks first and acts then, acts on something else now and then."""
    (tmp_path / "place").mkdir()
    (tmp_path / "link").symlink_to("/usr")
    fooled = 0
    with swapping(tmp_path / "place", tmp_path / "link"):
        for _ in range(200_000):
            if not os.path.islink(tmp_path / "place") and os.path.exists(tmp_path / "place/bin"):
                fooled += 1
                break
    assert fooled


def test_a_place_that_becomes_a_symlink_meanwhile_is_in_the_root(
    root: Path, apart: Fields, tmp_path: Path
) -> None:
    """CVE-2021-30465: the target of a mount is exchanged with a symlink during the set-up."""
    victim = tmp_path / "victim"
    (victim / "inner").mkdir(parents=True)
    (root / "place").mkdir()
    up = "../" * 20
    (root / "link").symlink_to(f"{up}{victim}")
    script = "cat /proc/self/mountinfo"
    ends = {"made": 0, "refused": 0}
    before = mounts_of_ours()
    with swapping(root / "place", root / "link") as count:
        for _ in range(SWAPS):
            try:
                text = shell(
                    script, rootfs=root,
                    mounts=[proc(), tmpfs("/place/inner"), bind("/usr/bin", "/place/inner/a/b")],
                    masked_paths=["/place/inner/a"], readonly_paths=["/place"], **apart,
                )  # fmt: skip
            except SpawnError as error:
                assert error.phase == "mounts"  # noqa: PT017 - likewise
                assert error.errno in {  # noqa: PT017 - it may succeed, too
                    errno.EAGAIN,
                    errno.ENOENT,
                    errno.ENOTDIR,
                    errno.EEXIST,
                    errno.EXDEV,
                    errno.EINVAL,
                }, error
                ends["refused"] += 1
                continue
            ends["made"] += 1
            points = {row.point for row in rows("\n".join(text.splitlines()))}
            assert points & {"/place/inner", "/link/inner"} or any(
                point.endswith("//deleted") for point in points
            ), text
        assert count[0] > SWAPS
    assert ends["made"] > 0
    assert os.listdir(victim / "inner") == []
    assert sorted(os.listdir(victim)) == ["inner"]
    assert mounts_of_ours() == before


def test_a_place_under_a_symlink_is_made_inside_the_root(root: Path, apart: Fields) -> None:
    """CVE-2019-16884, CVE-2023-27561: /proc of the image is a symlink, or in a volume."""
    (root / "proc").rmdir()
    (root / "proc").symlink_to("/evil")
    (root / "evil").mkdir()
    text = shell("cat /proc/1/comm; cat /proc/sysrq-trigger; ls /evil/1/comm", rootfs=root,
                 mounts=[proc()], masked_paths=["/proc/version"], readonly_paths=["/proc/sys"],
                 **apart)  # fmt: skip
    assert text.startswith("busybox\n")
    assert "/evil/1/comm" in text


@pytest.mark.parametrize("kind", ["symlink", "file", "directory", "absent"])
def test_the_mask_is_the_null_device_whatever_the_root_has(
    root: Path, apart: Fields, kind: str
) -> None:
    """CVE-2025-31133: /dev/null of the container is a symlink to /proc/sys/kernel/core_pattern."""
    null = root / "dev/null"
    if kind == "symlink":
        null.symlink_to("/proc/sys/kernel/core_pattern")
    elif kind == "file":
        null.write_text("not null")
    elif kind == "directory":
        null.mkdir()
    (root / "etc/secret").write_text("secret")
    text = shell(
        "cat /proc/version /etc/secret; echo '|x' > /proc/version; "
        "stat -c %t:%T /proc/version /etc/secret",
        rootfs=root, mounts=[proc()], masked_paths=["/proc/version", "/etc/secret"], **apart,
    )  # fmt: skip
    assert text == "1:3\n1:3\n"
    assert Path("/proc/sys/kernel/core_pattern").read_text() != "|x\n"


def test_our_own_null_device_must_be_one(tmp_path: Path) -> None:
    """The same in the root of the caller, where another file is no mask."""
    (tmp_path / "fake").write_text("")
    if os.geteuid() != 0:
        pytest.skip("it takes root to have another /dev/null")
    code = (
        "import sys; sys.path[:0] = ['tests', '.']; from clonekit import Spec\n"
        "Spec(['true'], namespaces=['mnt'], masked_paths=['/etc/passwd']).program()"
    )
    script = f'mount --bind {tmp_path}/fake /dev/null && exec $0 -c "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, sys.executable, code],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert "DeclarationError: /dev/null is not the null device" in done.stderr


def test_a_masked_path_that_is_a_symlink_hides_what_it_leads_to(root: Path, apart: Fields) -> None:
    """The mask is not put over the link, and what it leads to is found by no other name."""
    (root / "etc/real").write_text("secret")
    (root / "etc/link").symlink_to("real")
    (root / "work/far").symlink_to("/../../etc/real")
    for path in ("/etc/link", "/work/far"):
        text = shell("cat /etc/real /etc/link /work/far; echo end", rootfs=root,
                     masked_paths=[path], **apart)  # fmt: skip
        assert text == "end\n"


def test_the_console_and_terminals_are_the_programs_own(root: Path, apart: Fields) -> None:
    """CVE-2025-52565: /dev/console and /dev/pts of the image lead elsewhere; nothing follows."""
    (root / "dev").rmdir()
    (root / "other").mkdir()
    (root / "dev").symlink_to("/other")
    (root / "other/pts").symlink_to("/proc")
    (root / "other/console").symlink_to("/proc/sys/kernel/core_pattern")
    (root / "other/null").symlink_to("/proc/sysrq-trigger")
    text = shell("ls -l /dev/; cat /proc/self/mountinfo; stat -c %t:%T /dev/null", rootfs=root,
                 mounts=[proc(), dev()], **apart)  # fmt: skip
    points = {row.point for row in rows("\n".join(x for x in text.splitlines() if " - " in x))}
    assert {"/other", "/other/pts", "/other/null"} <= points
    assert not {point for point in points if point.startswith("/proc/")}
    assert text.endswith("1:3\n")
    assert sorted(os.listdir(root / "other")) == ["console", "null", "pts"]


READ_ONLY = {"masked_paths": [*MASKED_PATHS, "/etc/secret"], "readonly_paths": READONLY_PATHS}


def locked(script: str, root: Path, apart: Fields, **fields: Any) -> str:
    """What a script says in a container with masks, a read-only root and a bind that is so."""
    (root / "etc/secret").write_text("secret")
    (root / "etc/open").write_text("open")
    declared: dict[str, Any] = {
        "rootfs": bind(root, "/", read_only=True),
        "mounts": [proc(), dev(), tmpfs("/tmp"), bind(root / "etc", "/work", read_only=True)],
        "masked_paths": ["/proc/version", "/etc/secret"], "readonly_paths": ["/proc/sys"],
    }  # fmt: skip
    return shell(script, **{**declared, **apart, **fields})


TAKE_AWAY = (
    "umount /etc/secret; umount -l /etc/secret; umount /proc/version; umount /proc/sys; "
    "mount -o remount,rw /; mount -o remount,bind,rw /; mount -o remount,bind,rw /work; "
    "mkdir /tmp/p /tmp/r; mount -t proc p /tmp/p; mount --bind / /tmp/r; mount --rbind / /tmp/r; "
    "mount -o remount,bind,rw /tmp/r; "
    "cat /etc/secret /tmp/r/etc/secret; (echo x > /etc/new; echo x > /work/new; "
    "echo x > /tmp/r/etc/new; echo core > /proc/sys/kernel/core_pattern; "
    "echo core > /tmp/p/sys/kernel/core_pattern) 2>/dev/null; ls /etc /work; echo end"
)


def test_who_owns_the_mounts_takes_masks_away(root: Path, apart: Fields) -> None:
    """The control: uid 0 of the namespace that the mounts belong to may change them."""
    text = locked(TAKE_AWAY + " 2>/dev/null", root, apart)
    assert "secret" in text.replace("/etc/secret", "")
    assert (root / "etc/new").exists()


@pytest.mark.parametrize("way", ["nested", "without capabilities", "unshared"])
def test_masks_and_read_only_mounts_stay_where_the_mounts_belong_to_another(
    root: Path, apart: Fields, way: str
) -> None:
    """Locked mounts and flags: remounting, unmounting, a new proc, a bind of all below."""
    fields: Fields = {}
    script = TAKE_AWAY
    if way == "nested":
        fields = {"nested_user": (0, 0)}
    elif way == "without capabilities":
        fields = {"capabilities": [], "no_new_privs": True}
    else:
        fields = {"nested_user": (0, 0)}
        script = f"unshare -m -p -f sh -c '{TAKE_AWAY}'; unshare -U -r -m sh -c '{TAKE_AWAY}'"
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    text = locked(script, root, apart, **fields)
    told = [line for line in text.splitlines() if ":" not in line]
    assert "end" in told
    assert "new" not in told
    assert "secretsecret" not in text
    assert not any(line.startswith("secret") and line != "secret" for line in told)
    assert (root / "etc/secret").read_text() == "secret"
    assert not (root / "etc/new").exists()
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


def test_no_device_is_made_that_opens(root: Path, apart: Fields) -> None:
    """A disk's device, on each file system that the container may write."""
    text = shell(
        "for where in / /tmp /dev/shm /dev; do mknod $where/disk b 7 0 && "
        "(head -c 1 $where/disk >/dev/null && echo opened $where); "
        "mknod $where/kmsg c 1 11 && (head -c 1 $where/kmsg > /dev/null && echo opened $where); "
        "done; echo end",
        rootfs=bind(root, "/", nodev=True), mounts=[proc(), dev(read_only=True), tmpfs("/tmp")],
        **apart,
    )  # fmt: skip
    assert "opened" not in text
    assert text.endswith("end\n")


def test_our_mounts_are_as_they_were_when_a_place_is_taken_away(root: Path, apart: Fields) -> None:
    """A place that is removed while it is being mounted on is an error, or is mounted there."""
    (root / "gone").mkdir()
    stop = threading.Event()

    def remove() -> None:
        while not stop.is_set():
            with suppress(OSError):
                (root / "gone/deep").rmdir()

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        for _ in range(SWAPS):
            try:
                with spawn(["/bin/busybox", "true"], env={}, rootfs=root,
                           mounts=[tmpfs("/gone/deep/er")], **apart) as process:  # fmt: skip
                    assert process.wait().status == 0
            except SpawnError as error:
                assert error.phase == "mounts"  # noqa: PT017 - it may succeed, too
    finally:
        stop.set()
        thread.join()
