"""What of a root is hidden, and what nobody writes; whatever else stands at these paths."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mounting import apart, mounts_seen, nothing_is_left, root, shell

from clonekit import DeclarationError, SpawnError, Spec
from clonekit.mounts import MASKED_PATHS, READONLY_PATHS, dev, proc, sysfs, tmpfs
from clonekit.steps import mounts

__all__ = ["apart", "nothing_is_left", "root"]
Fields = dict[str, object]


def test_a_masked_file_is_the_null_device(root: Path, apart: Fields) -> None:
    (root / "etc/secret").write_text("secret")
    text = shell("cat /etc/secret; echo x > /etc/secret; stat -c '%F %t:%T' /etc/secret",
                 rootfs=root, masked_paths=["/etc/secret"], **apart)  # fmt: skip
    assert text == "character special file 1:3\n"
    assert (root / "etc/secret").read_text() == "secret"


def test_a_masked_directory_is_empty_for_good(root: Path, apart: Fields) -> None:
    (root / "etc/secret").mkdir()
    (root / "etc/secret/file").touch()
    text = shell("ls -A /etc/secret; touch /etc/secret/x || true",
                 rootfs=root, masked_paths="/etc/secret", **apart)  # fmt: skip
    assert text == "touch: /etc/secret/x: Read-only file system\n"


def test_what_containers_hide_is_hidden(root: Path, apart: Fields) -> None:
    text = shell(
        "for path in " + " ".join(MASKED_PATHS) + "; do"
        '  if [ -d $path ]; then echo "dir $path $(ls -A $path)";'
        '  elif [ -e $path ]; then echo "file $path $(cat $path)"; fi; done',
        rootfs=root, mounts=[proc(), sysfs()], masked_paths=MASKED_PATHS, **apart,
    )  # fmt: skip
    lines = text.splitlines()
    assert len(lines) == sum(map(os.path.exists, MASKED_PATHS))
    assert all(len(line.split()) == 2 for line in lines)


def test_what_containers_protect_is_protected(root: Path, apart: Fields) -> None:
    text = shell(
        "echo 1 > /proc/sys/kernel/domainname; echo h > /proc/sysrq-trigger; true",
        rootfs=root, mounts=[proc()], readonly_paths=READONLY_PATHS, **apart,
    )  # fmt: skip
    there = os.path.exists("/proc/sysrq-trigger")
    assert text.count("Read-only file system") == 1 + there
    seen = mounts_seen(rootfs=root, mounts=[proc()], readonly_paths=READONLY_PATHS, **apart)
    for path in READONLY_PATHS:
        assert not os.path.exists(path) or "ro" in seen[path].flags


def test_a_protected_path_is_so_with_all_below(root: Path, apart: Fields) -> None:
    text = shell(
        "touch /work/x; touch /work/a/x; touch /tmp/x && echo done",
        rootfs=root, mounts=[tmpfs("/work"), tmpfs("/work/a")], readonly_paths=["/work"], **apart,
    )  # fmt: skip
    assert text.count("Read-only file system") == 2
    assert text.endswith("done\n")


def test_a_part_of_the_root_itself_may_be_protected(root: Path, apart: Fields) -> None:
    text = shell("touch /etc/x || touch /work/x", rootfs=root, readonly_paths=["/etc"], **apart)
    assert "Read-only file system" in text
    assert (root / "work/x").exists()


def test_a_path_that_is_not_there_is_let_be(root: Path, apart: Fields) -> None:
    (root / "dangling").symlink_to("/nowhere/at/all")
    gone = ["/absent", "/absent/deep", "/bin/busybox/below", "/dangling", "/proc/absent"]
    before = sorted(path.name for path in root.iterdir())
    shell("true", rootfs=root, masked_paths=gone, readonly_paths=gone, **apart)
    assert sorted(path.name for path in root.iterdir()) == before


def test_a_path_of_the_kernel_that_has_come_since_is_named(root: Path, apart: Fields) -> None:
    (root / "proc/appeared").touch()
    with pytest.raises(SpawnError) as caught:
        shell("true", rootfs=root, masked_paths=["/proc/appeared"], **apart)
    assert "compile it again" in caught.value.hint


def test_what_a_symlink_leads_to_is_hidden(root: Path, apart: Fields) -> None:
    (root / "etc/secret").write_text("secret")
    (root / "link").symlink_to("/etc/../../etc/secret")
    text = shell("cat /etc/secret /link", rootfs=root, masked_paths=["/link"], **apart)
    assert text == ""


@pytest.mark.parametrize("field", ["masked_paths", "readonly_paths"])
def test_a_symlink_to_ours_leads_nowhere(
    root: Path, tmp_path: Path, field: str, apart: Fields
) -> None:
    (tmp_path / "ours").write_text("ours")
    (root / "link").symlink_to(tmp_path / "ours")
    text = shell("cat /link || true", rootfs=root, **{field: ["/link"]}, **apart)
    assert "No such file" in text
    assert (tmp_path / "ours").read_text() == "ours"
    (tmp_path / "ours").write_text("still ours")


@pytest.mark.parametrize("field", ["masked_paths", "readonly_paths"])
@pytest.mark.parametrize("link", ["/proc/self/root/etc", "/proc/self/fd/0", "/proc/1/cwd"])
def test_no_link_of_proc_is_followed(root: Path, link: str, field: str, apart: Fields) -> None:
    (root / "link").symlink_to(link)
    with pytest.raises(SpawnError) as caught:
        shell("true", rootfs=root, mounts=[proc()], **{field: ["/link"]}, **apart)
    assert (caught.value.syscall, caught.value.strerror) == ("openat2", os.strerror(40))


def test_a_root_cannot_choose_what_hides(root: Path, apart: Fields) -> None:
    """CVE-2025-31133: the null device of the root is something else, by a symlink or a bind."""
    (root / "etc/secret").write_text("secret")
    (root / "dev/null").symlink_to("/proc/sys/kernel/core_pattern")
    text = shell("stat -c '%F %t:%T' /etc/secret", rootfs=root, mounts=[proc()],
                 masked_paths=["/etc/secret"], **apart)  # fmt: skip
    assert text == "character special file 1:3\n"
    (root / "dev/null").unlink()
    (root / "dev/null").write_text("fake")
    text = shell("stat -c '%F %t:%T' /dev/null /etc/secret", rootfs=root, mounts=[dev()],
                 masked_paths=["/etc/secret"], **apart)  # fmt: skip
    assert text == "character special file 1:3\n" * 2


def test_our_own_null_device_is_looked_at(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setattr(mounts, "NULL_DEVICE", os.makedev(1, 5))
    spec = Spec(["true"], namespaces=["mnt"], rootfs=root, masked_paths=["/etc/x"])
    with pytest.raises(DeclarationError, match="not the null device"):
        spec.program()


def test_a_kind_that_differs_from_ours_is_no_way_round(root: Path, apart: Fields) -> None:
    """A path under /proc is taken for what it is here; where that is wrong, nothing begins."""
    (root / "proc/cpuinfo").mkdir()
    with pytest.raises(SpawnError) as caught:
        shell("true", rootfs=root, masked_paths=["/proc/cpuinfo"], **apart)
    assert caught.value.syscall == "move_mount"
    (root / "proc/tty").write_text("a file, and no directory")
    with pytest.raises(SpawnError) as caught:
        shell("true", rootfs=root, masked_paths=["/proc/tty"], **apart)
    assert caught.value.strerror == os.strerror(20)
