"""The program's root: what it may be, and that nothing of the old one is left."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
from mounting import apart, mounts_seen, nothing_is_left, root, rows, shell
from step_cases import output

from clonekit import DeclarationError, Program, SpawnError, Spec, spawn
from clonekit.mounts import bind, dev, overlay, proc, tmpfs
from clonekit.steps import (
    enter_root,
    execute,
    map_gid,
    map_uid,
    mount,
    new_namespaces,
    new_root,
    set_propagation,
)

__all__ = ["apart", "nothing_is_left", "root"]
Fields = dict[str, object]


def test_a_directory_is_the_root_and_nothing_else_is_mounted(root: Path, apart: Fields) -> None:
    seen = mounts_seen(rootfs=root, mounts=[proc()], **apart)
    assert list(seen) == ["/", "/proc"]
    assert "master" not in str(seen["/"].peers)
    assert "shared" not in str(seen["/"].peers)


def test_the_program_begins_in_the_root(root: Path, apart: Fields) -> None:
    assert shell("pwd", rootfs=root, **apart) == "/\n"
    assert shell("pwd", rootfs=root, cwd="/work", **apart) == "/work\n"


def test_no_descriptor_of_the_old_root_is_left(root: Path, apart: Fields) -> None:
    text = shell(
        "ls -l /proc/self/fd /proc/1/fd; ls -l /proc/self/cwd /proc/self/root; cat /proc/mounts",
        rootfs=root, mounts=[proc(), dev(), tmpfs("/tmp")], **apart,
    )  # fmt: skip
    assert "/proc/self/cwd -> /\n" in text
    assert "/proc/self/root -> /\n" in text
    numbers = [line.split()[8] for line in text.splitlines() if " -> " in line and "pipe" in line]
    assert set(numbers) == {"1", "2"}
    assert str(root) not in text.partition("/proc/self/cwd")[0]


def test_dots_lead_nowhere_else(root: Path, apart: Fields) -> None:
    text = shell("cd /work; cd ../../../..; pwd; ls", rootfs=root, mounts=[tmpfs("/tmp")], **apart)
    assert text.split() == ["/", "bin", "dev", "etc", "proc", "sys", "tmp", "work"]


def test_a_root_may_be_an_empty_file_system(apart: Fields, root: Path) -> None:
    declared = [bind(root / "bin", "/bin"), proc()]
    script = "ls /; stat -c %a /; touch /new; ls /new"
    text = shell(script, rootfs=tmpfs("/"), mounts=declared, **apart)
    assert text.split() == ["bin", "proc", "755", "/new"]


def test_an_empty_root_that_is_read_only_has_its_mount_points(root: Path, apart: Fields) -> None:
    declared = [bind(root / "bin", "/bin"), tmpfs("/a/b/c"), proc()]
    text = shell(
        "touch /new; touch /a/new; touch /a/b/c/new && echo done",
        rootfs=tmpfs("/", read_only=True), mounts=declared, **apart,
    )  # fmt: skip
    assert text.count("Read-only file system") == 2
    assert text.endswith("done\n")


def test_a_root_that_is_bound_read_only_cannot_be_written(root: Path, apart: Fields) -> None:
    declared = [tmpfs("/tmp"), proc()]
    text = shell(
        "touch /new; touch /tmp/new && echo done",
        rootfs=bind(root, "/", read_only=True), mounts=declared, **apart,
    )  # fmt: skip
    assert "Read-only file system" in text
    assert text.endswith("done\n")


def test_a_missing_mount_point_in_a_read_only_root_is_named(root: Path, apart: Fields) -> None:
    with pytest.raises(SpawnError) as caught:
        shell("true", rootfs=bind(root, "/", read_only=True), mounts=[tmpfs("/absent")], **apart)
    assert caught.value.step == "mount(tmpfs on /absent, nosuid, nodev)"
    assert (caught.value.syscall, caught.value.phase) == ("mkdirat", "mounts")
    assert "make it before" in caught.value.hint
    assert not (root / "absent").exists()


def test_a_program_that_is_not_in_its_root_is_told_where_it_was_looked_for(
    root: Path, apart: Fields
) -> None:
    with pytest.raises(FileNotFoundError, match="in the program's root it is missing, or the lo"):
        Spec(["/usr/bin/absent"], rootfs=root, **apart).spawn()


def test_a_root_without_proc_is_named_where_a_second_user_namespace_needs_it(
    root: Path, apart: Fields
) -> None:
    with pytest.raises(FileNotFoundError, match=r"add clonekit.mounts.proc\(\) to mounts"):
        shell("true", rootfs=root, nested_user=(0, 0), **apart)


def test_the_whole_root_of_ours_may_be_seen_read_only(apart: Fields, tmp_path: Path) -> None:
    text = output(
        ["sh", "-c", f"touch {tmp_path}/new; cat /proc/self/mountinfo"],
        rootfs=bind("/", "/", read_only=True), mounts=[proc()], **apart,
    )  # fmt: skip
    told, _, mountinfo = text.partition("\n")
    assert "Read-only file system" in told
    assert [row.point for row in rows(mountinfo) if "rw" in row.flags] == ["/proc"]
    assert not (tmp_path / "new").exists()


def test_our_root_within_another_has_not_that_one_in_it(root: Path, apart: Fields) -> None:
    text = shell(
        "ls -d /host/bin /host/host; cat /proc/self/mountinfo",
        rootfs=tmpfs("/"), mounts=[bind(root / "bin", "/bin"), proc(), bind("/", "/host")], **apart,
    )  # fmt: skip
    assert "/host/bin\n" in text
    assert "/host/host: No such file" in text
    assert "/host/host" not in text.partition("No such file")[2]


def test_layers_may_be_the_root(root: Path, tmp_path: Path, apart: Fields) -> None:
    above = tmp_path / "above/etc"
    above.mkdir(parents=True)
    (above / "name").write_text("above")
    (root / "etc/name").write_text("below")
    layers = [above.parent, root]
    text = shell("cat /etc/name; echo new > /etc/name; cat /etc/name",
                 rootfs=overlay("/", layers, in_memory=True), **apart)  # fmt: skip
    assert text == "abovenew\n"
    assert (above / "name").read_text() == "above"
    text = shell("(echo new > /etc/name) || cat /etc/name", rootfs=overlay("/", layers), **apart)
    assert "Read-only file system" in text
    assert text.endswith("above")


def test_mounts_without_a_root_are_made_in_the_one_that_there_is(apart: Fields) -> None:
    text = output(
        ["sh", "-c", "ls -A /tmp; touch /tmp/ours; ls /tmp; stat -f -c %T /tmp; pwd"],
        mounts=[tmpfs("/tmp")], cwd="/usr", **apart,
    )  # fmt: skip
    assert text.split() == ["ours", "tmpfs", "/usr"]
    assert not Path("/tmp/ours").exists()


def test_the_directory_stays_where_no_root_is_entered(apart: Fields) -> None:
    assert output(["pwd"], mounts=[tmpfs("/mnt")], **apart) == f"{Path.cwd()}\n"


@pytest.mark.parametrize(("kind", "peers"), [("private", False), ("slave", True)])
def test_propagation_is_what_is_declared(kind: str, peers: bool, tmp_path: Path) -> None:  # noqa: FBT001
    if os.geteuid() != 0:
        pytest.skip("it takes root")
    inside = 'mount -t tmpfs t $0 && mount --make-shared $0 && exec $1 -c "$2"'
    code = (
        "from clonekit import spawn; spawn(['cat', '/proc/self/mountinfo'], namespaces=['mnt'], "
        f"propagation={kind!r}).wait()"
    )
    argv = ["sh", "-c", inside, str(tmp_path), sys.executable, code]
    text = output(argv, namespaces=["mnt"], propagation="private")
    row = next(row for row in rows(text) if row.point == str(tmp_path))
    assert any(peer.startswith("master:") for peer in row.peers) == peers
    assert not any(peer.startswith("shared:") for peer in row.peers)


def test_a_program_of_steps_may_do_the_same(root: Path) -> None:
    user = os.geteuid() != 0
    steps = [
        new_namespaces(["user", "mnt", "pid"] if user else ["mnt", "pid"]),
        *([map_uid(0), map_gid(0)] if user else []),
        set_propagation(),
        new_root(root),
        mount(proc()),
        enter_root(root),
        execute(["/bin/busybox", "true"]),
    ]
    assert Program(steps).spawn().wait().status == 0


def test_mounts_want_a_root_to_be_in() -> None:
    with pytest.raises(DeclarationError, match=r"put new_root\(...\) first"):
        Program([new_namespaces(["mnt"]), mount(tmpfs("/tmp")), execute(["true"])])


def test_equal_mounts_make_equal_declarations() -> None:
    def declared(size: int) -> Spec:
        return Spec(["true"], namespaces=["mnt"], mounts=[tmpfs("/tmp", size=size), proc(), dev()])

    assert declared(4096) == declared(4096)
    assert declared(4096) != declared(8192)


def test_a_root_keeps_the_kind_of_files_that_mounts_make(root: Path, apart: Fields) -> None:
    before = os.umask(0o077)
    try:
        declared = [tmpfs("/new/dir"), bind("/etc/passwd", "/new/file")]
        shell("true", rootfs=root, mounts=declared, **apart)
        assert shell("umask", rootfs=root, **apart) == "0077\n"
    finally:
        os.umask(before)
    assert stat.S_IMODE((root / "new/dir").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "new/file").stat().st_mode) == 0o644
    assert (root / "new/file").read_bytes() == b""


def test_a_failing_root_is_named(apart: Fields, root: Path) -> None:
    with pytest.raises(SpawnError) as caught:
        spawn(["/bin/busybox", "true"], rootfs=bind(root / "work", "/"), **apart)
    assert caught.value.phase == "exec"
