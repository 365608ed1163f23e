"""For every step of the library, lists of steps that succeed and lists that the kernel refuses.

`CASES` is a plain list. A case's `steps` are all but the last: add `execute(argv)`. What it needs
of the machine is named, and found by trying.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from clonekit import Exit, Landlock, Program, Slot, SpawnError, spawn
from clonekit.completion import CLOSED_PHASES
from clonekit.linux import FsAccess
from clonekit.linux.abi import NUMBERS, call, lib
from clonekit.mounts import bind, file, file_system, overlay, tmpfs
from clonekit.network import Veth, networks
from clonekit.steps import (
    bind_socket,
    bound_capabilities,
    change_directory,
    change_root,
    clone_no_new_privs,
    close_descriptor,
    connect_socket,
    control,
    deny_write_execute,
    disable_huge_pages,
    duplicate,
    empty_mount_namespace,
    end_with_pidfd,
    end_without_zombie,
    enter_cgroup,
    enter_root,
    execute,
    furnish_network,
    ignore_signals,
    install_seccomp_filter,
    join_namespaces,
    join_session_keyring,
    keep_capabilities,
    listen_socket,
    loopback_up,
    make_path_read_only,
    make_ruleset,
    map_gid,
    map_uid,
    mask_path,
    merge_pages,
    mount,
    nest_user_namespace,
    new_core_cookie,
    new_namespaces,
    new_root,
    new_session,
    new_time_namespace,
    open_coredump_filter,
    open_file,
    open_memory,
    open_pipe,
    open_socket,
    place_descriptors,
    raise_ambient,
    receive_descriptors,
    reset_signals,
    restrict_with_landlock,
    run_init,
    set_affinity,
    set_alarm,
    set_attribute,
    set_capabilities,
    set_controlling_terminal,
    set_coredump_filter,
    set_domain_name,
    set_gid,
    set_groups,
    set_host_name,
    set_io_priority,
    set_memory_policy,
    set_nice,
    set_no_new_privs,
    set_oom_score_adj,
    set_parent_death_signal,
    set_personality,
    set_process_group,
    set_propagation,
    set_rlimit,
    set_scheduler,
    set_securebits,
    set_signal_mask,
    set_socket_option,
    set_timer_slack,
    set_uid,
    set_umask,
    system_call,
    take_foreground,
    write,
    write_file,
)
from clonekit.steps.step import KINDS, Step

HERE = Path(__file__).parent
NOBODY = 65534
NONE: tuple[str, ...] = ()
STATUS = ("cat", "/proc/self/status")
STAT = ("cat", "/proc/self/stat")


class Room:
    """A directory for one case, and what it opened there, which goes away after it."""

    def __init__(self, path: Path, see: Path | None = None) -> None:
        self.path = path
        self.see = see
        self.stack = ExitStack()

    def keep(self, fd: int) -> int:
        """A descriptor that is closed at the end."""
        self.stack.callback(os.close, fd)
        return fd

    def open(self, path: str | Path, flags: int = os.O_RDONLY) -> int:
        """Open a file of ours."""
        return self.keep(os.open(path, flags | os.O_CLOEXEC, 0o600))


class Case(NamedTuple):
    """Steps, and what becomes of them."""

    name: str
    step: str  # the step that the case is about
    steps: Callable[[Room], list[Step]]
    fails: tuple[int, ...] = ()  # the errnos that this step may fail with; none: it succeeds
    argv: tuple[str, ...] = ("true",)
    sees: Callable[[str], object] = lambda _: True  # judges what the program prints
    needs: tuple[str, ...] = ()  # keys of NEEDS
    refused: Mapping[str, int] = MappingProxyType(
        {}
    )  # calls of the spawning process that a filter refuses, with errno

    def __str__(self) -> str:
        return f"{self.step}-{self.name}"


CASES: list[Case] = []
#: Steps that have tests of their own instead: what stops at its exec does so for one tracer alone,
#: and that is strace in some of the tests of cases; the first stage is loaded by no caller.
WITHOUT_CASES = {"load_first_stage", "stop_at_exec"}


def succeeds(
    step: str,
    argv: tuple[str, ...] = ("true",),
    sees: Callable[[str], object] = lambda _: True,
    needs: tuple[str, ...] = (),
    refused: dict[str, int] | None = None,
) -> Callable[[Callable[[Room], list[Step]]], Callable[[Room], list[Step]]]:
    """Add a case in which the program begins, and sees what it should."""

    def add(steps: Callable[[Room], list[Step]]) -> Callable[[Room], list[Step]]:
        CASES.append(Case(steps.__name__, step, steps, (), argv, sees, needs, refused or {}))
        return steps

    return add


def fails(
    step: str, *errnos: int, needs: tuple[str, ...] = (), refused: dict[str, int] | None = None
) -> Callable[[Callable[[Room], list[Step]]], Callable[[Room], list[Step]]]:
    """Add a case in which the kernel refuses this step."""

    def add(steps: Callable[[Room], list[Step]]) -> Callable[[Room], list[Step]]:
        CASES.append(Case(steps.__name__, step, steps, errnos, needs=needs, refused=refused or {}))
        return steps

    return add


# ---- what a case may need ----


def apart(attempt: Callable[[], object]) -> str:
    """Why an attempt fails in a process of its own; an empty string if it does not."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            attempt()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the answer
            os.write(writer, f"{type(error).__name__}: {error}".encode()[:4000])
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as told:
        reason = told.read().decode()
    os.waitpid(pid, 0)
    return reason


def unsharing(*names: str) -> Callable[[], str]:
    """Whether these namespaces can be made, in a new user namespace where we are not root."""

    def attempt() -> None:
        uid = os.geteuid()
        if uid or "user" in names:
            call("unshare", lib.CLONE_NEWUSER)
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        for name in names:
            if name != "user":
                call("unshare", getattr(lib, f"CLONE_NEW{name.upper()}"))

    return lambda: apart(attempt)


