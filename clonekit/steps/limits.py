"""Limits, priorities and where the program runs."""

from __future__ import annotations

import struct

from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib
from clonekit.records import Call
from clonekit.steps.opening import write_file
from clonekit.steps.step import Option, names_or_number, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from clonekit.records import Records

UNLIMITED = (1 << 64) - 1
SCHED_ATTR = struct.Struct("<IIQiIQQQII")
IOPRIO_CLASS_SHIFT = 13
THREAD_ITSELF = 0
PIDTYPE_TGID = 1


def choice(name: str, prefix: str, what: str) -> int:
    """The value of the constant `PREFIX_NAME`, for a name in any case."""
    constant = prefix + name.upper().removeprefix(prefix)
    value = getattr(lib, constant, None)
    if not isinstance(value, int):
        names = sorted(
            key.removeprefix(prefix).lower() for key in dir(lib) if key.startswith(prefix)
        )
        msg = f"{name!r} is no {what}; use one of {', '.join(names)}"
        raise DeclarationError(msg)
    return value


def amount(value: int | str | None) -> int:
    """A limit's number; None, -1 and "unlimited" lift it."""
    if value in (None, -1, "unlimited", "infinity"):
        return UNLIMITED
    number = -1
    if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()):
        number = int(value)
    if not 0 <= number <= UNLIMITED:
        msg = f"a limit is a number from 0 up, or 'unlimited', not {value!r}"
        raise DeclarationError(msg)
    return number


def pairs(rlimits: dict[str, object]) -> Iterable[tuple[object, ...]]:
    """A declaration's `rlimits`: a number is both limits, a pair is soft and hard."""
    if not hasattr(rlimits, "items"):
        msg = f'rlimits is {rlimits!r}; give a mapping, as {{"nofile": 64, "cpu": (1, 2)}}'
        raise DeclarationError(msg)
    for name, value in rlimits.items():
        both = value if isinstance(value, tuple | list) else (value,)
        if not 1 <= len(both) <= 2:  # noqa: PLR2004 - soft and hard
            msg = f"rlimits: {name} is {value!r}; give a number, or two: (soft, hard)"
            raise DeclarationError(msg)
        yield name, *both


def parse_rlimit(text: str) -> tuple[str, tuple[str, ...]]:
    """`nofile=64:128`, `cpu=1`."""
    name, _, limits = text.partition("=")
    if not limits:
        msg = f"{text!r} is no limit; write NAME=SOFT[:HARD]"
        raise ValueError(msg)
    return name, tuple(limits.split(":"))


@step(
    phase="limits",
    field="rlimits",
    lasting=True,
    each=pairs,
    option=Option("NAME=SOFT[:HARD]", parse_rlimit, dict),
)
def set_rlimit(
    name: str | int, soft: int | str | None, hard: int | str | None = "same as soft"
) -> Records:
    """Bound a resource: prlimit64. Bytes for memory and files, seconds for cpu, counts otherwise.

    `name` as in getrlimit(2): "nofile", "as", "cpu"..., or `resource.RLIMIT_NOFILE`; None or
    "unlimited" lifts the limit.

    Raises: EPERM to raise a hard limit without CAP_SYS_RESOURCE, EINVAL for soft above hard.
    See: getrlimit(2).
    """
    resource = name if isinstance(name, int) else choice(name, "RLIMIT_", "limit")
    low = amount(soft)
    high = low if hard == "same as soft" else amount(hard)
    if low > high:
        msg = f"rlimits: {name}: the soft limit {low} is above the hard limit {high}"
        raise DeclarationError(msg)
    yield Call("prlimit64", 0, resource, struct.pack("<QQ", low, high), 0)


@step(phase="scheduling", field="nice", lasting=True, option=Option("N", int))
def set_nice(nice: int) -> Records:
    """Set the nice value, -20 (most time) to 19: setpriority.

    Raises: EACCES to lower it without CAP_SYS_NICE or RLIMIT_NICE. See: setpriority(2).
    """
    if not -20 <= nice <= 19:  # noqa: PLR2004 - the man page's own bounds
        msg = f"nice {nice} is not between -20 and 19"
        raise DeclarationError(msg)
    yield Call("setpriority", lib.PRIO_PROCESS, 0, nice)


