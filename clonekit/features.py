"""What this kernel lets this user do, found by trying it.

A kernel's version says little: distributions add and remove, containers and security modules
forbid. So each probe makes the call itself, or spawns a program with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct

from clonekit.errors import DeclarationError, SpawnError, errno_name
from clonekit.linux import descriptors
from clonekit.linux.abi import lib
from clonekit.linux.descriptors import LAST
from clonekit.linux.execution import check_executable
from clonekit.linux.flags import CloseRangeFlag, FsAccess
from clonekit.linux.landlock import Ruleset, abi
from clonekit.spec import spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

#: What is spawned: a program that ends at once, and one that waits for its input to end.
ENDS = ("true",)
WAITS = ("cat",)
ALLOW_ALL = struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)  # BPF_RET | BPF_K, SECCOMP_RET_ALLOW
#: What a new user namespace takes to be of use: its first user is us.
AS_ITS_ROOT = {"uid_map": 0, "gid_map": 0}


class Finding:
    """What became of one probe.

    Attributes:
        name: the feature.
        since: the first kernel that has it.
        available: whether it works here, for this user.
        detail: how far, or why not.
    """

    __slots__ = ("available", "detail", "name", "since")

    def __init__(self, name: str, since: str, *, available: bool, detail: str) -> None:
        self.name = name
        self.since = since
        self.available = available
        self.detail = detail

    def as_dict(self) -> dict[str, str | bool]:
        """The finding for tools."""
        return {name: getattr(self, name) for name in ("name", "since", "available", "detail")}

    def __repr__(self) -> str:
        here = "yes" if self.available else "no"
        return f"<Finding {self.name}: {here}{self.detail and f', {self.detail}'}>"


class UnavailableError(Exception):
    """A probe says why not."""


def findings() -> Iterator[Finding]:
    """Try everything, in the order of `PROBES`."""
    for name in PROBES:
        yield finding(name)


def finding(name: str) -> Finding:
    """Try one feature, by its name in `PROBES`."""
    since, probe = PROBES[name]
    try:
        detail = probe()
    except (UnavailableError, DeclarationError, OSError) as error:
        return Finding(name, since, available=False, detail=reason(error))
    return Finding(name, since, available=True, detail=detail)


def reason(error: Exception) -> str:
    """Why not, in a line."""
    if isinstance(error, SpawnError):
        what = error.syscall or error.step or error.phase
        return f"{what}: {errno_name(error.errno or 0)}{error.hint and f'; {error.hint}'}"
    if isinstance(error, OSError):
        return f"{errno_name(error.errno or 0)}: {error.strerror}"
    return str(error)


def run(**declaration: Any) -> str:
    """Spawn a program so, and see it end well."""
    with spawn(ENDS, **{"fds": {}, **declaration}) as process:
        ended = process.wait()
    if ended.returncode:
        msg = f"it began, but ended as {ended!r}"
        raise UnavailableError(msg)
    return ""


def first_that_works(*ways: tuple[str, dict[str, Any]]) -> str:
    """The name of the first of these declarations that can be spawned.

    Raises: what the first one raised, if none can.
    """
    first: SpawnError | None = None
    for told, declaration in ways:
        try:
            run(**declaration)
        except SpawnError as error:
            first = first or error
        else:
            return told
    raise first or UnavailableError


def alone_or_as_root_inside(**declaration: Any) -> str:
    """With this user's own rights, or else with those that a new user namespace gives."""
    names = declaration.get("namespaces", ())
    inside = {**declaration, **AS_ITS_ROOT, "namespaces": ["user", *names]}
    return first_that_works(("", declaration), ("inside a new user namespace", inside))


def namespace(name: str) -> Callable[[], str]:
    """The probe of a kind of namespace."""
    return lambda: alone_or_as_root_inside(namespaces=[name])


def spawned(**declaration: Any) -> Callable[[], str]:
    """The probe that spawns with this declaration."""
    return lambda: run(**declaration)


def clone3() -> str:
    """Whether it is there at all, and then a spawn."""
    if not lib.ck_has_clone3():
        msg = "ENOSYS: an older kernel, or a container's old seccomp profile; clone is used instead"
        raise UnavailableError(msg)
    return run()


def close_range() -> str:
    """A range in which nothing can be open."""
    descriptors.close_range(LAST)
    try:
        descriptors.close_range(LAST, LAST, CloseRangeFlag.CLOEXEC)
    except OSError:
        return "without CLOSE_RANGE_CLOEXEC (Linux 5.11)"
    return ""


def user_namespace() -> str:
    """Made, and given its map: some systems refuse only that."""
    return run(namespaces=["user"], **AS_ITS_ROOT)


def cgroup2_directories() -> Iterator[str]:
    """Our own group in each mounted hierarchy of version 2, and its root."""
    with open("/proc/self/cgroup", encoding="utf-8") as file:  # noqa: PTH123 - one style here
        own = next((line[3:].strip() for line in file if line.startswith("0::")), "/")
    with open("/proc/self/mountinfo", encoding="utf-8") as file:  # noqa: PTH123 - likewise
        mounts = [line.split() for line in file]
    for words in mounts:
        if words[words.index("-") + 1] == "cgroup2":
            mount = words[4]
            yield f"{mount}{own.removeprefix(words[3].rstrip('/'))}".rstrip("/")
            if own != "/":
                yield mount