def new_group() -> tuple[Path, str]:
    """A new cgroup of v2 and "", or why there is none."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            own = next(
                (
                    entry[3:]
                    for entry in Path("/proc/self/cgroup").read_text().splitlines()
                    if entry.startswith("0::")
                ),
                "/",
            )
            try:
                return Path(tempfile.mkdtemp(prefix="clonekit-", dir=where + own)), ""
            except OSError as error:
                return Path(where), f"no cgroup can be made: {error}"
    return Path(), "cgroup2 is not mounted"


def without_group() -> str:
    """Why no cgroup can be entered."""
    group, reason = new_group()
    if not reason:
        group.rmdir()
    return reason


def newer_clone(flags: int) -> Callable[[], str]:
    """Whether clone3 knows these flags: unknown ones are EINVAL before anything else."""

    def attempt() -> None:
        arguments = ctypes.create_string_buffer(struct.pack("<11Q", flags, *[0] * 10))
        pid = call("clone3", ctypes.addressof(arguments), 88)
        if pid == 0:
            os._exit(0)

    return lambda: apart(attempt)


def has_veth() -> None:
    """Raise where no cable can be laid between two networks of our own."""
    left, right = networks(2)
    left.add(Veth(into=right))


def has_macvlan() -> None:
    """Raise where the kernel makes no macvlan."""
    left, right = networks(2)
    left.add(Veth("ckone", into=right))
    left.rtnl.add_link("macvlan", [], [("IFLA_LINK", left.rtnl.index("ckone"))], "macvlan")


def landlock_abi() -> None:
    """Raise where Landlock is off."""
    call("landlock_create_ruleset", 0, 0, 1)


NEEDS: dict[str, Callable[[], str]] = {
    "root": lambda: "" if os.geteuid() == 0 else "it takes root",
    "setuid": lambda: apart(
        lambda: (os.setgroups([]), os.setresgid(1, 1, 1), os.setresuid(1, 1, 1))
    ),
    "privilege": unsharing("uts"),
    "user": unsharing("user"),
    "uts": unsharing("uts"),
    "pid": unsharing("pid"),
    "mount": unsharing("ns"),
    "time": unsharing("time"),
    "net": unsharing("net"),
    "veth": lambda: apart(has_veth),
    "macvlan": lambda: apart(has_macvlan),
    "rtprio": lambda: apart(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))),
    "chroot": lambda: apart(
        lambda: (call("unshare", lib.CLONE_NEWUSER) if os.geteuid() else 0, os.chroot("/"))
    ),
    "cgroup": without_group,
    "keyring": lambda: apart(lambda: call("keyctl", lib.KEYCTL_JOIN_SESSION_KEYRING, 0)),
    "numa": lambda: apart(lambda: call("set_mempolicy", 0, 0, 0)),
    "core scheduling": lambda: apart(
        lambda: call("prctl", lib.PR_SCHED_CORE, lib.PR_SCHED_CORE_CREATE, 0, 1, 0)
    ),
    "autoreap": newer_clone(lib.CLONE_AUTOREAP),
    "clone_nnp": newer_clone(lib.CLONE_NNP | lib.CLONE_AUTOREAP),
    "empty mounts": newer_clone(lib.CLONE_EMPTY_MNTNS | lib.CLONE_NEWNS | lib.CLONE_NEWUSER),
    "landlock": lambda: apart(landlock_abi),
    "mdwe": lambda: apart(lambda: call("prctl", lib.PR_SET_MDWE, 1, 0, 0, 0)),
    "ksm": lambda: apart(lambda: call("prctl", lib.PR_SET_MEMORY_MERGE, 1, 0, 0, 0)),
}


@functools.cache
def missing(need: str) -> str:
    """Why this machine or this user has not what a case needs; "" if it has."""
    reason = NEEDS[need]()
    return f"{need}: {reason}" if reason else ""


# ---- a filter ----


def refusing(calls: Mapping[str, int], first: int | None = None) -> bytes:
    """A seccomp filter that answers these calls with these errnos.

    With `first`, only where it is the first argument.
    """
    program = b""
    for name, number in calls.items():
        answer = struct.pack("<HBBI", 0x06, 0, 0, lib.SECCOMP_RET_ERRNO | number)
        if first is not None:
            answer = struct.pack("<HBBI", 0x20, 0, 0, 16) + instruction_if(first, answer) + answer
        nr = NUMBERS[name]
        program += struct.pack("<HBBI", 0x20, 0, 0, 0) + instruction_if(nr, answer) + answer
    return program + struct.pack("<HBBI", 0x06, 0, 0, lib.SECCOMP_RET_ALLOW)


def instruction_if(value: int, then: bytes) -> bytes:
    """Skip what follows unless the loaded word is this."""
    return struct.pack("<HBBI", 0x15, 0, len(then) // 8, value)


def install(program: bytes) -> None:
    """Put this process under a filter, for good."""
    code = ctypes.create_string_buffer(program)
    fprog = ctypes.create_string_buffer(
        struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    )
    call("prctl", lib.PR_SET_NO_NEW_PRIVS, 1)
    call("seccomp", lib.SECCOMP_SET_MODE_FILTER, 0, ctypes.addressof(fprog))


def behind(name: str, first: int | None = None) -> list[Step]:
    """Steps after which this call is refused with EPERM."""
    return [set_no_new_privs(), install_seccomp_filter(refusing({name: errno.EPERM}, first))]


def untold(name: str) -> list[Step]:
    """The same, by a filter of which it cannot be seen beforehand."""
    return [set_no_new_privs(), install_seccomp_filter(unforeseen(refusing({name: errno.EPERM})))]


def unforeseen(program: bytes) -> bytes:
    """A filter whose last instruction allows, and which first asks where a call is made from."""
    asks = struct.pack("<HBBI", 0x20, 0, 0, 8)
    asks += struct.pack("<HBBI", 0x35, 0, len(program) // 8 - 1, 0)  # never less than 0
    return asks + program


def powerless() -> list[Step]:
    """Steps after which the child has no capability, and no limit allows what they would."""
    return [set_rlimit("nice", 0), set_rlimit("rtprio", 0), set_capabilities(NONE)]


def privileged(*names: str) -> list[Step]:
    """New namespaces, in a user namespace that is ours where we are not root."""
    if os.geteuid() == 0:
        return [new_namespaces(names)] if names else []
    return [new_namespaces(("user", *names)), map_uid(0), map_gid(0)]


# ---- what a program sees ----


def line(name: str, value: object) -> Callable[[str], bool]:
    """Whether /proc/self/status says so."""
    return lambda text: f"{name}:\t{value}".rstrip() in [row.rstrip() for row in text.splitlines()]


def capabilities(name: str, *names: str) -> Callable[[str], bool]:
    """Whether a set in /proc/self/status is exactly these."""
    mask = sum(1 << getattr(lib, f"CAP_{each.upper()}") for each in names)
    return line(name, f"{mask:016x}")


def stat(position: int) -> Callable[[str], str]:
    """A field of /proc/self/stat, by its number in the man page."""
    return lambda text: text.rpartition(")")[2].split()[position - 3]


def says(expected: str) -> Callable[[str], bool]:
    """Whether the program prints just this."""
    return lambda text: text.strip() == expected


# ---- credentials ----


@succeeds("set_securebits", STATUS, capabilities("CapEff"), ("privilege",))
def noroot_gives_root_no_capability(_: Room) -> list[Step]:
    return [*privileged(), set_securebits(["noroot"])]


@fails("set_securebits", errno.EPERM)
def securebits_take_a_capability(_: Room) -> list[Step]:
    return [*powerless(), set_securebits(["noroot"])]


@succeeds("keep_capabilities", STATUS, capabilities("CapEff", "net_raw"), ("setuid",))
def kept_capabilities_survive_the_uid(_: Room) -> list[Step]:
    return [
        keep_capabilities(), set_groups([]), set_gid(NOBODY), set_uid(NOBODY),
        set_capabilities(["net_raw"], None, ["net_raw"]), raise_ambient(["net_raw"]),
    ]  # fmt: skip


@succeeds("keep_capabilities")
def keeping_takes_no_privilege(_: Room) -> list[Step]:
    return [keep_capabilities()]


@fails("keep_capabilities", errno.EPERM, needs=("privilege",))
def a_locked_bit_stays(_: Room) -> list[Step]:
    return [*privileged(), set_securebits(["keep_caps_locked"]), keep_capabilities()]


@succeeds("bound_capabilities", STATUS, capabilities("CapBnd", "chown", "kill"), ("privilege",))
def the_bounding_set_is_what_is_named(_: Room) -> list[Step]:
    return [*privileged(), bound_capabilities(["chown", "CAP_KILL"])]


@fails("bound_capabilities", errno.EPERM)
def bounding_takes_a_capability(_: Room) -> list[Step]:
    return [*powerless(), bound_capabilities(NONE)]


@succeeds("set_groups", STATUS, line("Groups", "7 8"), ("setuid",))
def groups_are_these(_: Room) -> list[Step]:
    return [set_groups([7, 8])]


@succeeds("set_groups", STATUS, line("Groups", ""), ("setuid",))
def groups_may_be_none(_: Room) -> list[Step]:
    return [set_groups([])]


@fails("set_groups", errno.EPERM)
def groups_take_a_capability(_: Room) -> list[Step]:
    return [*powerless(), set_groups([7])]


@fails("set_groups", errno.EPERM, needs=("user",))
def groups_are_denied_where_the_gid_is_self_mapped(_: Room) -> list[Step]:
    return [new_namespaces("user"), map_uid(0), map_gid(0), set_groups([0])]


@succeeds("set_gid", ("id", "-g"), lambda text: text.strip() == str(os.getgid()))
def our_own_gid_is_always_allowed(_: Room) -> list[Step]:
    return [set_gid(os.getgid())]


@succeeds("set_gid", STATUS, line("Gid", "11\t12\t12\t12"), ("setuid",))
def gids_are_real_and_effective(_: Room) -> list[Step]:
    # Exec copies the effective gid to the saved one.
    return [set_gid((11, 12, 13))]


@fails("set_gid", errno.EPERM)
def another_gid_takes_a_capability(_: Room) -> list[Step]:
    return [*powerless(), set_gid(12345)]


@succeeds("set_uid", ("id", "-u"), lambda text: text.strip() == str(os.getuid()))
def our_own_uid_is_always_allowed(_: Room) -> list[Step]:
    return [set_uid(os.getuid())]


@succeeds("set_uid", ("id", "-u"), says("65534"), ("setuid",))
def uid_is_nobody(_: Room) -> list[Step]:
    return [set_uid(NOBODY)]


@succeeds("set_uid", STATUS, line("Uid", "11\t12\t12\t12"), ("setuid",))
def uids_are_real_and_effective(_: Room) -> list[Step]:
    # Exec copies the effective uid to the saved one.
    return [set_uid((11, 12, 13))]


@fails("set_uid", errno.EPERM)
def another_uid_takes_a_capability(_: Room) -> list[Step]:
    return [*powerless(), set_uid(12345)]


@fails("set_uid", errno.EINVAL, needs=("user",))
def an_id_outside_the_map_is_no_id(_: Room) -> list[Step]:
    return [new_namespaces("user"), map_uid(0), set_uid(12345)]


@succeeds("set_capabilities", STATUS, capabilities("CapInh", "kill"), ("privilege",))
def inheritable_stays_over_exec(_: Room) -> list[Step]:
    return [*privileged(), set_capabilities(["kill", "chown"], ["kill"], ["kill"])]


@succeeds("set_capabilities", STATUS, capabilities("CapInh"))
def no_capability_is_always_allowed(_: Room) -> list[Step]:
    return [set_capabilities(NONE)]


@fails("set_capabilities", errno.EPERM)
def what_is_given_up_stays_so(_: Room) -> list[Step]:
    return [set_capabilities(NONE), set_capabilities(["net_raw"])]


@succeeds("raise_ambient", STATUS, capabilities("CapAmb", "chown", "net_raw"), ("privilege",))
def ambient_is_what_is_named(_: Room) -> list[Step]:
    names = ["net_raw", "chown"]
    return [*privileged(), set_capabilities(names, None, names), raise_ambient(names)]


@fails("raise_ambient", errno.EPERM)
def ambient_must_be_permitted(_: Room) -> list[Step]:
    return [set_capabilities(NONE), raise_ambient(["net_raw"])]


@succeeds("join_session_keyring", needs=("keyring",))
def a_keyring_without_a_name(_: Room) -> list[Step]:
    return [join_session_keyring()]


@succeeds(
    "join_session_keyring",
    ("cat", "/proc/keys"),
    lambda text: " clonekit-test: " in text,
    ("keyring",),
)
def a_keyring_with_a_name(_: Room) -> list[Step]:
    return [join_session_keyring("clonekit-test")]


@fails("join_session_keyring", errno.EPERM, needs=("keyring",))
def the_kernels_own_names_are_refused(_: Room) -> list[Step]:
    return [join_session_keyring(".clonekit")]


@succeeds("set_no_new_privs", STATUS, line("NoNewPrivs", 1))
def no_new_privs_is_seen(_: Room) -> list[Step]:
    return [set_no_new_privs()]


@fails("set_no_new_privs", errno.EPERM)
def no_new_privs_behind_a_filter(_: Room) -> list[Step]:
    return [*behind("prctl", lib.PR_SET_NO_NEW_PRIVS), set_no_new_privs()]


# ---- descriptors ----


@succeeds("own_table", ("sh", "-c", "echo /proc/self/fd/*"))
def the_table_is_the_childs_own(_: Room) -> list[Step]:
    return []


@fails("own_table", errno.EPERM, refused={"close_range": errno.EPERM})
def a_filter_on_close_range(_: Room) -> list[Step]:
    return []


@succeeds(
    "place_descriptors",
    ("sh", "-c", "cat <&7; echo /proc/self/fd/* >&1"),
    lambda text: "hello" in text,
)
def a_file_at_seven(room: Room) -> list[Step]:
    (room.path / "hello").write_text("hello\n")
    return [
        open_file(str(room.path / "hello"), name="hello"),
        place_descriptors({0: 0, 7: Slot("hello")}),
    ]


@succeeds("place_descriptors")
def a_swap_and_a_cycle(room: Room) -> list[Step]:
    a, b, c = (room.open("/dev/null") for _ in range(3))
    return [place_descriptors({a: b, b: c, c: a, 0: a, 1: b})]


@fails("place_descriptors", errno.EBADF)
def no_number_above_the_limit(_: Room) -> list[Step]:
    return [set_rlimit("nofile", 10, 10), place_descriptors({20: 0})]


@succeeds("execute", ("echo", "hello"), says("hello"))
def a_program_from_the_path(_: Room) -> list[Step]:
    return []


@fails("execute", errno.EPERM)
def exec_behind_a_filter(_: Room) -> list[Step]:
    return untold("execve")


# ---- limits ----


@succeeds("set_rlimit", ("sh", "-c", "ulimit -Sn; ulimit -Hn"), says("10\n12"))
def a_soft_and_a_hard_limit(_: Room) -> list[Step]:
    return [set_rlimit("nofile", 10, 12)]


@fails("set_rlimit", errno.EPERM)
def a_hard_limit_is_not_raised(_: Room) -> list[Step]:
    return [*powerless(), set_rlimit("nofile", 10, 10), set_rlimit("nofile", 10, 11)]


@succeeds("set_nice", ("nice",), says("19"))
def the_lowest_priority(_: Room) -> list[Step]:
    return [set_nice(19)]


@fails("set_nice", errno.EACCES)
def priority_takes_a_capability(_: Room) -> list[Step]:
    return [*powerless(), set_nice(19), set_nice(0)]


@succeeds("set_scheduler", STAT, lambda text: stat(41)(text) == str(lib.SCHED_BATCH))
def the_batch_policy(_: Room) -> list[Step]:
    return [set_scheduler("batch")]


@fails("set_scheduler", errno.EPERM)
def real_time_takes_a_capability(_: Room) -> list[Step]:
    return [*powerless(), set_scheduler("fifo", 1)]


@succeeds("set_affinity", STATUS, line("Cpus_allowed_list", min(os.sched_getaffinity(0))))
def one_processor(_: Room) -> list[Step]:
    return [set_affinity([min(os.sched_getaffinity(0))])]


@fails("set_affinity", errno.EINVAL)
def a_processor_that_is_not_there(_: Room) -> list[Step]:
    return [set_affinity([65535])]


@succeeds("set_io_priority", ("ionice",), says("idle"))
def the_idle_class(_: Room) -> list[Step]:
    return [set_io_priority("idle")]


@fails("set_io_priority", errno.EPERM)
def the_real_time_class_takes_a_capability(_: Room) -> list[Step]:
    return [*powerless(), set_io_priority("rt", 0)]


@succeeds(
    "set_timer_slack",
    ("cat", "/proc/self/timerslack_ns"),
    lambda text: text.strip() in {"123456", "0"},  # without high resolution timers it reads 0
)
def timer_slack_is_seen(_: Room) -> list[Step]:
    return [set_timer_slack(123456)]


@fails("set_timer_slack", errno.EPERM)
def timer_slack_behind_a_filter(_: Room) -> list[Step]:
    return [*behind("prctl", lib.PR_SET_TIMERSLACK), set_timer_slack(1)]


@succeeds(
    "set_memory_policy", ("cat", "/proc/self/numa_maps"), lambda text: " bind:0 " in text, ("numa",)
)
def memory_from_one_node(_: Room) -> list[Step]:
    return [set_memory_policy("bind", [0])]


@fails("set_memory_policy", errno.EINVAL, needs=("numa",))
def a_node_that_is_not_there(_: Room) -> list[Step]:
    return [set_memory_policy("bind", [1000])]


@fails("set_memory_policy", errno.EPERM)
def memory_policy_behind_a_filter(_: Room) -> list[Step]:
    return [*behind("set_mempolicy"), set_memory_policy("default")]


@succeeds("set_oom_score_adj", ("cat", "/proc/self/oom_score_adj"), says("1000"))
def the_first_to_go(_: Room) -> list[Step]:
    return [set_oom_score_adj(1000)]


@fails("set_oom_score_adj", errno.EACCES)
def never_to_go_takes_a_capability(_: Room) -> list[Step]:
    return [*powerless(), set_oom_score_adj(-1000)]


@succeeds("new_core_cookie", needs=("core scheduling",))
def a_core_for_oneself(_: Room) -> list[Step]:
    return [new_core_cookie()]


@fails("new_core_cookie", errno.EPERM)
def core_scheduling_behind_a_filter(_: Room) -> list[Step]:
    return [*behind("prctl", lib.PR_SCHED_CORE), new_core_cookie()]


@succeeds("set_personality", ("uname", "-r"), lambda text: text.startswith("2.6."))
def an_old_kernels_name(_: Room) -> list[Step]:
    return [set_personality(["uname26"])]


@fails("set_personality", errno.EPERM)
def personality_behind_a_filter(_: Room) -> list[Step]:
    return [*behind("personality"), set_personality("addr_no_randomize")]


# ---- what is kept with the memory, and init ----


def told_by(option: int) -> tuple[str, ...]:
    """A program that prints what prctl says."""
    code = f"import ctypes; print(ctypes.CDLL(None).prctl({option}, 0, 0, 0, 0))"
    return (sys.executable, "-I", "-S", "-c", code)


@succeeds("deny_write_execute", told_by(lib.PR_GET_MDWE), says("1"), ("mdwe",))
def memory_is_not_made_executable(_: Room) -> list[Step]:
    return [deny_write_execute()]


@fails("deny_write_execute", errno.EPERM)
def mdwe_behind_a_filter(_: Room) -> list[Step]:
    return [*behind("prctl", lib.PR_SET_MDWE), deny_write_execute()]


@succeeds("disable_huge_pages", told_by(lib.PR_GET_THP_DISABLE), says("1"))
def huge_pages_are_off(_: Room) -> list[Step]:
    return [disable_huge_pages()]


@fails("disable_huge_pages", errno.EPERM)
def huge_pages_behind_a_filter(_: Room) -> list[Step]:
    return [*behind("prctl", lib.PR_SET_THP_DISABLE), disable_huge_pages()]


@succeeds("merge_pages", told_by(lib.PR_GET_MEMORY_MERGE), says("1"), ("ksm",))
def equal_pages_are_merged(_: Room) -> list[Step]:
    return [merge_pages()]


@fails("merge_pages", errno.EPERM)
def merging_behind_a_filter(_: Room) -> list[Step]:
    return [*behind("prctl", lib.PR_SET_MEMORY_MERGE), merge_pages()]


@succeeds("open_coredump_filter")
def a_filter_of_dumps_is_opened(_: Room) -> list[Step]:
    return [open_coredump_filter(), close_descriptor(Slot("coredump_filter"))]


@fails("open_coredump_filter", errno.EPERM)
def a_filter_of_dumps_behind_a_filter(_: Room) -> list[Step]:
    return [*behind("openat"), open_coredump_filter()]


@succeeds("set_coredump_filter", ("cat", "/proc/self/coredump_filter"), says("00000011"))
def a_dump_holds_two_kinds(_: Room) -> list[Step]:
    kinds = ["anonymous-private", "elf-headers"]
    return [open_coredump_filter(), set_coredump_filter(kinds)]


@fails("set_coredump_filter", errno.EPERM)
def a_dump_behind_a_filter(_: Room) -> list[Step]:
    return [open_coredump_filter(), *behind("write"), set_coredump_filter(0)]


@succeeds("run_init", ("sh", "-c", "echo $$"), says("2"), ("pid",))
def the_program_is_a_child_of_init(_: Room) -> list[Step]:
    return [*privileged("pid"), run_init()]


@fails("run_init", errno.EPERM)
def init_behind_a_filter(_: Room) -> list[Step]:
    return [*behind("clone"), run_init()]


# ---- namespaces ----


def other(name: str) -> Callable[[str], bool]:
    """Whether the program's namespace is another than ours."""
    return lambda text: text.strip() != os.readlink(f"/proc/self/ns/{name}")


