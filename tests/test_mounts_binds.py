"""What is there already is seen at another place, and no more can be done with it than was said."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
from pathlib import Path

import pytest
from mounting import apart, mounts_seen, nothing_is_left, root, shell
from step_cases import output

from clonekit import Program, Slot, SpawnError, Spec, spawn
from clonekit.linux.abi import NUMBERS, call, lib
from clonekit.linux.memory import address
from clonekit.mounts import attach, bind, proc, tmpfs
from clonekit.steps import enter_root, execute, mount, new_namespaces, new_root, set_propagation

__all__ = ["apart", "nothing_is_left", "root"]
Fields = dict[str, object]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of ours with something in it."""
    path = tmp_path / "outside"
    (path / "dir").mkdir(parents=True)
    (path / "file").write_text("ours\n")
    return path


def test_a_directory_is_the_same_at_its_target(root: Path, outside: Path, apart: Fields) -> None:
    text = shell("cat /work/file; echo theirs > /work/new",
                 rootfs=root, mounts=[bind(outside, "/work")], **apart)  # fmt: skip
    assert text == "ours\n"
    assert (outside / "new").read_text() == "theirs\n"


def test_a_file_is_bound_on_a_file(root: Path, outside: Path, apart: Fields) -> None:
    declared = [bind(outside / "file", "/etc/there"), bind(outside / "file", "/a/new/one")]
    text = shell("cat /etc/there /a/new/one", rootfs=root, mounts=declared, **apart)
    assert text == "ours\nours\n"