def policy_and_priority(value: object) -> Iterable[tuple[object, ...]]:
    """A declaration's `scheduler`: a policy, or a policy and its priority."""
    return [tuple(value)] if isinstance(value, tuple | list) else [(value,)]


def parse_scheduler(text: str) -> tuple[str, int]:
    """`fifo:10`, `batch`."""
    policy, _, priority = text.partition(":")
    return policy, int(priority or 0)


@step(
    phase="scheduling",
    field="scheduler",
    lasting=True,
    each=policy_and_priority,
    option=Option("POLICY[:PRIORITY]", parse_scheduler),
)
def set_scheduler(
    policy: str,
    priority: int = 0,
    *,
    nice: int = 0,
    flags: int = 0,
    runtime_ns: int = 0,
    deadline_ns: int = 0,
    period_ns: int = 0,
) -> Records:
    """Set the scheduling policy ("other", "batch", "idle", "fifo", "rr"...): sched_setattr.

    `priority` is 1 to 99 for fifo and rr; the times are for deadline, in nanoseconds.

    Raises: EPERM without CAP_SYS_NICE or RLIMIT_RTPRIO, EINVAL, EBUSY. See: sched_setattr(2).
    """
    number = choice(policy, "SCHED_", "policy")
    real_time = number in (lib.SCHED_FIFO, lib.SCHED_RR)
    if real_time != (priority > 0):
        msg = f"scheduler: {policy} takes a priority of " + ("1 to 99" if real_time else "0")
        raise DeclarationError(msg)
    attributes = SCHED_ATTR.pack(
        SCHED_ATTR.size, number, flags, nice, priority, runtime_ns, deadline_ns, period_ns, 0, 0
    )
    yield Call("sched_setattr", 0, attributes, 0)


def bits(numbers: Iterable[int], what: str) -> bytes:
    """A bit mask in whole words."""
    mask = 0
    for number in numbers:
        if not 0 <= number < 1 << 16:
            msg = f"{what}: {number} is out of range"
            raise DeclarationError(msg)
        mask |= 1 << number
    if not mask:
        msg = f"{what}: name at least one"
        raise DeclarationError(msg)
    words = (mask.bit_length() + 63) // 64
    return mask.to_bytes(words * 8, "little")