@succeeds("new_namespaces", ("readlink", "/proc/self/ns/user"), other("user"), ("user",))
def a_user_namespace(_: Room) -> list[Step]:
    return [new_namespaces("user")]


@succeeds("new_namespaces", ("readlink", "/proc/self/ns/ipc"), other("ipc"), ("privilege",))
def six_namespaces(_: Room) -> list[Step]:
    return privileged("mount", "pid", "network", "ipc", "uts", "cgroup")


@fails("new_namespaces", errno.EPERM, refused={"clone3": errno.EPERM})
def clone_behind_a_filter(_: Room) -> list[Step]:
    return [new_namespaces("uts")]


@succeeds("empty_mount_namespace", needs=("empty mounts",))
def nothing_mounted(room: Room) -> list[Step]:
    program = room.open(room.see or "/bin/true")
    return [*privileged(), empty_mount_namespace(), place_descriptors({0: program})]


@fails("empty_mount_namespace", errno.EPERM, errno.EINVAL, refused={"clone3": errno.EPERM})
def empty_mounts_behind_a_filter(_: Room) -> list[Step]:
    return [empty_mount_namespace()]


@succeeds(
    "enter_cgroup", ("cat", "/proc/self/cgroup"), lambda text: "/clonekit-" in text, ("cgroup",)
)
def a_cgroup(room: Room) -> list[Step]:
    group, reason = new_group()
    assert not reason
    room.stack.callback(group.rmdir)
    return [enter_cgroup(group)]