def test_a_relative_source_is_relative_to_our_directory(
    root: Path, outside: Path, apart: Fields, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(outside)
    text = shell("cat /work/file", rootfs=root, mounts=[tmpfs("/tmp"), bind(".", "/work")], **apart)
    assert text == "ours\n"


def test_flags_are_those_that_were_asked_for(root: Path, outside: Path, apart: Fields) -> None:
    for name in ("nosuid", "nodev", "noexec"):
        declared = [proc(), bind(outside, "/work", **{name: True})]  # type: ignore[arg-type]
        seen = mounts_seen(rootfs=root, mounts=declared, **apart)["/work"].flags
        assert name in seen
        assert "rw" in seen


def test_read_only_is_so_for_all_that_is_mounted_below(root: Path, apart: Fields) -> None:
    # The first program mounts below a directory of its own, and spawns another that binds it.
    inner = (
        "from clonekit import spawn; from clonekit.mounts import bind, proc, tmpfs; import sys;"
        "spawn(['/bin/busybox', 'sh', '-c', 'for d in /work /work/dir /work/dir/deep; do "
        "touch $d/x; done; cat /proc/self/mountinfo'], rootfs=sys.argv[1],"
        "namespaces=['mnt', 'pid'], mounts=[proc(), bind('/mnt', '/work', read_only=True)]).wait()"
    )
    import sys

    text = output(
        [sys.executable, "-c", inner, str(root)],
        mounts=[tmpfs("/mnt"), tmpfs("/mnt/dir"), tmpfs("/mnt/dir/deep")], **apart,
    )  # fmt: skip
    assert text.count("Read-only file system") == 3
    assert text.count(" ro,") == 3


def test_without_recursion_what_is_below_stays_away(root: Path, apart: Fields) -> None:
    import sys

    inner = (
        "from clonekit import spawn; from clonekit.mounts import bind, tmpfs; import sys;"
        "spawn(['/bin/busybox', 'ls', '/work/dir'], rootfs=sys.argv[1], namespaces=['mnt'],"
        "mounts=[bind('/mnt', '/work', recursive=False)]).wait()"
    )
    text = output(
        ["sh", "-c", 'mkdir /mnt/dir/x; exec "$@"', "sh", sys.executable, "-c", inner, str(root)],
        mounts=[tmpfs("/mnt"), tmpfs("/mnt/dir")], **apart,
    )  # fmt: skip
    assert text == ""


def test_a_part_that_is_locked_is_named(root: Path, need: object) -> None:
    need("user")  # type: ignore[operator]
    with pytest.raises(SpawnError) as caught:
        shell("true", rootfs=root, mounts=[bind("/", "/work", recursive=False)],
              namespaces=["user", "mnt"], uid_map=0, gid_map=0)  # fmt: skip
    assert "bind it recursively" in caught.value.hint


def test_mounts_are_made_in_their_order(root: Path, outside: Path, apart: Fields) -> None:
    declared = [tmpfs("/work"), bind(outside, "/work/in"), tmpfs("/work/in/dir")]
    text = shell("ls /work /work/in; touch /work/in/dir/x", rootfs=root, mounts=declared, **apart)
    assert text.split() == ["/work:", "in", "/work/in:", "dir", "file"]
    assert list((outside / "dir").iterdir()) == []
    text = shell("ls /work", rootfs=root, mounts=[*declared, tmpfs("/work")], **apart)
    assert text == ""


def test_an_optional_source_may_be_missing(root: Path, outside: Path, apart: Fields) -> None:
    declared = [
        bind(outside / "absent", "/tmp/absent", optional=True),
        bind(outside / "file", "/tmp/there", optional=True),
    ]
    assert shell("ls /tmp", rootfs=root, mounts=declared, **apart) == "there\n"


def test_a_source_that_vanished_since_is_named(root: Path, outside: Path, apart: Fields) -> None:
    program = Spec(["/bin/busybox", "true"], rootfs=root, mounts=[bind(outside / "dir", "/work")],
                   **apart).program()  # fmt: skip
    (outside / "dir").rmdir()
    with pytest.raises(FileNotFoundError) as caught:
        program.spawn()
    assert str(caught.value.step).endswith("/outside/dir on /work)")  # type: ignore[attr-defined]
    assert caught.value.syscall == "open_tree"  # type: ignore[attr-defined]


def test_a_file_in_a_directorys_place_is_named(root: Path, outside: Path, apart: Fields) -> None:
    with pytest.raises(SpawnError) as caught:
        shell("true", rootfs=root, mounts=[bind(outside / "file", "/work")], **apart)
    assert caught.value.syscall == "move_mount"
    assert "a file is mounted on a file" in caught.value.hint


# ---- mounts that were made before ----


def detached() -> int:
    """A tmpfs that is mounted nowhere."""
    context = call("fsopen", address(b"tmpfs\0"), lib.FSOPEN_CLOEXEC)
    call("fsconfig", context, lib.FSCONFIG_CMD_CREATE)
    tree = call("fsmount", context, lib.FSMOUNT_CLOEXEC)
    os.close(context)
    return tree


def test_a_mount_that_was_made_before_is_attached_once(root: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("it takes root")
    tree = detached()
    os.close(os.open("made", os.O_CREAT | os.O_WRONLY, dir_fd=tree))
    user = {"namespaces": ["user", "mnt"], "uid_map": 0, "gid_map": 0}
    assert shell("ls /work", rootfs=root, mounts=[attach(tree, "/work")], **user) == "made\n"
    with pytest.raises(SpawnError) as caught:
        shell("ls /work", rootfs=root, mounts=[attach(tree, "/work")], **user)
    assert caught.value.syscall == "move_mount"
    os.close(tree)


def test_a_mount_may_be_a_slot_and_a_root(root: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("it takes root")
    tree = detached()
    place = attach(Slot("tree"), "/")
    program = Program(
        [
            new_namespaces(["mnt", "pid"]), set_propagation(), new_root(place),
            mount(bind(root / "bin", "/bin")), mount(proc()), enter_root(place),
            execute(["/bin/busybox", "true"]),
        ]
    )  # fmt: skip
    assert program.spawn(tree=tree).wait().status == 0
    os.close(tree)


# ---- id maps ----


@pytest.fixture
def users() -> object:
    """A user namespace in which our uid 0 is 1000, as a descriptor."""
    if os.geteuid() != 0:
        pytest.skip("it takes root")
    waiting = subprocess.Popen(["unshare", "-U", "sleep", "60"])
    mine = os.readlink("/proc/self/ns/user")
    while os.readlink(f"/proc/{waiting.pid}/ns/user") == mine:
        os.sched_yield()
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{waiting.pid}/{name}").write_text("0 1000 1")
    fd = os.open(f"/proc/{waiting.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    waiting.send_signal(signal.SIGKILL)
    waiting.wait()
    yield fd
    os.close(fd)


def able_to_map(path: Path, users: int) -> None:
    """Skip where files of this file system cannot be given to others so."""
    tree = call(
        "open_tree", lib.AT_FDCWD, address(os.fsencode(path) + b"\0"),
        lib.OPEN_TREE_CLONE | lib.OPEN_TREE_CLOEXEC,
    )  # fmt: skip
    wanted = struct.pack("<4Q", lib.MOUNT_ATTR_IDMAP, 0, 0, users)
    try:
        call("mount_setattr", tree, address(b"\0"), lib.AT_EMPTY_PATH, address(wanted), 32)
    except OSError as error:
        pytest.skip(f"id-mapped mounts: {error}")
    finally:
        os.close(tree)


def test_files_belong_to_whom_the_id_map_says(root: Path, outside: Path, users: int) -> None:
    able_to_map(outside, users)
    for given in (users, Slot("users")):
        declared = [mount(bind(outside, "/work", id_map=given)), mount(proc())]
        steps = [new_namespaces(["mnt", "pid"]), set_propagation(), new_root(root), *declared]
        reader, writer = os.pipe()
        from clonekit.steps import place_descriptors

        program = Program(
            [*steps, enter_root(root), place_descriptors({1: writer}),
             execute(["/bin/busybox", "stat", "-c", "%u %g", "/work/file"])]
        )  # fmt: skip
        slots = {} if given is users else {"users": users}
        process = program.spawn(**slots)
        os.close(writer)
        with open(reader) as told:
            assert told.read() == "1000 1000\n"
        assert process.wait().status == 0


def test_ids_are_mapped_only_by_who_rules_the_file_system(outside: Path, need: object) -> None:
    need("user")  # type: ignore[operator]
    own = os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    with pytest.raises(SpawnError) as caught:
        spawn(["true"], mounts=[bind(outside, "/mnt", id_map=own)],
              namespaces=["user", "mnt"], uid_map=0, gid_map=0)  # fmt: skip
    os.close(own)
    assert caught.value.syscall == "mount_setattr"


def test_the_calls_are_known_here() -> None:
    assert {"fsopen", "fsmount", "fsconfig", "open_tree", "move_mount"} <= NUMBERS.keys()