def parse_numbers(text: str) -> list[int]:
    """`0,2-4`."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


@step(phase="scheduling", field="affinity", lasting=True, option=Option("CPUS", parse_numbers))
def set_affinity(cpus: Iterable[int]) -> Records:
    """Run on these processors only, by number: sched_setaffinity.

    Raises: EINVAL if none of them may be used. See: sched_setaffinity(2).
    """
    mask = bits(cpus, "affinity")
    yield Call("sched_setaffinity", 0, len(mask), mask)


def parse_ioprio(text: str) -> tuple[str, int]:
    """`be:7`, `idle`."""
    name, _, level = text.partition(":")
    return name, int(level or 0)


@step(
    phase="scheduling",
    field="ioprio",
    lasting=True,
    each=policy_and_priority,
    option=Option("CLASS[:LEVEL]", parse_ioprio),
)
def set_io_priority(name: str, level: int = 0) -> Records:
    """Set the class ("rt", "be", "idle") and level, 0 (first) to 7, of disk I/O: ioprio_set.

    Raises: EPERM for rt without CAP_SYS_ADMIN or CAP_SYS_NICE. See: ioprio_set(2).
    """
    if not 0 <= level <= 7:  # noqa: PLR2004 - the man page's own bounds
        msg = f"ioprio: level {level} is not between 0 and 7"
        raise DeclarationError(msg)
    value = choice(name, "IOPRIO_CLASS_", "class") << IOPRIO_CLASS_SHIFT | level
    yield Call("ioprio_set", lib.IOPRIO_WHO_PROCESS, 0, value)


@step(phase="scheduling", field="timer_slack_ns", lasting=True, option=Option("NS", int))
def set_timer_slack(ns: int) -> Records:
    """How late the kernel may fire the program's timers, in nanoseconds: prctl PR_SET_TIMERSLACK.

    0 means the parent thread's own. Real-time policies have none.

    Since: Linux 2.6.28. See: PR_SET_TIMERSLACK(2const).
    """
    if ns < 0:
        msg = f"timer_slack_ns {ns} is negative"
        raise DeclarationError(msg)
    yield Call("prctl", lib.PR_SET_TIMERSLACK, ns, 0, 0, 0)


def parse_policy(text: str) -> tuple[str, list[int]]:
    """`bind:0-1`, `local`."""
    mode, _, nodes = text.partition(":")
    return mode, parse_numbers(nodes) if nodes else []


@step(
    phase="scheduling",
    field="mempolicy",
    lasting=True,
    each=policy_and_priority,
    option=Option("MODE[:NODES]", parse_policy),
)
def set_memory_policy(mode: str, nodes: Iterable[int] = ()) -> Records:
    """Which NUMA nodes memory comes from ("default", "bind", "preferred"...): set_mempolicy.

    Raises: EINVAL for a node that is not there, ENOSYS without NUMA. See: set_mempolicy(2).
    """
    number = choice(mode, "MPOL_", "memory policy")
    nodes = list(nodes)
    mask = bits(nodes, "mempolicy") if nodes else b""
    # The kernel reads one bit less than it is told.
    yield Call("set_mempolicy", number, mask or 0, len(mask) * 8 + 1 if mask else 0)


@step(phase="score", field="oom_score_adj", lasting=True, option=Option("N", int))
def set_oom_score_adj(score: int) -> Records:
    """How soon it is killed for memory, -1000 (never) to 1000: /proc/self/oom_score_adj.

    Raises: EACCES below the earlier minimum without CAP_SYS_RESOURCE.
    See: proc_pid_oom_score_adj(5).
    """
    if not -1000 <= score <= 1000:  # noqa: PLR2004 - the man page's own bounds
        msg = f"oom_score_adj {score} is not between -1000 and 1000"
        raise DeclarationError(msg)
    yield from write_file("/proc/self/oom_score_adj", str(score).encode()).records()


@step(phase="scheduling", field="core_scheduling", lasting=True)
def new_core_cookie() -> Records:
    """Share a core's hyperthreads with nobody else: prctl PR_SCHED_CORE, PR_SCHED_CORE_CREATE.

    Raises: ENODEV without hyperthreads. Since: Linux 5.14. See: PR_SCHED_CORE(2const).
    """
    yield Call("prctl", lib.PR_SCHED_CORE, lib.PR_SCHED_CORE_CREATE, THREAD_ITSELF, PIDTYPE_TGID, 0)


@step(
    phase="scheduling", field="personality", lasting=True, option=Option("FLAGS", names_or_number)
)
def set_personality(persona: int | Iterable[str]) -> Records:
    """Set the execution domain: a number, or names ("addr_no_randomize", "linux32"): personality.

    See: personality(2).
    """
    if not isinstance(persona, int):
        names = [persona] if isinstance(persona, str) else persona
        values = {
            key.removeprefix("PER_").lower(): getattr(lib, key)
            for key in dir(lib)
            if key in PERSONALITIES
        }
        number = 0
        for name in names:
            if name.lower() not in values:
                msg = f"{name!r} is no personality; use one of {', '.join(sorted(values))}"
                raise DeclarationError(msg)
            number |= values[name.lower()]
        persona = number
    yield Call("personality", persona)


PERSONALITIES = {
    "ADDR_NO_RANDOMIZE", "MMAP_PAGE_ZERO", "ADDR_COMPAT_LAYOUT", "READ_IMPLIES_EXEC",
    "ADDR_LIMIT_32BIT", "SHORT_INODE", "WHOLE_SECONDS", "STICKY_TIMEOUTS", "ADDR_LIMIT_3GB",
    "UNAME26", "PER_LINUX32",
}  # fmt: skip