@fails("enter_cgroup", errno.EBADF)
def a_directory_that_is_no_cgroup(room: Room) -> list[Step]:
    return [enter_cgroup(room.path)]


@succeeds("join_namespaces", ("hostname",), says("held"), ("uts",))
def the_namespaces_of_another(room: Room) -> list[Step]:
    names = ["uts"] if os.geteuid() == 0 else ["user", "uts"]
    mapped = {} if os.geteuid() == 0 else {"uid_map": 0, "gid_map": 0}
    holder = room.stack.enter_context(
        spawn(["sleep", "1000"], namespaces=names, hostname="held", **mapped)
    )
    return [join_namespaces(holder.pidfd, names)]


@succeeds("join_namespaces", ("readlink", "/proc/self/ns/pid"), other("pid"), ("pid",))
def the_pid_namespace_of_another(room: Room) -> list[Step]:
    names = ["pid"] if os.geteuid() == 0 else ["user", "pid"]
    mapped = {} if os.geteuid() == 0 else {"uid_map": 0, "gid_map": 0}
    holder = room.stack.enter_context(spawn(["sleep", "1000"], namespaces=names, **mapped))
    return [join_namespaces(holder.pidfd, names)]


@fails("join_namespaces", errno.EINVAL, errno.EPERM)
def a_descriptor_of_no_namespace(room: Room) -> list[Step]:
    return [join_namespaces(room.open("/dev/null"))]


@succeeds("map_uid", ("id", "-u"), says("42"), ("user",))
def a_uid_inside(_: Room) -> list[Step]:
    return [new_namespaces("user"), map_uid(42)]


