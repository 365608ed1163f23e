"""Each kind of file system is mounted as its value says."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
from mounting import apart, mounts_seen, nothing_is_left, root, shell
from step_cases import apart as in_fork

from clonekit import SpawnError
from clonekit.mounts import (
    cgroup2,
    dev,
    devpts,
    file,
    file_system,
    mqueue,
    overlay,
    proc,
    sysfs,
    tmpfs,
)

__all__ = ["apart", "nothing_is_left", "root"]
Fields = dict[str, object]


def test_a_tmpfs_has_the_size_and_the_mode_that_were_asked_for(root: Path, apart: Fields) -> None:
    text = shell(
        "stat -f -c '%T %b %S' /tmp; stat -c %a /tmp;"
        "(head -c 70000 /dev/zero > /tmp/full) || ls -l /tmp",
        rootfs=root, mounts=[dev(), tmpfs("/tmp", size=65536, mode=0o750)], **apart,
    )  # fmt: skip
    assert text.split()[:4] == ["tmpfs", "16", "4096", "750"]
    assert " 65536 " in text


def test_a_tmpfs_is_open_to_all_unless_it_is_said(root: Path, apart: Fields) -> None:
    assert shell("stat -c %a /tmp", rootfs=root, mounts=[tmpfs("/tmp")], **apart) == "1777\n"


@pytest.mark.parametrize("name", ["nosuid", "nodev", "noexec"])
def test_a_tmpfs_has_the_flags_that_were_asked_for(root: Path, name: str, apart: Fields) -> None:
    for wanted in (True, False):
        declared = [proc(), tmpfs("/tmp", **{name: wanted})]  # type: ignore[arg-type]
        flags = mounts_seen(rootfs=root, mounts=declared, **apart)["/tmp"].flags
        assert (name in flags) == wanted or (name == "nodev" and "uid_map" in apart)


def test_proc_shows_the_programs_own_processes(root: Path, apart: Fields) -> None:
    text = shell("ls /proc; echo self $$", rootfs=root, mounts=[proc()], **apart)
    assert {name for name in text.split() if name.isdigit()} >= {"1"}
    assert len([name for name in text.split() if name.isdigit()]) <= 4
    assert "self 1\n" in text


def test_proc_may_show_processes_alone(root: Path, apart: Fields) -> None:
    text = shell("ls /proc", rootfs=root, mounts=[proc(subset="pid")], **apart)
    assert "meminfo" not in text
    assert "self" in text


@pytest.mark.parametrize("hidepid", ["off", "noaccess", "invisible", "ptraceable"])
def test_proc_may_hide_processes(root: Path, hidepid: str, apart: Fields) -> None:
    seen = mounts_seen(rootfs=root, mounts=[proc(hidepid=hidepid)], **apart)
    assert (f"hidepid={hidepid}" in seen["/proc"].options) == (hidepid != "off")


def test_sys_has_the_programs_own_interfaces(root: Path, apart: Fields) -> None:
    text = shell("ls /sys/class/net; stat -f -c %t /sys; touch /sys/new || true",
                 rootfs=root, mounts=[proc(), sysfs()], **apart)  # fmt: skip
    assert text.split()[:2] == ["lo", "62656572"]
    assert "Read-only file system" in text


def test_control_groups_begin_at_the_programs_own(root: Path, apart: Fields) -> None:
    if "cgroup2" not in Path("/proc/filesystems").read_text():
        pytest.skip("the kernel has no cgroup2")
    text = shell("cat /sys/fs/cgroup/cgroup.procs; tail -1 /proc/self/mountinfo",
                 rootfs=root, mounts=[proc(), sysfs(), cgroup2()], **apart)  # fmt: skip
    assert " / /sys/fs/cgroup ro," in text


def test_terminals_are_the_programs_own(root: Path, apart: Fields) -> None:
    text = shell(
        "ls /dev/pts; stat -c %a /dev/pts/ptmx; tail -1 /proc/self/mountinfo",
        rootfs=root, mounts=[proc(), devpts(mode=0o600, ptmxmode=0o660)], **apart,
    )  # fmt: skip
    assert text.split()[:2] == ["ptmx", "660"]
    assert "mode=600" in text


def test_message_queues_are_the_programs_own(root: Path, apart: Fields) -> None:
    seen = mounts_seen(rootfs=root, mounts=[proc(), mqueue()], **apart)
    assert seen["/dev/mqueue"].kind == "mqueue"


def test_any_other_file_system_has_its_own_options(root: Path, apart: Fields) -> None:
    mounts = [proc(), file_system("ramfs", "/tmp", {"mode": "711"}, noexec=False)]
    if apart["namespaces"][0] == "user":  # type: ignore[index]
        mounts[1] = file_system("tmpfs", "/tmp", {"mode": "711", "nr_inodes": 7, "noswap": None})
    text = shell("stat -c %a /tmp", rootfs=root, mounts=mounts, **apart)
    assert text == "711\n"


def test_an_unknown_type_is_named(root: Path, apart: Fields) -> None:
    with pytest.raises(SpawnError) as caught:
        shell("true", rootfs=root, mounts=[file_system("wonderfs", "/tmp")], **apart)
    assert caught.value.syscall == "fsopen"
    assert "wonderfs" in str(caught.value)
    assert "no file system of this type" in caught.value.hint


def test_an_unknown_option_is_named(root: Path, apart: Fields) -> None:
    with pytest.raises(SpawnError) as caught:
        shell("true", rootfs=root, mounts=[file_system("tmpfs", "/tmp", {"wonder": 1})], **apart)
    assert caught.value.arguments.endswith('FSCONFIG_SET_STRING, "wonder", "1", 0)')
    assert "does not know this option" in caught.value.hint


def test_an_overlay_of_one_directory_is_told_what_it_lacks(root: Path, apart: Fields) -> None:
    with pytest.raises(SpawnError) as caught:
        shell("true", rootfs=overlay("/", [root]), **apart)
    assert "give in_memory=True, upper, or a second" in caught.value.hint


def test_proc_without_a_pid_namespace_is_refused_with_the_reason(root: Path, need: object) -> None:
    need("user")  # type: ignore[operator]
    with pytest.raises(SpawnError) as caught:
        shell("true", rootfs=root, mounts=[proc()],
              namespaces=["user", "mnt"], uid_map=0, gid_map=0)  # fmt: skip
    assert "proc needs a PID namespace of its own" in caught.value.hint


# ---- /dev ----


def test_devices_work(root: Path, apart: Fields) -> None:
    text = shell(
        "echo lost > /dev/null; head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c;"
        "head -c 4 /dev/random | wc -c; echo x > /dev/full; echo to > /dev/stdout;"
        "ls /dev /dev/pts; cat < /dev/null; touch /dev/shm/x; readlink /dev/ptmx;"
        "stat -c '%F %t:%T' /dev/null; ls -l /dev/fd",
        rootfs=root, mounts=[proc(), dev()], **apart,
    )  # fmt: skip
    assert text.startswith("4\n4\n4\n")
    assert "No space left on device" in text
    assert "character special file 1:3\n" in text
    for name in ("null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "ptmx", "shm"):
        assert f"\n{name}\n" in text


def test_no_other_device_is_there(root: Path, apart: Fields) -> None:
    text = shell("ls /dev", rootfs=root, mounts=[dev()], **apart)
    assert " ".join(sorted(text.split())) == (
        "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero"
    )


def test_a_device_may_be_added(root: Path, apart: Fields) -> None:
    if not os.path.exists("/dev/kmsg"):
        pytest.skip("there is no /dev/kmsg")
    declared = [dev(devices=["/dev/kmsg"])]
    text = shell("stat -c %t:%T /dev/kmsg", rootfs=root, mounts=declared, **apart)
    assert text == "1:b\n"


def test_the_modes_and_owners_of_devices_stay(root: Path, apart: Fields) -> None:
    before = os.stat("/dev/null")
    (root / "etc/secret").touch()
    text = shell(
        "chmod 600 /dev/null /etc/secret; chown 1 /dev/zero; touch /dev/full; echo x > /dev/null",
        rootfs=root, mounts=[dev()], masked_paths=["/etc/secret"], **apart,
    )  # fmt: skip
    assert text.count("Read-only file system") == 4
    after = os.stat("/dev/null")
    assert (before.st_mode, before.st_uid, before.st_mtime) == (
        after.st_mode, after.st_uid, after.st_mtime,
    )  # fmt: skip


def test_a_terminal_is_opened_in_it(root: Path, apart: Fields) -> None:
    text = shell("(exec 3<>/dev/ptmx; ls /dev/pts)", rootfs=root, mounts=[dev()], **apart)
    assert text.split() == ["0", "ptmx"]


def test_nothing_is_made_in_a_read_only_dev(root: Path, apart: Fields) -> None:
    text = shell("touch /dev/new || touch /dev/shm/new; echo x > /dev/null && echo done",
                 rootfs=root, mounts=[dev(read_only=True)], **apart)  # fmt: skip
    assert "Read-only file system" in text
    assert text.endswith("done\n")


# ---- overlay ----


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """Three directories, each with a file of its own and a common one."""
    made = []
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
        (tmp_path / name / "common").write_text(name)
        made.append(tmp_path / name)
    return made


def test_layers_are_seen_as_one_the_first_on_top(
    root: Path, layers: list[Path], apart: Fields
) -> None:
    declared = [overlay("/work", layers)]
    text = shell("ls /work; cat /work/common; touch /work/new || true",
                 rootfs=root, mounts=declared, **apart)  # fmt: skip
    assert text.split()[:5] == ["common", "one", "three", "two", "onetouch:"]
    assert "Read-only file system" in text


def test_what_is_written_goes_to_the_upper_layer(
    root: Path, layers: list[Path], tmp_path: Path, apart: Fields
) -> None:
    upper, work = tmp_path / "upper", tmp_path / "work dir"
    upper.mkdir()
    work.mkdir()
    declared = [overlay("/work", layers[:2], upper=upper, work=work)]
    shell("echo new > /work/common; rm /work/one", rootfs=root, mounts=declared, **apart)
    assert (upper / "common").read_text() == "new\n"
    assert (layers[0] / "common").read_text() == "one"
    assert (layers[0] / "one").exists()


def test_what_is_written_may_be_kept_in_memory(
    root: Path, layers: list[Path], apart: Fields
) -> None:
    declared = [proc(), overlay("/work", layers[:2], in_memory=True)]
    script = "echo new > /work/common; rm /work/one; ls /work; cat /work/common /proc/mounts"
    text = shell(script, rootfs=root, mounts=declared, **apart)  # fmt: skip
    assert text.split()[:3] == ["common", "two", "new"]
    assert text.count("overlay") == 1
    assert "tmpfs" not in text
    assert sorted(path.name for path in layers[0].iterdir()) == ["common", "one"]


def test_the_name_of_a_layer_may_be_any(root: Path, tmp_path: Path, apart: Fields) -> None:
    odd = tmp_path / ("a:b,c\\d" + "e" * 240)
    odd.mkdir()
    (odd / "file").touch()
    declared = [overlay("/work", [odd, root])]
    assert "file" in shell("ls /work", rootfs=root, mounts=declared, **apart)


def test_on_older_kernels_layers_go_by_name(
    root: Path, layers: list[Path], tmp_path: Path, apart: Fields, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clonekit.mounts.layers.kernel_has", lambda *_: False)
    upper, work = tmp_path / "upper", tmp_path / "workdir"
    upper.mkdir()
    work.mkdir()
    declared = [
        overlay("/work", layers, upper=upper, work=work),
        overlay("/tmp", layers, in_memory=True),
    ]
    text = shell("ls /work; cat /work/common; echo new > /tmp/common; cat /tmp/common",
                 rootfs=root, mounts=declared, **apart)  # fmt: skip
    assert text.split() == ["common", "one", "three", "two", "onenew"]


# ---- files from data ----


def test_a_file_holds_the_data_and_cannot_be_written(root: Path, apart: Fields) -> None:
    data = bytes(range(256)) * 100
    text = shell(
        "sha256sum /etc/data; stat -c '%a %s' /etc/data; (echo x > /etc/data) || ls /etc",
        rootfs=root, mounts=[file("/etc/data", data, mode=0o640)], **apart,
    )  # fmt: skip
    import hashlib

    assert text.startswith(hashlib.sha256(data).hexdigest())
    assert "640 25600\n" in text
    assert "Read-only file system" in text
    assert (root / "etc/data").read_bytes() == b""


def test_a_file_may_come_from_a_descriptor_again_and_again(root: Path, apart: Fields) -> None:
    fd = os.memfd_create("data", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, b"from memory\n")
    for _ in range(2):
        text = shell("cat /etc/data", rootfs=root, mounts=[file("/etc/data", fd)], **apart)
        assert text == "from memory\n"
    assert os.lseek(fd, 0, os.SEEK_CUR) == 12
    os.close(fd)


def test_a_file_for_which_there_is_no_room_is_not_cut_short(root: Path, apart: Fields) -> None:
    fd = os.memfd_create("data")
    os.write(fd, bytes(10_000))

    def attempt() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with pytest.raises(SpawnError) as caught:
            shell("true", rootfs=root, mounts=[file("/etc/data", fd)], **apart)
        assert caught.value.errno == errno.EFBIG

    assert not in_fork(attempt)
    os.close(fd)


def test_a_file_may_be_empty_or_writable(root: Path, apart: Fields) -> None:
    declared = [file("/etc/empty", b""), file("/etc/mine", b"a\n", read_only=False)]
    script = "cat /etc/empty; echo b >> /etc/mine; cat /etc/mine"
    text = shell(script, rootfs=root, mounts=declared, **apart)
    assert text == "a\nb\n"


def test_on_older_kernels_a_file_is_the_same(
    root: Path, apart: Fields, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clonekit.trees.kernel_has", lambda *_: False)
    text = shell("cat /etc/data; cat /proc/mounts", rootfs=root,
                 mounts=[proc(), file("/etc/data", b"data\n")], **apart)  # fmt: skip
    assert text.startswith("data\n")
    assert [line.split()[1] for line in text.splitlines()[1:]] == ["/", "/proc", "/etc/data"]


def test_the_data_is_in_no_error_and_no_explanation(root: Path) -> None:
    from clonekit import Spec

    spec = Spec(["true"], namespaces=["mnt"], rootfs=root, mounts=[file("/etc/x", b"secret" * 9)])
    steps = {entry["step"] for entry in spec.program().explain()}
    assert "mount(54 bytes on /etc/x, read_only, nosuid, nodev)" in steps
