"""What the tests of mounts share: a root file system, and what a program in it sees."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from step_cases import missing, output

OTHERS = ("mnt", "pid", "net", "ipc", "uts", "cgroup")
#: With a user namespace of one's own, and without, which takes root.
WHERE = ("in a user namespace", "without a user namespace")


class Row(NamedTuple):
    """A line of /proc/PID/mountinfo."""

    point: str
    kind: str
    source: str
    root: str
    flags: set[str]
    options: set[str]
    peers: list[str]


def rows(text: str) -> list[Row]:
    """The lines of mountinfo."""
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        _, _, _, root, point, flags, *peers = before.split()
        kind, source, options = after.split()
        found.append(
            Row(point, kind, source, root, set(flags.split(",")), set(options.split(",")), peers)
        )
    return found


@functools.cache
def busybox() -> str:
    """The path of a static busybox; the tests that need one are skipped without."""
    path = shutil.which("busybox")
    if path is None:
        pytest.skip("apt-get install busybox-static")
    with open(path, "rb") as file:
        if b"ld-linux" in file.read(4096):
            pytest.skip(f"{path} is not static; apt-get install busybox-static")
    return path


def make_root(path: Path) -> Path:
    """A root file system that holds busybox, and empty directories."""
    for name in ("bin", "proc", "sys", "dev", "tmp", "etc", "work"):
        (path / name).mkdir(parents=True)
    shutil.copy(busybox(), path / "bin/busybox")
    for name in subprocess.check_output([busybox(), "--list"], text=True).split():
        if name != "busybox":
            (path / "bin" / name).symlink_to("busybox")
    path.chmod(0o755)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root file system."""
    return make_root(tmp_path / "root")


@pytest.fixture(params=WHERE)
def apart(request: pytest.FixtureRequest) -> dict[str, object]:
    """The fields for namespaces in which mounts are the program's own."""
    if request.param == WHERE[0]:
        if reason := missing("user"):
            pytest.skip(reason)
        return {"namespaces": ["user", *OTHERS], "uid_map": 0, "gid_map": 0}
    if os.geteuid() != 0:
        pytest.skip("it takes root")
    return {"namespaces": [*OTHERS]}


def shell(script: str, **declaration: object) -> str:
    """What a script prints, errors too, that a busybox in the root runs."""
    argv = ["/bin/busybox", "sh", "-c", script]
    return output(argv, env={"PATH": "/bin"}, **declaration)


def mounts_seen(**declaration: object) -> dict[str, Row]:
    """What the program finds mounted, by place; the uppermost of each."""
    text = output(["/bin/busybox", "cat", "/proc/self/mountinfo"], **declaration)
    return {row.point: row for row in rows(text)}


def mounts_of_ours() -> list[str]:
    """Our own mounts, which no spawn may change."""
    return Path("/proc/self/mountinfo").read_text().splitlines()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Our own mounts are afterwards what they were."""
    before = mounts_of_ours()
    yield
    assert mounts_of_ours() == before


def run(*argv: str | Path) -> None:
    """Run a program, which must succeed."""
    subprocess.run(argv, check=True)