@fails("map_uid", errno.EPERM)
def a_uid_map_without_a_namespace(_: Room) -> list[Step]:
    return [map_uid(0)]


@succeeds(
    "nest_user_namespace", ("cat", "/proc/self/uid_map"),
    lambda text: text.split() == ["0", "0", "1"], ("user",),
)  # fmt: skip
def a_nested_user_namespace(_: Room) -> list[Step]:
    own = [new_namespaces("user"), map_uid(0), map_gid(0)]
    return [*own, nest_user_namespace((0, 0))]


@fails("nest_user_namespace", errno.EPERM)
def a_nested_namespace_maps_only_our_own_id(_: Room) -> list[Step]:
    return [nest_user_namespace((12345, 12345))]


@succeeds("map_gid", ("id", "-g"), says("43"), ("user",))
def a_gid_inside(_: Room) -> list[Step]:
    return [new_namespaces("user"), map_gid(43)]


@fails("map_gid", errno.EPERM, errno.EACCES)
def a_gid_map_without_a_namespace(_: Room) -> list[Step]:
    return [map_gid(0)]


@succeeds(
    "loopback_up", ("cat", "/proc/self/net/fib_trie"), lambda text: "127.0.0.1" in text, ("net",)
)
def a_loopback_is_up(_: Room) -> list[Step]:
    return [*privileged("net"), loopback_up()]


@fails("loopback_up", errno.EPERM)
def a_loopback_takes_a_capability(_: Room) -> list[Step]:
    return [*powerless(), loopback_up()]


@succeeds(
    "furnish_network", ("cat", "/proc/self/net/fib_trie"), lambda text: "10.0.0.2" in text,
    ("root", "veth"),
)  # fmt: skip
def a_cable_leads_into_another_network(room: Room) -> list[Step]:
    network = room.stack.enter_context(networks()[0])
    return [*privileged("net"), furnish_network([Veth(into=network, addresses=["10.0.0.2/24"])])]


@succeeds("furnish_network", needs=("net",))
def a_network_may_have_no_interface(_: Room) -> list[Step]:
    return [*privileged("net"), furnish_network([])]


@fails("furnish_network", errno.EPERM, errno.EEXIST, needs=("veth",))
def a_cable_needs_a_free_name_and_rights_at_both_ends(room: Room) -> list[Step]:
    left, right = (room.stack.enter_context(network) for network in networks(2))
    left.add(Veth(into=right, peer="ckpeer"))
    return [*privileged("net"), furnish_network([Veth(into=right, peer="ckpeer")])]


@succeeds("set_host_name", ("hostname",), says("elsewhere"), ("uts",))
def a_host_name(_: Room) -> list[Step]:
    return [*privileged("uts"), set_host_name("elsewhere")]


@fails("set_host_name", errno.EPERM)
def a_host_name_takes_a_capability(_: Room) -> list[Step]:
    return [*powerless(), set_host_name("elsewhere")]


@fails("set_host_name", errno.EINVAL, needs=("uts",))
def a_host_name_is_at_most_64_bytes(_: Room) -> list[Step]:
    return [*privileged("uts"), set_host_name("x" * 65)]


@succeeds("set_domain_name", ("cat", "/proc/sys/kernel/domainname"), says("yellow"), ("uts",))
def a_domain_name(_: Room) -> list[Step]:
    return [*privileged("uts"), set_domain_name("yellow")]


@fails("set_domain_name", errno.EPERM)
def a_domain_name_takes_a_capability(_: Room) -> list[Step]:
    return [*powerless(), set_domain_name("yellow")]


@succeeds(
    "new_time_namespace",
    ("cat", "/proc/self/timens_offsets"),
    lambda text: text.split() == ["monotonic", "86400", "500000000", "boottime", "1000", "0"],
    ("time",),
)
def clocks_that_are_ahead(_: Room) -> list[Step]:
    return [*privileged(), new_time_namespace(86400.5, 1000)]


@fails("new_time_namespace", errno.EPERM)
def clocks_take_a_capability(_: Room) -> list[Step]:
    return [*powerless(), new_time_namespace(1)]


# ---- opening ----


@succeeds("open_file", ("cat",), says("from a file"))
def a_file_as_standard_input(room: Room) -> list[Step]:
    (room.path / "in").write_text("from a file")
    directory = room.open(room.path, os.O_DIRECTORY)
    opened = open_file("in", dirfd=directory, resolve=lib.RESOLVE_BENEATH, name="in")
    return [opened, place_descriptors({0: Slot("in")})]


@fails("open_file", errno.ENOENT)
def a_file_that_is_not_there(room: Room) -> list[Step]:
    return [open_file(room.path / "absent")]


@fails("open_file", errno.EXDEV)
def a_way_out_of_the_directory(room: Room) -> list[Step]:
    directory = room.open(room.path, os.O_DIRECTORY)
    return [open_file("..", dirfd=directory, resolve=lib.RESOLVE_BENEATH)]


@succeeds("open_socket", ("readlink", "/proc/self/fd/0"), lambda text: text.startswith("socket:"))
def a_socket_as_standard_input(_: Room) -> list[Step]:
    return [
        open_socket(socket.AF_UNIX, socket.SOCK_STREAM, name="s"),
        place_descriptors({0: Slot("s")}),
    ]


@fails("open_socket", errno.EAFNOSUPPORT)
def a_family_that_is_none(_: Room) -> list[Step]:
    return [open_socket(12345, socket.SOCK_STREAM, name="s")]


def listening(address: object) -> list[Step]:
    """A listening socket in slot `s`."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    return [
        open_socket(family, socket.SOCK_STREAM, name="s"),
        bind_socket(Slot("s"), address),  # type: ignore[arg-type]
        listen_socket(Slot("s"), 5),
    ]


@succeeds("bind_socket", ("cat", "/proc/net/unix"), lambda text: "/bound" in text)
def a_bound_path(room: Room) -> list[Step]:
    return [*listening(short(room, "bound")), place_descriptors({0: Slot("s")})]


def short(room: Room, name: str) -> str:
    """A path that fits into a socket's address."""
    directory = tempfile.TemporaryDirectory(prefix="ck")
    return os.path.join(room.stack.enter_context(directory), name)


@fails("bind_socket", errno.EADDRINUSE)
def a_path_that_is_taken(room: Room) -> list[Step]:
    path = short(room, "taken")
    Path(path).touch()
    return listening(path)[:2]


@succeeds("listen_socket")
def a_listening_port(_: Room) -> list[Step]:
    return [*listening(("127.0.0.1", 0)), place_descriptors({0: Slot("s")})]


@fails("listen_socket", errno.EINVAL)
def an_unbound_socket(_: Room) -> list[Step]:
    return [open_socket(socket.AF_UNIX, socket.SOCK_STREAM, name="s"), listen_socket(Slot("s"))]


@succeeds("connect_socket", ("sh", "-c", "echo hello >&0"))
def a_connected_socket(room: Room) -> list[Step]:
    server = room.stack.enter_context(socket.socket(socket.AF_UNIX))
    path = short(room, "server")
    server.bind(path)
    server.listen()
    return [
        open_socket(socket.AF_UNIX, socket.SOCK_STREAM, name="s"),
        connect_socket(Slot("s"), path),
        place_descriptors({0: Slot("s")}),
    ]


@fails("connect_socket", errno.ENOENT)
def nobody_listens(room: Room) -> list[Step]:
    return [
        open_socket(socket.AF_UNIX, socket.SOCK_STREAM, name="s"),
        connect_socket(Slot("s"), short(room, "nobody")),
    ]


@succeeds("set_socket_option")
def an_option_of_a_socket(_: Room) -> list[Step]:
    return [
        open_socket(socket.AF_INET, socket.SOCK_STREAM, name="s"),
        set_socket_option(Slot("s"), socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),
    ]


