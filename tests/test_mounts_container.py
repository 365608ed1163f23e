"""A container's root, whole: in one declaration, by orders, and in a program that has not begun."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from mounting import apart, nothing_is_left, root, rows, shell
from parent_snapshot import unchanged
from step_cases import behind, output, without_group

from clonekit import Program, SpawnError, Spec, nascent, spawn
from clonekit.mounts import (
    MASKED_PATHS,
    READONLY_PATHS,
    bind,
    cgroup2,
    dev,
    file,
    mqueue,
    overlay,
    proc,
    sysfs,
    tmpfs,
)
from clonekit.steps import enter_root, mount, new_root, set_propagation

__all__ = ["apart", "nothing_is_left", "root"]
Fields = dict[str, object]

SEES = r"""
touch /new /etc/new /proc/sys/vm/new 2>/dev/null
mkdir -p /tmp/made /dev/shm/made && echo writes
cat /etc/hostname /etc/resolv.conf
id -u
hostname
echo $$
ls /sys/class/net
ls /data; cat /data/file; touch /data/new 2>/dev/null || echo read-only
cat /proc/keys /proc/timer_list | wc -c
echo > /dev/null; head -c 2 /dev/zero | wc -c
cat /proc/self/mountinfo
"""


def container(root: Path, volume: Path) -> Fields:
    """What people mean by one."""
    return {
        "rootfs": bind(root, "/", read_only=True),
        "mounts": [
            proc(), sysfs(), *([] if without_group() else [cgroup2()]), dev(), mqueue(),
            tmpfs("/tmp", size=1 << 20), bind(volume, "/data", read_only=True),
            file("/etc/hostname", b"aquarium\n"), file("/etc/resolv.conf", b"nameserver ::1\n"),
        ],
        "masked_paths": MASKED_PATHS,
        "readonly_paths": READONLY_PATHS,
        "hostname": "aquarium",
        "cwd": "/tmp",
        "umask": 0o22,
    }  # fmt: skip


@pytest.fixture
def volume(root: Path, tmp_path: Path) -> Path:
    """A directory that a container is given; its mount points are made in its root."""
    (root / "data").mkdir()
    for name in ("hostname", "resolv.conf"):
        (root / "etc" / name).touch()
    (root / "dev/mqueue").mkdir()
    path = tmp_path / "volume"
    path.mkdir()
    (path / "file").write_text("volume\n")
    return path


def test_a_containers_root(root: Path, volume: Path, apart: Fields) -> None:
    text = shell(SEES, **container(root, volume), **apart)
    told, mountinfo = text[: text.index("\n", text.index("\n2\n") + 1)], text
    assert told.split() == [
        "writes", "aquarium", "nameserver", "::1", "0", "aquarium", "1", "lo", "file", "volume",
        "read-only", "0", "2",
    ]  # fmt: skip
    seen = rows("\n".join(line for line in mountinfo.splitlines() if " - " in line))
    by_point = {row.point: row for row in seen}
    writable = {point for point, row in by_point.items() if "rw" in row.flags}
    devices = {f"/dev/{name}" for name in ["null", "zero", "full", "random", "urandom", "tty"]}
    over_files = {row.point for row in seen if row.root == "/null"}
    assert writable - devices - over_files == {
        "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/tmp",
    }  # fmt: skip
    assert not any("shared:" in peer or "master:" in peer for row in seen for peer in row.peers)
    assert not any(str(root) in row.root and row.point != "/" for row in seen)


def test_it_may_be_spawned_again_and_again(root: Path, volume: Path, apart: Fields) -> None:
    spec = Spec(["/bin/busybox", "true"], **container(root, volume), **apart)
    program = spec.program()
    with unchanged():
        for _ in range(20):
            assert program.spawn().wait().status == 0
    assert program.explain() == spec.program().explain()
    json.dumps(program.explain())


def test_whichever_call_fails_the_step_is_named_and_nothing_is_left(
    root: Path, volume: Path, apart: Fields
) -> None:
    spec = Spec(["/bin/busybox", "true"], **container(root, volume), **apart)
    program = spec.program()
    refusable = {str(row["syscall"]) for row in program.explain() if row["phase"] == "mounts"}
    for name in sorted(refusable - {"close"}):
        steps = spec.steps()
        first = next(n for n, step in enumerate(steps) if step.phase == "mounts")
        steps[first:first] = behind(name)
        with unchanged(), pytest.raises(SpawnError) as caught:
            Program(steps).spawn()
        assert (caught.value.syscall, caught.value.phase) == (name, "mounts")
        assert caught.value.errno == errno.EPERM
        del caught


def test_a_deadline_changes_nothing(root: Path, volume: Path, apart: Fields) -> None:
    declared = container(root, volume)
    with unchanged():
        assert spawn(["/bin/busybox", "true"], deadline=60, **declared, **apart).wait().status == 0


def test_a_child_that_waits_is_given_a_root(root: Path, apart: Fields) -> None:
    names = apart["namespaces"]
    reader, writer = os.pipe()
    with nascent(namespaces=names) as child:
        if "user" in names:  # type: ignore[operator]
            for name in ("uid_map", "gid_map"):
                if name == "gid_map":
                    Path(f"/proc/{child.pid}/setgroups").write_text("deny")
                own = os.getuid() if name == "uid_map" else os.getgid()
                Path(f"/proc/{child.pid}/{name}").write_text(f"0 {own} 1")
        child.do(
            set_propagation(), new_root(root), mount(proc()), mount(tmpfs("/tmp")), enter_root(root)
        )
        process = child.start(["/bin/busybox", "ls", "/"], fds={1: writer, 2: 2})
        os.close(writer)
    with open(reader) as told:
        assert "work" in told.read().split()
    assert process.wait().status == 0


def test_a_program_that_has_not_begun_is_given_mounts(apart: Fields, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("found")
    reader, writer = os.pipe()
    argv = ["sh", "-c", f"cat {tmp_path}/file; ls /mnt; ls -l /proc/$$/fd | grep -c ' -> /$'"]
    with spawn(argv, fds={1: writer, 2: 2}, suspended=True, **apart) as process:
        os.close(writer)
        process.do(set_propagation(), new_root("/"), mount(tmpfs("/mnt")), enter_root("/"))
        running = process.resume()
    with open(reader) as told:
        assert told.read() == "found0\n"
    running.wait()


def test_layers_and_a_volume_that_may_be_written(root: Path, tmp_path: Path, apart: Fields) -> None:
    (tmp_path / "volume").mkdir()
    text = shell(
        "echo kept > /work/file; echo lost > /etc/file; cat /work/file /etc/file",
        rootfs=overlay("/", [root], in_memory=True),
        mounts=[bind(tmp_path / "volume", "/work")], **apart,
    )  # fmt: skip
    assert text.split() == ["kept", "lost"]
    assert (tmp_path / "volume/file").read_text() == "kept\n"
    assert list((root / "etc").iterdir()) == []


def test_a_tool_of_ours_in_a_root_of_its_own(apart: Fields, tmp_path: Path) -> None:
    """As bwrap does it: an empty root, and what is needed bound read-only."""
    wanted = ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives"]
    (tmp_path / "in").write_text("3\n1\n2\n")
    text = output(
        ["/usr/bin/sort", "-o", "/work/out", "/work/in"],
        rootfs=tmpfs("/", read_only=True),
        mounts=[*[bind(path, path, read_only=True, optional=True) for path in wanted],
                proc(), dev(), tmpfs("/tmp"), bind(tmp_path, "/work")],
        **apart,
    )  # fmt: skip
    assert text == ""
    assert (tmp_path / "out").read_text() == "1\n2\n3\n"


def test_nothing_of_ours_is_needed_but_a_mount_namespace(root: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("it takes root")
    assert shell("ls -d /work", rootfs=root, namespaces=["mnt"]) == "/work\n"
