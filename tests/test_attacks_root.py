"""Ways out of a root: descriptors that are left open, links of /proc, chroot, processes outside."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mounting import apart, nothing_is_left, root, shell

from clonekit import SpawnError, enter, spawn
from clonekit.mounts import dev, proc, tmpfs

__all__ = ["apart", "nothing_is_left", "root"]
Fields = dict[str, Any]
CONTENT = "what is outside\n"
#: Out of a chroot by a directory that was kept: go up from there, as it is not below the root.
UP = "cd /proc/self/fd/7 && cat ../secret"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[int]:
    """A directory of ours, beside the root, by an inheritable descriptor that nobody closes."""
    (tmp_path / "secret").write_text(CONTENT)
    (tmp_path / "directory").mkdir()
    fd = os.open(tmp_path / "directory", os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(fd, True)  # noqa: FBT003 - its own way
    yield fd
    os.close(fd)


def test_a_directory_that_is_passed_leads_out(root: Path, apart: Fields, outside: int) -> None:
    """The control: a descriptor is a way, and who declares it gives it."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(reader) as told:
        process = spawn(
            ["/bin/busybox", "sh", "-c", UP], env={"PATH": "/bin"}, rootfs=root, mounts=[proc()],
            fds={0: 0, 1: writer, 2: writer, 7: outside}, **apart,
        )  # fmt: skip
        os.close(writer)
        with process:
            process.wait()
            assert told.read() == CONTENT


@pytest.mark.parametrize("init", [False, True])
def test_the_directory_is_no_descriptor_that_was_left_open(
    root: Path,
    apart: Fields,
    outside: int,
    init: bool,  # noqa: FBT001
) -> None:
    """CVE-2024-21626: WORKDIR /proc/self/fd/N, of an image that knows which number is open."""
    with pytest.raises(SpawnError) as caught:
        shell("cat ../secret", rootfs=root, mounts=[proc()], cwd=f"/proc/self/fd/{outside}",
              init=init, **apart)  # fmt: skip
    assert (caught.value.errno, caught.value.phase) == (errno.ELOOP, "place")
    assert "give a descriptor" in caught.value.hint


def test_the_directory_is_no_symlink_to_a_descriptor(
    root: Path, apart: Fields, outside: int
) -> None:
    """CVE-2024-21626, where the image has a symlink in place of an innocent working directory."""
    (root / "work").rmdir()
    (root / "work").symlink_to(f"/proc/self/fd/{outside}")
    for mounted in (proc(), proc("/etc")):
        with pytest.raises(SpawnError) as caught:
            shell("cat ../secret", rootfs=root, mounts=[mounted], cwd="/work", **apart)
        assert caught.value.errno in (errno.ELOOP, errno.ENOENT)


def test_a_root_within_the_root_is_no_descriptor_that_was_left_open(
    root: Path, apart: Fields, outside: int
) -> None:
    """The same with a chroot."""
    with pytest.raises(SpawnError) as caught:
        shell("true", rootfs=root, mounts=[proc()], root=f"/proc/self/fd/{outside}", **apart)
    assert (caught.value.errno, caught.value.phase) == (errno.ELOOP, "place")
    with pytest.raises(SpawnError) as caught:
        shell("true", rootfs=root, mounts=[proc()], root="/", cwd=f"/proc/self/fd/{outside}",
              **apart)  # fmt: skip
    assert caught.value.errno == errno.ELOOP


def test_who_enters_a_container_begins_in_no_descriptor_of_its_parents(
    root: Path, apart: Fields, outside: int
) -> None:
    """CVE-2024-21626 again, by exec into a container, whose files are its program's."""
    (root / "work").rmdir()
    (root / "work").symlink_to(f"/proc/self/fd/{outside}")
    with spawn(["/bin/busybox", "sleep", "1000"], env={}, rootfs=root, mounts=[proc()],
               pdeathsig="KILL", **apart) as process:  # fmt: skip
        for cwd in ("/work", f"/proc/self/fd/{outside}", "/proc/self/cwd"):
            with pytest.raises(SpawnError) as caught:
                enter(process, ["/bin/busybox", "true"], env={}, cwd=cwd)
            assert caught.value.errno == errno.ELOOP
        with enter(process, ["/bin/busybox", "true"], env={}, cwd="/etc") as other:
            assert other.wait().status == 0
        process.kill()


def test_a_place_of_a_mount_is_no_descriptor_that_was_left_open(
    root: Path, apart: Fields, outside: int, tmp_path: Path
) -> None:
    """CVE-2025-31133 and its kin: what is mounted, masked or protected is in the root."""
    (root / "work").rmdir()
    (root / "work").symlink_to(f"/proc/self/fd/{outside}")
    for field in ({"mounts": [proc(), tmpfs("/work/made")]}, {"masked_paths": ["/work"]},
                  {"readonly_paths": ["/work"]}):  # fmt: skip
        declared = {"mounts": [proc()], **field}
        with pytest.raises(SpawnError) as caught:
            shell("true", rootfs=root, **declared, **apart)
        assert (caught.value.errno, caught.value.phase) == (errno.ELOOP, "mounts")
    assert os.listdir(tmp_path / "directory") == []


@pytest.mark.usefixtures("outside")
def test_a_chroot_leads_out_of_no_root_that_was_entered(root: Path, apart: Fields) -> None:
    """The classic: a chroot with a directory outside of it. pivot_root leaves nothing there."""
    script = "cd /; chroot /work /bin/sh -c true; cd ../../../../..; cat secret; ls /"
    text = shell(script, rootfs=root, mounts=[proc()], **apart)
    assert CONTENT not in text
    assert text.endswith("sys\ntmp\nwork\n")


@pytest.mark.usefixtures("outside")
def test_a_chroot_alone_is_left_by_whoever_may_chroot(
    root: Path, built: Path, apart: Fields
) -> None:
    """The control, and what the README warns of; a root that is entered has nothing around it."""
    (root / "bin/escape").write_bytes((built / "escape").read_bytes())
    (root / "bin/escape").chmod(0o755)
    script = f"escape chroot {root.parent}/secret"
    assert shell(script, root=root, **apart) == CONTENT
    assert shell(script, rootfs=root, **apart).startswith("not there: ")


@pytest.mark.usefixtures("outside")
def test_no_process_outside_is_seen_or_entered_by_its_links(root: Path, apart: Fields) -> None:
    """/proc/PID/root, cwd and fd of others: those outside have no number in here."""
    script = (
        "for process in /proc/[0-9]*; do for link in root cwd; do "
        "cat $process/$link/../secret $process/$link/secret 2>/dev/null; done; done; "
        f"ls -d /proc/{os.getpid()} 2>/dev/null; ls -d /proc/[0-9]* | wc -l"
    )
    text = shell(script, rootfs=root, mounts=[proc(), dev()], **apart)
    assert CONTENT not in text
    assert "/proc/" not in text
    assert int(text) <= 3