@fails("set_socket_option", errno.ENOPROTOOPT)
def an_option_that_is_none(_: Room) -> list[Step]:
    return [
        open_socket(socket.AF_INET, socket.SOCK_STREAM, name="s"),
        set_socket_option(Slot("s"), socket.SOL_SOCKET, 12345, 1),
    ]


@succeeds("open_pipe", ("sh", "-c", "echo through >&4; exec 4>&-; cat <&3"), says("through"))
def a_pipe_to_itself(_: Room) -> list[Step]:
    return [open_pipe("r", "w"), place_descriptors({3: Slot("r"), 4: Slot("w")})]


@fails("open_pipe", errno.EINVAL)
def a_pipe_with_a_flag_that_is_none(_: Room) -> list[Step]:
    return [open_pipe("r", "w", 1)]


@succeeds("receive_descriptors", ("readlink", "/proc/self/fd/5"), says("/dev/null"))
def descriptors_that_were_sent(room: Room) -> list[Step]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        room.stack.enter_context(end)
    null = [room.open("/dev/null") for _ in range(2)]
    socket.send_fds(ours, [b"."], null)
    return [receive_descriptors(theirs, "one", "two"), place_descriptors({5: Slot("two")})]


@fails("receive_descriptors", errno.EAGAIN)
def nothing_was_sent(room: Room) -> list[Step]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        room.stack.enter_context(end)
    theirs.settimeout(0)
    return [receive_descriptors(theirs, "one")]


@succeeds("open_memory", ("readlink", "/proc/self/fd/0"), lambda text: "memfd:scratch" in text)
def a_file_in_memory(_: Room) -> list[Step]:
    return [open_memory("scratch", name="m"), place_descriptors({0: Slot("m")})]


@fails("open_memory", errno.EINVAL)
def memory_with_a_flag_that_is_none(_: Room) -> list[Step]:
    return [open_memory("scratch", 1 << 20, name="m")]


@succeeds("duplicate", ("readlink", "/proc/self/fd/5"), says("/dev/null"))
def a_second_descriptor(room: Room) -> list[Step]:
    null = room.open("/dev/null")
    return [duplicate(null, name="copy", at_least=100), place_descriptors({5: Slot("copy")})]


@fails("duplicate", errno.EINVAL)
def a_number_above_the_limit(_: Room) -> list[Step]:
    return [set_rlimit("nofile", 50, 50), duplicate(0, name="copy", at_least=100)]


@succeeds("close_descriptor")
def a_descriptor_is_closed(_: Room) -> list[Step]:
    return [open_file("/dev/null", name="n"), close_descriptor(Slot("n"))]


@fails("close_descriptor", errno.EBADF)
def a_descriptor_is_closed_once(_: Room) -> list[Step]:
    closed = close_descriptor(Slot("n"))
    return [open_file("/dev/null", name="n"), closed, close_descriptor(Slot("n"))]


@succeeds("control")
def a_pipes_bytes_are_counted(room: Room) -> list[Step]:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    room.keep(reader), room.keep(writer)
    return [control(reader, 0x5421, struct.pack("<i", 1))]  # FIONBIO


@fails("control", errno.ENOTTY)
def a_file_that_is_no_terminal(room: Room) -> list[Step]:
    return [control(room.open("/dev/null"), lib.TIOCSCTTY, 0)]


@succeeds("write", ("cat",), says("written before"))
def data_waits_in_a_pipe(_: Room) -> list[Step]:
    written = write(Slot("w"), b"written before\n")
    return [open_pipe("r", "w"), written, place_descriptors({0: Slot("r")})]


@fails("write", errno.EBADF)
def a_file_that_is_read_only(_: Room) -> list[Step]:
    return [open_file("/dev/null", name="n"), write(Slot("n"), b"x")]


@succeeds("write_file", ("true",))
def a_file_is_written(room: Room) -> list[Step]:
    return [write_file(room.path / "out", b"data", os.O_WRONLY | os.O_CREAT)]


@fails("write_file", errno.ENOENT)
def a_file_to_write_that_is_not_there(room: Room) -> list[Step]:
    return [write_file(room.path / "absent", b"data")]


# ---- place ----


@succeeds("change_root", ("/see",), says("/"), ("chroot",))
def another_root(room: Room) -> list[Step]:
    root = room.path / "root"
    root.mkdir()
    (root / "see").write_bytes((room.see or Path("/bin/true")).read_bytes())
    (root / "see").chmod(0o755)
    return [*privileged(), change_root(root)]


@fails("change_root", errno.EPERM)
def a_root_takes_a_capability(_: Room) -> list[Step]:
    return [*powerless(), change_root("/")]


@succeeds("change_directory", ("pwd", "-P"), says("/proc"))
def another_directory(_: Room) -> list[Step]:
    return [change_directory("/proc")]


@succeeds("change_directory", ("pwd", "-P"), says("/proc"))
def a_directory_by_descriptor(room: Room) -> list[Step]:
    return [change_directory(room.open("/proc"))]


@fails("change_directory", errno.ENOENT)
def a_directory_that_is_not_there(room: Room) -> list[Step]:
    return [change_directory(room.path / "absent")]


@fails("change_directory", errno.ENOTDIR)
def a_descriptor_of_no_directory(room: Room) -> list[Step]:
    return [change_directory(room.open("/dev/null"))]


@succeeds("set_umask", ("sh", "-c", "umask"), says("0027"))
def another_umask(_: Room) -> list[Step]:
    return [set_umask(0o027)]


@fails("set_umask", errno.EPERM)
def umask_behind_a_filter(_: Room) -> list[Step]:
    return [*behind("umask"), set_umask(0)]


def leads_session(text: str) -> bool:
    """Whether pid, process group and session are one."""
    return text.split(maxsplit=1)[0] == stat(5)(text) == stat(6)(text)


@succeeds("new_session", STAT, leads_session)
def a_session_of_its_own(_: Room) -> list[Step]:
    return [new_session()]


@fails("new_session", errno.EPERM)
def a_leader_stays_in_its_session(_: Room) -> list[Step]:
    return [set_process_group(0), new_session()]


@succeeds("set_process_group", STAT, lambda text: text.split()[0] == stat(5)(text))
def a_group_of_its_own(_: Room) -> list[Step]:
    return [set_process_group()]


@fails("set_process_group", errno.EPERM)
def a_group_that_is_not_there(_: Room) -> list[Step]:
    return [set_process_group(0x7FFFFFFE)]


def terminal(room: Room) -> int:
    """The slave of a new terminal."""
    master, slave = os.openpty()
    room.keep(master)
    return room.keep(slave)


@succeeds("set_controlling_terminal", STAT, lambda text: stat(7)(text) != "0")
def a_terminal_of_its_own(room: Room) -> list[Step]:
    return [new_session(), set_controlling_terminal(terminal(room))]


@fails("set_controlling_terminal", errno.EPERM)
def a_terminal_without_a_session(room: Room) -> list[Step]:
    return [set_controlling_terminal(terminal(room))]


@succeeds("take_foreground", STAT, lambda text: stat(8)(text) == stat(5)(text))
def the_foreground(room: Room) -> list[Step]:
    slave = terminal(room)
    return [new_session(), set_controlling_terminal(slave), take_foreground(slave)]


@fails("take_foreground", errno.ENOTTY)
def the_foreground_of_no_terminal(room: Room) -> list[Step]:
    return [take_foreground(room.open("/dev/null"))]


# ---- sandbox ----


def ruleset(room: Room) -> int:
    """A Landlock ruleset that forbids to make directories."""
    attributes = ctypes.create_string_buffer(struct.pack("<Q", 1 << 7))
    return room.keep(call("landlock_create_ruleset", ctypes.addressof(attributes), 8, 0))


