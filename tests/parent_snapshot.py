"""All that a spawn must leave in its parent as it was."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from clonekit.linux.abi import NUMBERS, lib

#: prctl options that read a setting of the process, of its thread or of its memory.
PRCTL = {
    name.lower().removeprefix("pr_get_"): getattr(lib, name)
    for name in (
        "PR_GET_DUMPABLE", "PR_GET_KEEPCAPS", "PR_GET_MDWE", "PR_GET_MEMORY_MERGE",
        "PR_GET_NO_NEW_PRIVS", "PR_GET_SECUREBITS", "PR_GET_THP_DISABLE", "PR_GET_TIMERSLACK",
    )
}  # fmt: skip
#: Lines of /proc/self/status that a spawn must not change: ids, signals, capabilities, limits.
STATUS = (
    "Umask", "Uid", "Gid", "Groups", "Threads", "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt",
    "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters",
    "CoreDumping", "THP_enabled", "VmLck", "VmPin", "Cpus_allowed", "Mems_allowed",
)  # fmt: skip
FILES = (
    "oom_score_adj",
    "coredump_filter",
    "personality",
    "cgroup",
    "limits",
    "timens_offsets",
    "comm",
)
LINKS = ("cwd", "root", "exe")
NAMESPACES = (
    "cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user",
    "uts",
)  # fmt: skip


THREADS = "status Threads"


def told(read: Callable[[], object]) -> object:
    """What is read, or why it cannot be: a parent that is left untraceable cannot read itself."""
    try:
        return read()
    except OSError as error:
        return f"{type(error).__name__} {error.errno}"


def content(path: str) -> str:
    """A file's text."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def descriptors(pid: int | str = "self") -> dict[int, str]:
    """Each open descriptor, of ours or of another process, and what it is for."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def flags() -> dict[int, bool]:
    """Whether each open descriptor is inheritable."""
    return {fd: os.get_inheritable(fd) for fd in descriptors()}


def children() -> list[str]:
    """The pids of our children, zombies too, of each thread."""
    pids: list[str] = []
    for thread in os.listdir("/proc/self/task"):
        with suppress(FileNotFoundError, ProcessLookupError):  # one that was joined, and ends
            pids += content(f"/proc/self/task/{thread}/children").split()
    return sorted(pids)


def ended_child() -> object:
    """A child that waits to be reaped; ECHILD where there is no child at all."""
    return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)


def mappings() -> list[str]:
    """The mappings of our memory, but for the heap and the end of a stack that grows."""
    lines = []
    for line in content("/proc/self/maps").splitlines():
        fields = line.split(maxsplit=5)
        if fields[5:] == ["[heap]"]:
            continue
        if fields[5:] == ["[stack]"]:
            fields[0] = ""
        lines.append(" ".join(fields))
    return lines


def snapshot(*, memory: bool = False) -> dict[str, object]:
    """The state of this process that a spawn must not change.

    With `memory` the mappings too: only for a process that allocates nothing else in between
    (`stracing.Worker`).
    """
    status = dict(
        line.split(":\t", 1) for line in content("/proc/self/status").splitlines() if ":\t" in line
    )
    state: dict[str, object] = {f"status {name}": status.get(name) for name in STATUS}
    state |= {
        f"prctl {name}": lib.ck_raw(NUMBERS["prctl"], option, 0, 0, 0, 0, 0)
        for name, option in PRCTL.items()
    }
    state |= {name: told(lambda name=name: content(f"/proc/self/{name}")) for name in FILES}  # type: ignore[misc]
    state |= {name: told(lambda name=name: os.readlink(f"/proc/self/{name}")) for name in LINKS}  # type: ignore[misc]
    state |= {
        f"namespace {name}": told(lambda name=name: os.readlink(f"/proc/self/ns/{name}"))  # type: ignore[misc]
        for name in NAMESPACES
    }
    state |= {
        "descriptors": told(descriptors),
        "inheritable": told(flags),
        "children": told(children),
        "ended child": told(ended_child),
        "ids": (os.getresuid(), os.getresgid(), os.getgroups()),
        "session": (os.getpid(), os.getpgid(0), os.getsid(0)),
        "host": tuple(os.uname()),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "io priority": lib.ck_raw(NUMBERS["ioprio_get"], 1, 0, 0, 0, 0, 0),
        "scheduler": (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority),
        "affinity": os.sched_getaffinity(0),
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
    }
    if memory:
        state["mappings"] = told(mappings)
    return state


def changes(
    before: dict[str, object], after: dict[str, object]
) -> dict[str, tuple[object, object]]:
    """What differs between two snapshots, and how."""
    return {
        name: differing(before.get(name), after.get(name))
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name) and not (name == THREADS and ended(before, after))
    }


def ended(before: dict[str, object], after: dict[str, object]) -> bool:
    """Whether a thread that was joined by an earlier test has come to its end meanwhile."""
    return int(str(after[THREADS])) < int(str(before[THREADS]))


def differing(before: object, after: object) -> tuple[object, object]:
    """The parts in which two values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        before, after = list(before.items()), list(after.items())
    if isinstance(before, list) and isinstance(after, list):
        return [part for part in before if part not in after], [
            part for part in after if part not in before
        ]
    return before, after


@contextmanager
def unchanged() -> Iterator[None]:
    """Assert that what is done meanwhile leaves this process as it was."""
    before = snapshot()
    yield
    after = snapshot()
    assert changes(before, after) == {}, changes(before, after)
