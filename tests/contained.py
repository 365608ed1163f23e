"""A container with everything in it, in the ways in which one is made, and what it could leave."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mounting import make_root
from parent_snapshot import changes, snapshot
from step_cases import NOBODY, missing

from clonekit import Cgroup, Filter, Landlock, Spec, netns
from clonekit.linux.abi import call, lib
from clonekit.linux.id_map import IdMap, subordinate_ids
from clonekit.linux.memory import address
from clonekit.mounts import bind, dev, file, proc, tmpfs
from clonekit.network import Veth

ALL = ["mnt", "pid", "net", "uts", "ipc", "cgroup"]
#: How a container's ids are mapped, and who furnishes its network.
WAYS = ("by itself", "by newuidmap", "by its parent", "without a user namespace")
REFUSED = (
    "acct", "add_key", "bpf", "delete_module", "finit_module", "init_module", "kexec_load",
    "keyctl", "mount", "move_mount", "nfsservctl", "open_by_handle_at", "perf_event_open",
    "quotactl", "reboot", "setns", "swapoff", "swapon", "umount2", "unshare",
)  # fmt: skip
NETWORK = "ck-faults"


def refuse_missing(way: str) -> None:
    """Skip a way that this machine or this user does not have."""
    root = os.geteuid() == 0
    if reason := missing("user"):
        pytest.skip(reason)
    if way == "by newuidmap":
        if root or shutil.which("newuidmap") is None:
            pytest.skip("it is for those who are not root, with the package uidmap")
        if not subordinate_ids("uid") or not subordinate_ids("gid"):
            pytest.skip("we have no ranges in /etc/subuid and /etc/subgid")
    if way in WAYS[2:]:
        if not root:
            pytest.skip("it takes root")
        for need in ("veth", "mount"):
            if reason := missing(need):
                pytest.skip(reason)


def fields_of(way: str) -> dict[str, Any]:
    """What of the declaration depends on the way."""
    user: dict[str, Any] = {"namespaces": ["user", *ALL], "init": True}
    if way == "by itself":
        return {**user, "uid_map": 0, "gid_map": 0, "loopback": True}
    if way == "by newuidmap":
        maps = {f"{kind}_map": IdMap.subordinate(kind) for kind in ("uid", "gid")}
        return {**user, **maps, "loopback": True}
    cable = Veth(
        peer="ck-outside", addresses=["10.9.0.2/24"], peer_addresses=["10.9.0.1/24"],
        gateway="10.9.0.1",
    )  # fmt: skip
    if way == "by its parent":
        ranges = IdMap((0, 100_000, 1000), (1000, 0, 1))  # who mounts has an id, too
        ids = {"uid_map": ranges, "gid_map": ranges, "uid": 0, "gid": 0, "groups": []}
        return {**user, **ids, "network": [cable]}
    return {
        "namespaces": [name for name in ALL if name != "net"],
        "join": kept(netns.find(NETWORK)).join,
        "uid": NOBODY, "gid": NOBODY, "groups": [], "capabilities": [], "pdeathsig": "KILL",
    }  # fmt: skip


def container(way: str, root: Path, group: Cgroup | None, **fields: Any) -> Spec:
    """The declaration of a container in this root."""
    declared: dict[str, Any] = {
        "env": {"PATH": "/bin"},
        "hostname": "inside",
        "rootfs": bind(root, "/", read_only=True),
        "mounts": [
            proc(), dev(), tmpfs("/tmp", size=1 << 20), tmpfs("/etc"),
            file("/etc/motd", b"welcome\n"), bind("/usr/bin", "/work", read_only=True),
        ],
        "masked_paths": ["/proc/kcore", "/proc/acpi", "/etc/motd"],
        "readonly_paths": ["/proc/sys"],
        "rlimits": {"nofile": 256, "core": 0},
        "setsid": True,
        "landlock": Landlock(read=["/"], write=["/tmp", "/dev"], execute=["/bin"]),
        "no_new_privs": True,
        "seccomp": Filter("ALLOW").errno(*REFUSED),
        **fields_of(way),
    }  # fmt: skip
    if missing("landlock"):
        del declared["landlock"]
    if group is not None:
        declared["cgroup"] = group
    return Spec(["/bin/busybox", "true"], **{**declared, **fields})


@contextmanager
def apart_from_the_host(way: str) -> Iterator[Cgroup | None]:
    """Networks and names of networks are our own, and orphans come to us; a group, if we may."""
    call("prctl", lib.PR_SET_CHILD_SUBREAPER, 1)
    if way in WAYS[2:]:
        call("unshare", lib.CLONE_NEWNET | lib.CLONE_NEWNS)
        call("mount", 0, text(b"/"), 0, lib.MS_REC | lib.MS_PRIVATE, 0)
        call("mount", text(b"t"), text(b"/run"), text(b"tmpfs"), 0, 0)
        netns.create(NETWORK).close()
    if missing("cgroup"):
        yield None
        return
    with Cgroup() as group:
        path = Path(group.path)
        yield group
    assert not path.exists(), path


_kept: list[Any] = []


def kept(value: Any) -> Any:
    """What stays until the process ends."""
    _kept.append(value)
    return value


def text(value: bytes) -> int:
    """The address of a C string that stays."""
    return address(kept(bytearray(value + b"\0")))


def await_cables() -> None:
    """Wait until the kernel has taken away the ends here of cables whose other network is gone."""
    while len(socket.if_nameindex()) > 1:
        time.sleep(0.001)


def tree(path: Path) -> list[str]:
    """All that is in a directory."""
    return sorted(
        f"{Path(parent, name)} {stat.filemode(Path(parent, name).lstat().st_mode)}"
        for parent, directories, files in os.walk(path)
        for name in (*directories, *files)
    )


def traces(root: Path, group: Cgroup | None) -> dict[str, object]:
    """Whatever a container could leave outside."""
    return {
        **snapshot(),
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "interfaces": socket.if_nameindex(),
        "named networks": netns.names(),
        "System V": [Path(f"/proc/sysvipc/{kind}").read_text() for kind in ("shm", "sem", "msg")],
        "root": tree(root),
        "group": group and (group.pids(below=True), tree_of_groups(Path(group.path))),
    }


def tree_of_groups(path: Path) -> list[str]:
    """The groups below a group."""
    return sorted(parent for parent, _, _ in os.walk(path))


@contextmanager
def leaving_nothing(root: Path, group: Cgroup | None) -> Iterator[Callable[[], None]]:
    """A check that what was done meanwhile has left nothing; done at the end, too."""
    if group is not None:
        group.wait_empty(10)
    before = traces(root, group)

    def check() -> None:
        left = changes(before, traces(root, group))
        assert not left, left

    yield check
    check()


__all__ = [
    "WAYS", "apart_from_the_host", "await_cables", "container", "leaving_nothing", "make_root",
    "refuse_missing",
]  # fmt: skip