@succeeds(
    "restrict_with_landlock",
    ("sh", "-c", "mkdir /tmp/clonekit-no 2>&1 || true"),
    lambda text: "denied" in text,
    ("landlock",),
)
def no_directory_may_be_made(room: Room) -> list[Step]:
    return [set_no_new_privs(), restrict_with_landlock(ruleset(room))]


@succeeds(
    "restrict_with_landlock",
    ("sh", "-c", "mkdir /tmp/clonekit-no 2>&1 || true"),
    lambda text: "denied" in text,
    ("landlock",),
)
def rules_made_and_enforced_at_once(room: Room) -> list[Step]:
    rules = Landlock(fs={room.path: FsAccess.MAKE_DIR}, abi=1)
    return [set_no_new_privs(), restrict_with_landlock(rules)]


@fails("restrict_with_landlock", errno.EBADFD, needs=("landlock",))
def a_descriptor_of_no_ruleset(room: Room) -> list[Step]:
    return [set_no_new_privs(), restrict_with_landlock(room.open("/dev/null"))]


@fails("restrict_with_landlock", errno.EPERM)
def landlock_behind_a_filter(room: Room) -> list[Step]:
    return [*behind("landlock_restrict_self"), restrict_with_landlock(room.open("/dev/null"))]


@succeeds(
    "make_ruleset",
    ("sh", "-c", "cat /etc/passwd && mkdir /tmp/clonekit-no 2>&1 || true"),
    lambda text: "root:" in text and "denied" in text,
    ("landlock",),
)
def rules_made_before_and_enforced_after(room: Room) -> list[Step]:
    everywhere = Landlock(
        read=["/", "/etc/passwd"], write=[room.open("/dev"), room.path], abi=1, best_effort=True
    )
    rules = Slot("rules")
    return [make_ruleset(everywhere, rules), set_no_new_privs(), restrict_with_landlock(rules)]


@fails("make_ruleset", errno.ENOENT, needs=("landlock",))
def a_rule_for_what_is_not_there(room: Room) -> list[Step]:
    return [make_ruleset(Landlock(read=[room.path / "absent"]), Slot("rules"))]


@fails("make_ruleset", errno.ELOOP, needs=("landlock",))
def a_rule_over_a_symlink_where_none_may_be(room: Room) -> list[Step]:
    (room.path / "link").symlink_to("/usr")
    rules = Landlock(read=[room.path / "link" / "bin"], symlinks=False)
    return [make_ruleset(rules, Slot("rules"))]


@fails("make_ruleset", errno.EINVAL, needs=("landlock",))
def a_file_has_no_right_of_directories(_: Room) -> list[Step]:
    return [make_ruleset(Landlock(fs={"/etc/passwd": FsAccess.MAKE_DIR}), Slot("rules"))]


@succeeds("install_seccomp_filter", STATUS, line("Seccomp", 2))
def a_filter_is_seen(_: Room) -> list[Step]:
    return [set_no_new_privs(), install_seccomp_filter(refusing({"acct": errno.EPERM}))]


@fails("install_seccomp_filter", errno.EINVAL)
def a_filter_that_does_not_check(_: Room) -> list[Step]:
    return [set_no_new_privs(), install_seccomp_filter(bytes(8))]


@fails("install_seccomp_filter", errno.EACCES)
def a_filter_takes_no_new_privs(_: Room) -> list[Step]:
    return [*powerless(), install_seccomp_filter(refusing({"acct": errno.EPERM}))]


@succeeds(
    "set_attribute", ("cat", "/proc/self/timerslack_ns"), lambda text: text.strip() in {"7777", "0"}
)
def an_attribute_by_name(_: Room) -> list[Step]:
    return [set_attribute("set_timerslack", 7777)]


@fails("set_attribute", errno.EINVAL)
def an_attribute_that_is_none(_: Room) -> list[Step]:
    return [set_attribute(99999)]


@succeeds("system_call", ("sh", "-c", "umask"), says("0077"))
def a_call_by_name(_: Room) -> list[Step]:
    return [system_call("umask", 0o077)]


@fails("system_call", errno.EIO)
def a_call_that_answers_otherwise(_: Room) -> list[Step]:
    return [set_umask(0o077), system_call("umask", 0o077, expect=0o022)]


@fails("system_call", errno.EBADF)
def a_call_that_fails(_: Room) -> list[Step]:
    return [system_call("fsync", 99999)]


# ---- signals ----


def signals(name: str, *numbers: int) -> Callable[[str], bool]:
    """Whether a mask in /proc/self/status has exactly these."""
    return line(name, f"{sum(1 << number - 1 for number in numbers):016x}")


@succeeds("clear_handlers", refused={"clone3": errno.ENOSYS})
def clone3_is_refused(_: Room) -> list[Step]:
    return []


@fails("clear_handlers", errno.EPERM, refused={"clone3": errno.ENOSYS, "rt_sigaction": errno.EPERM})
def clone3_and_rt_sigaction_are_refused(_: Room) -> list[Step]:
    return []


@succeeds("reset_signals", STATUS, signals("SigIgn", signal.SIGUSR1))
def what_was_ignored_is_reset(_: Room) -> list[Step]:
    every = [number for number in range(1, 65) if number not in {signal.SIGKILL, signal.SIGSTOP}]
    return [ignore_signals(every), reset_signals(set(every) - {signal.SIGUSR1})]


@fails("reset_signals", errno.EPERM)
def reset_behind_a_filter(_: Room) -> list[Step]:
    return [*behind("rt_sigaction"), reset_signals(["TERM"])]


@succeeds("ignore_signals", STATUS, signals("SigIgn", signal.SIGTERM, signal.SIGHUP))
def two_signals_are_ignored(_: Room) -> list[Step]:
    every = [number for number in range(1, 65) if number not in {signal.SIGKILL, signal.SIGSTOP}]
    return [reset_signals(every), ignore_signals(["TERM", "SIGHUP"])]


@fails("ignore_signals", errno.EPERM)
def ignoring_behind_a_filter(_: Room) -> list[Step]:
    return [*behind("rt_sigaction"), ignore_signals(["TERM"])]


@succeeds("set_signal_mask", STATUS, signals("SigBlk", signal.SIGTERM, 64))
def two_signals_are_blocked(_: Room) -> list[Step]:
    return [set_signal_mask(["TERM", 64])]


@fails("set_signal_mask", errno.EPERM)
def the_mask_behind_a_filter(_: Room) -> list[Step]:
    return [*untold("rt_sigprocmask"), set_signal_mask()]


@succeeds("set_parent_death_signal")
def the_parent_lives(_: Room) -> list[Step]:
    return [set_parent_death_signal("KILL")]


@fails("set_parent_death_signal", errno.EPERM)
def parent_death_behind_a_filter(_: Room) -> list[Step]:
    return [*behind("prctl", lib.PR_SET_PDEATHSIG), set_parent_death_signal("KILL")]


ALARM = "import signal; print(signal.getitimer(signal.ITIMER_REAL)[0])"


@succeeds(
    "set_alarm",
    (sys.executable, "-I", "-S", "-c", ALARM),
    lambda text: 100 < float(text) <= 1000.5,
)
def an_alarm_is_set(_: Room) -> list[Step]:
    return [set_alarm(1000.5)]


@fails("set_alarm", errno.EPERM)
def an_alarm_behind_a_filter(_: Room) -> list[Step]:
    return [*behind("setitimer"), set_alarm(1)]


@succeeds("end_without_zombie", needs=("autoreap",))
def no_zombie(_: Room) -> list[Step]:
    return [end_without_zombie()]


@fails("end_without_zombie", errno.EPERM, errno.EINVAL, refused={"clone3": errno.EPERM})
def no_zombie_behind_a_filter(_: Room) -> list[Step]:
    return [end_without_zombie()]


@succeeds("end_with_pidfd", needs=("clone_nnp",))
def killed_with_the_handle(_: Room) -> list[Step]:
    return [end_with_pidfd(), clone_no_new_privs()]


