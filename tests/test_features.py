"""What the probes find: it agrees with what can be done, and says what forbids it."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clonekit import SpawnError, spawn
from clonekit.features import PROBES, cgroup2_directories, finding, findings
from clonekit.linux.abi import NUMBERS

CLONEKIT = [sys.executable, "-m", "clonekit"]
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
ERRNO, ALLOW = 0x00050000, 0x7FFF0000


def without(syscall: str, number: int) -> bytes:
    """A filter that answers one system call with this errno."""
    program = [
        (LOAD, 0, 0, 0),
        (EQUAL, 0, 1, NUMBERS[syscall]),
        (RETURN, 0, 0, ERRNO | number),
        (RETURN, 0, 0, ALLOW),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def found_by(**declaration: Any) -> dict[str, dict[str, Any]]:
    """What `clonekit features` finds in a process of this declaration."""
    reader, writer = os.pipe()
    argv = [*CLONEKIT, "features", "--json"]
    with os.fdopen(reader) as output, spawn(argv, fds={1: writer, 2: 2}, **declaration) as process:
        os.close(writer)
        text = output.read()
        assert process.wait().status == 0
    return {entry["name"]: entry for entry in json.loads(text)}


def test_every_probe_gives_a_finding_with_a_reason_where_not() -> None:
    found = found_by()
    assert list(found) == list(PROBES)
    for entry in found.values():
        assert re.fullmatch(r"\d\.\d+", entry["since"])
        assert entry["available"] or entry["detail"]


@pytest.mark.parametrize(
    ("feature", "syscall", "number", "name"),
    [
        ("clone3", "clone3", 38, "ENOSYS"),
        ("close_range", "close_range", 1, "EPERM"),
        ("pidfd_getfd", "pidfd_getfd", 1, "EPERM"),
        ("Landlock", "landlock_create_ruleset", 38, "Linux 5.13"),
        ("AT_EXECVE_CHECK", "execveat", 22, "Linux 6.14"),
        ("session keyring", "keyctl", 1, "EPERM"),
        ("NUMA policy", "set_mempolicy", 38, "ENOSYS"),
        ("real-time scheduling", "sched_setattr", 1, "EPERM"),
        ("chroot", "chroot", 1, "EPERM"),
        ("time offsets", "unshare", 1, "EPERM"),
        ("PIDFD_GET_INFO", "ioctl", 25, "ENOTTY"),
    ],
    ids=str,
)
def test_what_a_filter_forbids_is_found_forbidden(
    feature: str, syscall: str, number: int, name: str
) -> None:
    if syscall == "close_range":  # without which nothing can be spawned: the probe itself is asked
        code = "from clonekit.features import finding; print(finding('close_range'))"
        closed = without(syscall, number)
        done = spawned([sys.executable, "-c", code], seccomp=closed, no_new_privs=True)
        assert done.startswith("<Finding close_range: no, EPERM")
        return
    found = found_by(seccomp=without(syscall, number), no_new_privs=True)[feature]
    assert not found["available"]
    assert name in found["detail"]


def spawned(argv: list[str], **declaration: Any) -> str:
    """What a program prints."""
    reader, writer = os.pipe()
    with os.fdopen(reader) as output, spawn(argv, fds={1: writer, 2: 2}, **declaration):
        os.close(writer)
        return output.read()


@pytest.mark.parametrize("name", ["mnt", "pid", "net", "ipc", "uts", "cgroup", "time"])
def test_a_namespace_that_is_found_can_be_made_that_way(name: str) -> None:
    found = finding(f"{name} namespace")
    inside = {"namespaces": ["user", name], "uid_map": 0, "gid_map": 0}
    alone: dict[str, Any] = {"namespaces": [name]}
    ways = {"": alone, "inside a new user namespace": inside}
    if not found.available:
        for declaration in ways.values():
            with pytest.raises(SpawnError):
                spawn(["true"], **declaration)
        return
    link = f"/proc/self/ns/{name}"
    told = spawned(["readlink", link], **ways[found.detail])
    assert told.strip() != str(Path(link).readlink())
    if found.detail:
        with pytest.raises(SpawnError):
            spawn(["true"], **alone)


def test_probing_leaves_no_group_and_no_descriptor_and_no_child() -> None:
    def groups() -> list[str]:
        return sorted(
            str(entry)
            for place in cgroup2_directories()
            for entry in Path(place).iterdir()
            if entry.is_dir()
        )

    def descriptors() -> list[str]:
        return sorted(os.listdir("/proc/self/fd"))

    before = groups(), descriptors()
    for _ in findings():
        pass
    assert (groups(), descriptors()) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_cgroup_that_is_found_can_be_begun_in() -> None:
    found = finding("CLONE_INTO_CGROUP")
    if not found.available:
        pytest.skip(found.detail)
    assert Path(found.detail.removeprefix("tried in "), "cgroup.procs").exists()


def test_features_shows_each_in_a_table() -> None:
    done = subprocess.run(
        [*CLONEKIT, "features"], capture_output=True, text=True, check=True,
        env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert os.uname().release in lines[0]
    assert max(map(len, lines)) <= 80
    for name, (since, _) in PROBES.items():
        row = re.compile(rf"{re.escape(name)} +{re.escape(since)} +(yes|no)\b")
        assert any(map(row.match, lines))


def test_features_takes_no_program() -> None:
    done = subprocess.run([*CLONEKIT, "features", "--", "true"], capture_output=True, check=False)
    assert done.returncode == 125
