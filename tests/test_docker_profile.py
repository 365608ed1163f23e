"""Docker's default profile means under clonekit what it means under crun, call by call."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import containers
import pytest
from rootfs import make_root

from clonekit import spawn
from clonekit.filters import Filter

DATA = Path(__file__).parent / "data"
CRUN = ("crun", "--cgroup-manager=disabled")
#: What Docker gives a container that is told nothing, and what is often added to it.
DEFAULT = frozenset(
    "CAP_" + name
    for name in (
        "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD",
        "NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
    )
)  # fmt: skip
CAPABILITIES: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "default": DEFAULT,
    "with SYS_ADMIN": DEFAULT | {"CAP_SYS_ADMIN"},
    "with those that rules name": DEFAULT
    | {
        "CAP_BPF", "CAP_DAC_READ_SEARCH", "CAP_PERFMON", "CAP_SYSLOG", "CAP_SYS_BOOT",
        "CAP_SYS_MODULE", "CAP_SYS_NICE", "CAP_SYS_PACCT", "CAP_SYS_PTRACE", "CAP_SYS_RAWIO",
        "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG",
    },
}  # fmt: skip
#: What the profile is for: so that two outputs are not equal because neither was filtered.
KNOWN = {
    "none": {"mount": "EPERM", "unshare user": "EPERM", "keyctl": "EPERM", "chroot": "EPERM"},
    "default": {
        "clone": "done",
        "clone user": "EPERM",
        "clone3": "ENOSYS",
        "keyctl": "EPERM",
        "mount": "EPERM",
        "personality": "done",
        "personality svr4": "EPERM",
        "chroot": "done",
    },
    "with SYS_ADMIN": {"mount": "done", "clone user": "done", "clone3": "done", "keyctl": "EPERM"},
    "with those that rules name": {"kcmp": "done", "mount": "EPERM", "reboot": "EINVAL"},
}
#: What later versions of Docker no longer allow: sockets that reach the host of a virtual machine.
NO_VSOCK = {
    "names": ["socket"],
    "action": "SCMP_ACT_ALLOW",
    "args": [{"index": 0, "value": socket.AF_VSOCK, "op": "SCMP_CMP_NE"}],
}
RING = {"io_uring_enter", "io_uring_register", "io_uring_setup"}


def as_published() -> dict[str, Any]:
    """The profile of Docker 20.10."""
    profile: dict[str, Any] = json.loads((DATA / "docker-20.10.json").read_text())
    return profile


def as_it_became() -> dict[str, Any]:
    """The same with what Docker 25 took away, where it has a rule that compares."""
    profile = as_published()
    for rule in profile["syscalls"]:
        if "socket" in rule["names"]:
            rule["names"] = [name for name in rule["names"] if name not in {"socket", *RING}]
    profile["syscalls"].append(NO_VSOCK)
    return profile


PROFILES = {"20.10": as_published(), "25": as_it_became()}
GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}


def version(text: str) -> tuple[int, ...]:
    """Of a kernel: the first two numbers."""
    return tuple(int(number) for number in text.partition("-")[0].split(".")[:2])


def holds(condition: Mapping[str, Any] | None, capabilities: frozenset[str]) -> dict[str, bool]:
    """Which parts of a rule's condition hold here."""
    condition = condition or {}
    held = {}
    if condition.get("arches"):
        held["arches"] = GO_NAMES[platform.machine()] in condition["arches"]
    if condition.get("minKernel"):
        held["minKernel"] = version(platform.release()) >= version(condition["minKernel"])
    for name in condition.get("caps") or ():
        held[name] = name in capabilities
    return held


def as_runtime_spec(profile: Mapping[str, Any], capabilities: frozenset[str]) -> dict[str, Any]:
    """What Docker makes of its profile for a runtime: the OCI's `linux.seccomp`, no conditions."""
    native = f"SCMP_ARCH_{platform.machine().upper()}"
    made: dict[str, Any] = {
        "defaultAction": profile["defaultAction"],
        "architectures": [],
        "syscalls": [],
    }
    if "defaultErrnoRet" in profile:
        made["defaultErrnoRet"] = profile["defaultErrnoRet"]
    for entry in profile["archMap"]:
        if entry["architecture"] == native:
            made["architectures"] = [native, *(entry["subArchitectures"] or ())]
    for rule in profile["syscalls"]:
        included = all(holds(rule.get("includes"), capabilities).values())
        excluded = any(holds(rule.get("excludes"), capabilities).values())
        if included and not excluded:
            keys = ("names", "action", "errnoRet", "args")
            made["syscalls"].append({key: rule[key] for key in keys if rule.get(key) is not None})
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Path:
    """A root file system with the program that makes the calls."""
    return make_root(tmp_path_factory.mktemp("docker") / "root", built / "attempts")


@pytest.fixture
def crun() -> list[str]:
    """What stands before crun's command."""
    return containers.entrance(CRUN)


def lines(output: str) -> dict[str, str]:
    """What became of each call, by its name."""
    found = [line.split(": ", 1) for line in output.splitlines()]
    assert len(dict(found)) == len(found)
    return dict(found)


def under_crun(before: Sequence[str], directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """What the program prints in a container of crun's."""
    bundle = containers.bundle(directory / "bundle", config)
    done = subprocess.run(
        [*before, *containers.running(CRUN, directory / "state", bundle)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return lines(done.stdout)


def under_clonekit(
    root: Path, capabilities: frozenset[str], profile: Mapping[str, Any]
) -> dict[str, str]:
    """What the program prints in a sandbox of ours."""
    reader, writer = os.pipe()
    with os.fdopen(reader) as output:
        process = spawn(
            ["/bin/attempts"],
            **containers.sandbox(root),
            fds={1: writer, 2: 2},
            capabilities={"bounding": capabilities, "permitted": capabilities},
            seccomp=Filter.from_oci(profile, capabilities=capabilities),
        )
        os.close(writer)
        with process:
            told = output.read()
            assert process.wait(timeout=60).returncode == 0
    return lines(told)


@pytest.mark.parametrize("having", CAPABILITIES)
@pytest.mark.parametrize("name", PROFILES)
def test_dockers_profile_answers_every_call_as_under_crun(
    name: str, having: str, root: Path, crun: list[str], tmp_path: Path
) -> None:
    profile, capabilities = PROFILES[name], CAPABILITIES[having]
    rules = as_runtime_spec(profile, capabilities)
    config = containers.configuration(
        root, ["/bin/attempts"], seccomp=rules, capabilities=capabilities
    )
    theirs = under_crun(crun, tmp_path, config)
    assert KNOWN[having].items() <= theirs.items()
    assert under_clonekit(root, capabilities, profile) == theirs


def test_the_later_profile_refuses_more(root: Path, crun: list[str], tmp_path: Path) -> None:
    answers = []
    for name, profile in {"none": None, **PROFILES}.items():
        rules = as_runtime_spec(profile, DEFAULT) if profile else None
        config = containers.configuration(
            root, ["/bin/attempts"], seccomp=rules, capabilities=DEFAULT
        )
        answers.append(under_crun(crun, tmp_path / name, config))
    none, earlier, later = answers
    assert sum(none[call] != earlier[call] for call in none) >= 40
    assert {call for call in none if earlier[call] != later[call]} == {"socket vsock", *RING}