@fails("end_with_pidfd", errno.EPERM, errno.EINVAL, refused={"clone3": errno.EPERM})
def killed_with_the_handle_behind_a_filter(_: Room) -> list[Step]:
    return [end_with_pidfd()]


@succeeds("clone_no_new_privs", STATUS, line("NoNewPrivs", 1), ("clone_nnp",))
def no_new_privs_from_the_clone(_: Room) -> list[Step]:
    return [clone_no_new_privs()]


@fails("clone_no_new_privs", errno.EPERM, errno.EINVAL, refused={"clone3": errno.EPERM})
def clone_nnp_behind_a_filter(_: Room) -> list[Step]:
    return [clone_no_new_privs()]


# ---- mounts ----

MOUNTINFO = ("cat", "/proc/self/mountinfo")


def own_mounts(*mounts: object) -> list[Step]:
    """Steps that mount these in a mount namespace of one's own."""
    steps = [*privileged("mnt"), set_propagation(), new_root("/")]
    return [*steps, *map(mount, mounts)]  # type: ignore[arg-type]


@succeeds("set_propagation", MOUNTINFO, lambda text: "shared:" not in text, ("mount",))
def mounts_stay_in_the_namespace(_: Room) -> list[Step]:
    return [*privileged("mnt"), set_propagation()]


@succeeds("set_propagation", needs=("mount",))
def mounts_from_outside_still_come(_: Room) -> list[Step]:
    return [*privileged("mnt"), set_propagation("slave")]


@fails("set_propagation", errno.EPERM)
def propagation_takes_a_capability(_: Room) -> list[Step]:
    return [*powerless(), set_propagation()]


@succeeds("new_root", needs=("mount",))
def the_root_stays_until_another_is_entered(room: Room) -> list[Step]:
    return [*privileged("mnt"), set_propagation(), new_root(room.path)]


@fails("new_root", errno.EPERM, needs=("mount",))
def a_root_behind_a_filter(room: Room) -> list[Step]:
    return [*privileged("mnt"), *behind("open_tree"), new_root(room.path)]


@succeeds("mount", ("stat", "-f", "-c", "%T", "/mnt"), says("tmpfs"), ("mount",))
def a_tmpfs_is_mounted(_: Room) -> list[Step]:
    return own_mounts(tmpfs("/mnt", size=1 << 16))


@succeeds("mount", ("cat", "/mnt/a/new/file"), says("given"), ("mount",))
def a_file_is_mounted(room: Room) -> list[Step]:
    fd = room.keep(os.memfd_create("given", os.MFD_CLOEXEC))
    os.write(fd, b"given")
    return own_mounts(tmpfs("/mnt"), file("/mnt/a/new/file", fd))


@succeeds("mount", ("ls", "/mnt"), says("layer"), ("mount",))
def a_bind_of_all_and_layers_are_mounted(room: Room) -> list[Step]:
    (room.path / "layer").mkdir()
    return own_mounts(
        bind("/usr", "/mnt", read_only=True, nodev=True),
        overlay("/mnt", [room.path], in_memory=True, userxattr=True),
    )


@fails("mount", errno.ENODEV, needs=("mount",))
def an_unknown_file_system(_: Room) -> list[Step]:
    return own_mounts(file_system("wonderfs", "/mnt"))


@fails("mount", errno.ELOOP, needs=("mount",))
def a_place_behind_a_link_of_proc(_: Room) -> list[Step]:
    return own_mounts(tmpfs("/proc/self/root/mnt"))


@succeeds("mask_path", ("cat", "/etc/passwd"), says(""), ("mount",))
def a_file_is_hidden(_: Room) -> list[Step]:
    return [*own_mounts(), mask_path("/etc/passwd"), mask_path("/etc/absent")]


@fails("mask_path", errno.ELOOP, needs=("mount",))
def a_link_of_proc_is_not_hidden(_: Room) -> list[Step]:
    return [*own_mounts(), mask_path("/proc/self/exe")]


@succeeds("make_path_read_only", MOUNTINFO, lambda text: " /etc ro," in text, ("mount",))
def a_directory_is_protected(_: Room) -> list[Step]:
    return [*own_mounts(), make_path_read_only("/etc"), make_path_read_only("/absent")]


@fails("make_path_read_only", errno.ELOOP, needs=("mount",))
def a_link_of_proc_is_not_protected(_: Room) -> list[Step]:
    return [*own_mounts(), make_path_read_only("/proc/self/cwd")]


@succeeds("enter_root", MOUNTINFO, lambda text: " / / ro," in text, ("mount",))
def the_same_root_is_entered_read_only(_: Room) -> list[Step]:
    root = bind("/", "/", read_only=True)
    steps = [*privileged("mnt"), set_propagation(), new_root(root)]
    return [*steps, mount(tmpfs("/mnt")), enter_root(root)]


@fails("enter_root", errno.EBUSY, errno.EINVAL, needs=("mount",))
def the_present_root_is_not_entered(_: Room) -> list[Step]:
    return [*own_mounts(), enter_root(bind("/", "/"))]


# ---- running them ----


def cases_of(module: str) -> list[Case]:
    """The cases of the steps that a module of clonekit.steps defines."""
    return [
        case for case in CASES if KINDS[case.step].function.__module__ == f"clonekit.steps.{module}"
    ]


def missing_of(case: Case) -> str:
    """Why a case cannot be tried here; "" if it can."""
    return next((reason for need in case.needs if (reason := missing(need))), "")


def with_output(steps: list[Step], output: int) -> list[Step]:
    """The steps with this descriptor as the program's standard output and error."""
    steps = list(steps)
    for n, step in enumerate(steps):
        if step.kind is place_descriptors:
            steps[n] = place_descriptors({**step.arguments[0], 1: output, 2: output})
            return steps
    closing = (n for n, step in enumerate(steps) if step.phase in CLOSED_PHASES)
    steps.insert(next(closing, len(steps)), place_descriptors({0: 0, 1: output, 2: output}))
    return steps


def seen(steps: list[Step], argv: tuple[str, ...], **execution: object) -> tuple[Exit, str]:
    """How a program ends that is spawned by these steps, and what it prints."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(reader, errors="replace") as told:
        try:
            process = Program([*with_output(steps, writer), execute(argv, **execution)]).spawn()
        finally:
            os.close(writer)
        with process:
            text = told.read()
            return process.wait(), text


def output(argv: list[str], **declaration: object) -> str:
    """What a program prints that is declared so, and ends well."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(reader, errors="replace") as told:
        try:
            process = spawn(argv, fds={0: 0, 1: writer, 2: writer}, **declaration)
        finally:
            os.close(writer)
        with process:
            text = told.read()
            assert process.wait().status == 0, text
    return text


def check(case: Case, room: Room) -> None:
    """Run a case and judge it."""
    if case.refused:
        assert apart(lambda: (install(refusing(case.refused)), judge(case, room))) == ""
    else:
        judge(case, room)


def judge(case: Case, room: Room) -> None:
    """Run a case in this process."""
    steps = case.steps(room)
    if not case.fails:
        ended, text = seen(steps, case.argv)
        assert case.sees(text), text
        assert ended.status == 0, text
        return
    descriptors = os.listdir("/proc/self/fd")
    told = refusal(steps, case.argv)
    assert told is not None, "nothing failed"
    number, step, phase, text = told
    assert number in case.fails, text
    assert (step is None) == (phase == "clone"), text
    assert step is None or step.startswith(f"{case.step}("), text
    assert os.listdir("/proc/self/fd") == descriptors


def refusal(
    steps: list[Step], argv: tuple[str, ...]
) -> tuple[int | None, str | None, str, str] | None:
    """The errno, the step, the phase and the text of the error, and nothing that keeps it alive."""
    try:
        seen(steps, argv)
    except SpawnError as error:
        return error.errno, error.step, error.phase, str(error)
    return None