@contextlib.contextmanager
def new_group() -> Iterator[str]:
    """A group of cgroup2 for as long as the block lasts."""
    refused = "no hierarchy of version 2 is mounted"
    for directory in cgroup2_directories():
        group = f"{directory}/clonekit-probe-{os.getpid()}"
        try:
            os.mkdir(group)  # noqa: PTH102 - one style here
        except OSError as error:
            refused = f"no group can be made in {directory}: {error.strerror}"
            continue
        try:
            yield group
        finally:
            os.rmdir(group)  # noqa: PTH106 - likewise
        return
    raise UnavailableError(refused)


def into_cgroup() -> str:
    """A program that begins in a group made for it."""
    with new_group() as group:
        run(cgroup=group)
        return f"tried in {os.path.dirname(group)}"  # noqa: PTH120 - likewise


def seccomp() -> str:
    """A filter that allows everything."""
    return first_that_works(
        ("", {"seccomp": ALLOW_ALL}),
        ("with no_new_privs", {"seccomp": ALLOW_ALL, "no_new_privs": True}),
    )


def landlock() -> str:
    """A ruleset that forbids making block devices, enforced on a program."""
    with Ruleset(handled=FsAccess.MAKE_BLOCK) as ruleset:
        run(landlock=ruleset, no_new_privs=True)
    return f"ABI {abi()}"


def pidfd_info() -> str:
    """Of a program that has ended, so that we see whether its status is kept."""
    with spawn(ENDS, fds={}) as process:
        process.info()
        process.wait()
        try:
            process.info()
        except OSError:
            return "without the exit status (Linux 6.15)"
    return ""


def pidfd_getfd() -> str:
    """A descriptor of a child that waits."""
    reader, writer = os.pipe()
    try:
        with spawn(WAITS, fds={0: reader}) as process:
            os.close(process.getfd(0))
    finally:
        os.close(reader)
        os.close(writer)
    return ""


def execve_check() -> str:
    """Whether the file may be executed that we are."""
    check_executable("/proc/self/exe")
    return ""


def autokill() -> str:
    """A right of administrators, or of programs that can gain none."""
    return first_that_works(
        ("", {"autokill": True}), ("with clone_nnp", {"autokill": True, "clone_nnp": True})
    )


def empty_mounts() -> str:
    """Where nothing is mounted there is no program to begin: exec is all that may fail."""
    for told, declaration in (
        ("", {"empty_mounts": True}),
        ("inside a new user namespace", {"empty_mounts": True, "namespaces": ["user"]}),
    ):
        try:
            run(**declaration)
        except SpawnError as error:
            if error.phase == "exec":
                return told
            refused = error
    raise refused


def real_time() -> str:
    """The lowest priority is as forbidden as the highest."""
    return run(scheduler=("fifo", 1))


def core_scheduling() -> str:
    """EINVAL is a kernel that was built without it; ENODEV speaks for itself."""
    try:
        return run(core_scheduling=True)
    except SpawnError as error:
        if error.errno != errno.EINVAL:
            raise
        msg = "prctl: EINVAL; older than Linux 5.14, or built without CONFIG_SCHED_CORE"
        raise UnavailableError(msg) from None


def ambient() -> str:
    """Over a change of uid, where we may make one."""
    one = ["net_bind_service"]
    declaration = {"capabilities": {"permitted": one, "inheritable": one, "ambient": one}}
    if os.geteuid() == 0:
        return first_that_works(("kept over a change of uid", {**declaration, "uid": 65534}))
    return alone_or_as_root_inside(**declaration)


#: Each feature with the first kernel that has it, and how it is tried.
PROBES: dict[str, tuple[str, Callable[[], str]]] = {
    "clone3": ("5.3", clone3),
    "close_range": ("5.9", close_range),
    "user namespace": ("3.8", user_namespace),
    "mnt namespace": ("2.4", namespace("mnt")),
    "pid namespace": ("2.6", namespace("pid")),
    "net namespace": ("2.6", namespace("net")),
    "ipc namespace": ("2.6", namespace("ipc")),
    "uts namespace": ("2.6", namespace("uts")),
    "cgroup namespace": ("4.6", namespace("cgroup")),
    "time namespace": ("5.6", namespace("time")),
    "time offsets": ("6.2", lambda: alone_or_as_root_inside(time_offsets={"monotonic": 1})),
    "CLONE_INTO_CGROUP": ("5.7", into_cgroup),
    "CLONE_AUTOREAP": ("7.1", spawned(autoreap=True)),
    "CLONE_NNP": ("7.1", spawned(clone_nnp=True)),
    "CLONE_PIDFD_AUTOKILL": ("7.1", autokill),
    "CLONE_EMPTY_MNTNS": ("7.1", empty_mounts),
    "PIDFD_GET_INFO": ("6.13", pidfd_info),
    "pidfd_getfd": ("5.6", pidfd_getfd),
    "AT_EXECVE_CHECK": ("6.14", execve_check),
    "seccomp filter": ("3.17", seccomp),
    "Landlock": ("5.13", landlock),
    "no_new_privs": ("3.5", spawned(no_new_privs=True)),
    "chroot": ("1.0", lambda: alone_or_as_root_inside(root="/")),
    "ambient capabilities": ("4.3", ambient),
    "session keyring": ("2.6", spawned(keyring=True)),
    "real-time scheduling": ("2.0", real_time),
    "core scheduling": ("5.14", core_scheduling),
    "NUMA policy": ("2.6", spawned(mempolicy=("preferred", [0]))),
}
