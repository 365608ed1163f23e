"""One container, as clonekit and as other runtimes are told of it; and a place where those run.

A script, too: `containers.py COMMAND...` runs the command where cgroup2 is the only hierarchy that
is seen. crun refuses to run where both versions have controllers.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rootfs import make_root

from clonekit import mounts
from clonekit.linux.abi import call, lib
from clonekit.linux.memory import address
from clonekit.linux.namespaces import unshare

CGROUPS = Path("/sys/fs/cgroup")
#: Where systemd mounts version 2 beside version 1.
UNIFIED = CGROUPS / "unified"
NAMESPACES = ("user", "mount", "pid", "network", "uts", "ipc", "cgroup")
HOSTNAME = "aquarium"
ENV = {"PATH": "/bin"}
_numbers = itertools.count()


def sandbox(root: Path) -> dict[str, Any]:
    """A declaration: every namespace, one id, a read-only root, /proc, /dev and /tmp."""
    return {
        "namespaces": NAMESPACES,
        "uid_map": 0,
        "gid_map": 0,
        "hostname": HOSTNAME,
        "rootfs": mounts.bind(root, "/", read_only=True),
        "mounts": [mounts.proc(), mounts.dev(), mounts.tmpfs("/tmp")],
        "no_new_privs": True,
        "env": ENV,
    }


def configuration(
    root: Path,
    argv: Sequence[str],
    *,
    seccomp: Mapping[str, Any] | None = None,
    capabilities: Iterable[str] = (),
) -> dict[str, Any]:
    """The same for the OCI's runtimes: a config.json. What is in /dev they make by themselves."""
    names = sorted(capabilities)
    sets = dict.fromkeys(("bounding", "effective", "permitted"), names)
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": [*argv],
            "env": [f"{name}={value}" for name, value in ENV.items()],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": {**sets, "inheritable": [], "ambient": []},
        },
        "root": {"path": str(root), "readonly": True},
        "hostname": HOSTNAME,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "noexec", "mode=755", "size=64k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "nodev", "mode=1777"]},
        ],
        "linux": {
            "uidMappings": [{"containerID": 0, "hostID": os.geteuid(), "size": 1}],
            "gidMappings": [{"containerID": 0, "hostID": os.getegid(), "size": 1}],
            "namespaces": [{"type": name} for name in NAMESPACES],
            **({"seccomp": seccomp} if seccomp else {}),
        },
    }  # fmt: skip


def bundle(directory: Path, config: Mapping[str, Any]) -> Path:
    """A directory that a runtime takes for a container."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def running(runtime: Sequence[str], state: Path, directory: Path) -> list[str]:
    """The command that runs a bundle as a new container; `state` is the runtime's own directory.

    `runtime` is its program and the options that come before its command.
    """
    name = f"clonekit-{os.getpid()}-{next(_numbers)}"
    program, *options = runtime
    return [program, "--root", str(state), *options, "run", "--bundle", str(directory), name]


def entrance(runtime: tuple[str, ...]) -> list[str]:
    """What stands before a runtime's command for it to run here: nothing, or this script.

    Where it runs no container, the test is skipped.
    """
    if shutil.which(runtime[0]) is None:
        pytest.skip(f"no {runtime[0]}: apt-get install {runtime[0]}")
    found, told = tried(runtime)
    if found is None:
        pytest.skip(f"{runtime[0]} runs no container here: {told}")
    return found


@functools.cache
def tried(runtime: tuple[str, ...]) -> tuple[list[str] | None, str]:
    """What `entrance` gives, found by running a container; or what the runtime complained of."""
    complaints = []
    with tempfile.TemporaryDirectory(prefix="clonekit-containers-") as name:
        directory = Path(name)
        made = bundle(directory / "bundle", configuration(make_root(directory / "root"), ["true"]))
        for before in ([], [sys.executable, __file__]):
            command = [*before, *running(runtime, directory / "state", made)]
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                return before, ""
            complaints.append(done.stderr.strip())
    return None, "; ".join(complaints)


def mount(source: str | None, target: str, flags: int) -> None:
    """The old call, which every kernel has."""
    texts = [None if text is None else os.fsencode(text) + b"\0" for text in (source, target)]
    call("mount", *(0 if text is None else address(text) for text in texts), 0, flags, 0)


def enter_one_hierarchy() -> None:
    """Move this process to where /sys/fs/cgroup is cgroup2. Without privilege, it keeps its ids."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        unshare(lib.CLONE_NEWNS)
    else:
        unshare(lib.CLONE_NEWUSER | lib.CLONE_NEWNS)
        for name, text in (
            ("uid_map", f"{uid} {uid} 1"), ("setgroups", "deny"), ("gid_map", f"{gid} {gid} 1")
        ):  # fmt: skip
            Path("/proc/self", name).write_text(text)
    mount(None, "/", lib.MS_REC | lib.MS_PRIVATE)
    mount(str(UNIFIED), str(CGROUPS), lib.MS_BIND)


if __name__ == "__main__":
    enter_one_hierarchy()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - what it is for
