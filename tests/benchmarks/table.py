"""The README's tables, from files that `pytest tests/benchmarks --benchmark-json=FILE` wrote.

`table.py FILE...`: Markdown. Times are medians; a ratio is given by the medians and by the minima.
What is compared is in one file: a second one has what another user measured.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Times = Mapping[tuple[str, str], "Time"]

SMALL = "small heap, few descriptors"
LARGE = "2 GiB heap, few descriptors"
MANY = "small heap, 1,000 descriptors"
BOTH = "2 GiB heap, 1,000 descriptors"
LAST = "small heap, 1,000 descriptors, pipes opened last"
LOOP = "small heap, few descriptors, in a loop"
PRIVILEGED = "2 GiB heap, credentials, limits and a filter"
AS_ROOT = "full sandbox, as root"
UNPRIVILEGED = "full sandbox, unprivileged"

COLUMNS = {
    SMALL: "small heap, few fds",
    LARGE: "2 GiB heap",
    MANY: "1,000 fds",
    BOTH: "2 GiB heap, 1,000 fds",
    LAST: "1,000 fds, pipes last",
}
ROWS = {
    "fork": "fork, exec (C)",
    "vfork": "vfork, exec (C)",
    "posix_spawn_bare": "posix_spawn, told nothing (C)",
    "posix_spawn": "posix_spawn, same effect (C)",
    "clone3": "our system calls alone (C)",
    "subprocess": "subprocess.Popen",
    "clonekit_new_argv": "clonekit.spawn, new arguments each time",
    "clonekit_one_shot": "clonekit.spawn, the same again",
    "clonekit_compiled": "clonekit.Program.spawn",
}
PLACES = {"any processor": "where the scheduler likes", "one processor": "all on one processor"}
TRIPS = {
    "pipe": "a byte over two pipes (C)",
    "socketpair": "a byte over a socket pair (C)",
    "order_asleep": "an order, both sides asleep (C)",
    "order": "an order (C)",
    "order_python": "an order compiled before",
    "order_new": "nascent.syscall()",
    "injected": "suspended.syscall()",
}
STARTS = {
    "plain": "Program.spawn",
    "deadline": "... with a deadline",
    "limits": "Program.spawn with ten limits",
    "limits_deadline": "... with a deadline",
    "nascent": "nascent, start",
    "nascent_one_order": "nascent, ten limits by one do(), start",
    "nascent_ten_orders": "nascent, ten limits by ten do(), start",
    "suspended": "Program.spawn suspended, resume",
    "suspended_one_call": "... and one call between",
}
USERS = {
    AS_ROOT: "as root",
    f"{AS_ROOT}, in a loop": "... each in a loop",
    UNPRIVILEGED: "unprivileged",
    f"{UNPRIVILEGED}, in a loop": "... each in a loop",
}
RUNTIMES = {
    "clone3": "our system calls alone (C)",
    "clonekit_compiled": "clonekit.Program.spawn",
    "clonekit_one_shot": "clonekit.spawn",
    "bwrap_as_pid_1": "bwrap --unshare-all --as-pid-1",
    "bwrap": "bwrap --unshare-all",
    "crun_without_cgroup": "crun --cgroup-manager=disabled run",
    "crun": "crun run",
    "runc": "runc run",
}
OURS, ONE_SHOT, POPEN, FLOOR = "clonekit_compiled", "clonekit_one_shot", "subprocess", "clone3"
DROP_IN = "clonekit"


class Time(NamedTuple):
    """Seconds."""

    minimum: float
    median: float


class Target(NamedTuple):
    """At most `limit` times what another takes."""

    name: str
    ours: tuple[str, str]
    other: tuple[str, str]
    limit: float


TARGETS = (
    Target("compiled, of the same calls in C", (SMALL, OURS), (SMALL, FLOOR), 1.15),
    Target("compiled, of posix_spawn from C", (SMALL, OURS), (SMALL, "posix_spawn"), 0.85),
    Target("... told nothing", (SMALL, OURS), (SMALL, "posix_spawn_bare"), 0.85),
    Target("compiled, of Popen", (SMALL, OURS), (SMALL, POPEN), 0.60),
    Target("... each in a loop", (LOOP, OURS), (LOOP, POPEN), 0.60),
    Target("one shot, of Popen", (SMALL, ONE_SHOT), (SMALL, POPEN), 0.75),
    Target("... each in a loop", (LOOP, ONE_SHOT), (LOOP, POPEN), 0.75),
    Target("... new arguments each time", (SMALL, "clonekit_new_argv"), (SMALL, POPEN), 0.75),
    Target("1,000 fds: compiled, of Popen", (MANY, OURS), (MANY, POPEN), 0.45),
    Target("1,000 fds: compiled, of posix_spawn from C", (MANY, OURS), (MANY, "posix_spawn"), 0.65),
    Target("2 GiB heap: compiled, of a small one", (LARGE, OURS), (SMALL, OURS), 1.1),
    Target(
        "2 GiB heap: credentials, limits, filter, of Popen(user=, preexec_fn=)",
        (PRIVILEGED, "clonekit_privileged"),
        (PRIVILEGED, "subprocess_privileged"),
        1 / 300,
    ),
    Target("full sandbox, of the same calls in C", (AS_ROOT, OURS), (AS_ROOT, FLOOR), 1.25),
    Target("... of bwrap", (AS_ROOT, OURS), (AS_ROOT, "bwrap"), 1 / 4),
    Target("... of crun", (AS_ROOT, OURS), (AS_ROOT, "crun"), 1 / 9),
    Target("... of runc", (AS_ROOT, OURS), (AS_ROOT, "runc"), 1 / 20),
    Target(
        "unprivileged: of the same calls in C", (UNPRIVILEGED, OURS), (UNPRIVILEGED, FLOOR), 1.25
    ),
    Target("... of bwrap", (UNPRIVILEGED, OURS), (UNPRIVILEGED, "bwrap"), 1 / 3),
    Target("... of crun", (UNPRIVILEGED, OURS), (UNPRIVILEGED, "crun"), 1 / 7),
    Target("... of runc", (UNPRIVILEGED, OURS), (UNPRIVILEGED, "runc"), 1 / 15),
    Target("import, of import subprocess", ("import", "clonekit"), ("import", POPEN), 2.0),
    Target("... clonekit.popen", ("import", "clonekit.popen"), ("import", POPEN), 2.0),
    Target("clonekit.Popen, of subprocess.Popen", ("plain", DROP_IN), ("plain", POPEN), 0.9),
    Target("... 1,000 fds", ("1,000 descriptors", DROP_IN), ("1,000 descriptors", POPEN), 0.6),
    Target("... user=, group=", ("user=, group=", DROP_IN), ("user=, group=", POPEN), 1 / 8),
    Target(
        "... at a 2 GiB heap",
        ("user=, group=, 2 GiB heap", DROP_IN),
        ("user=, group=, 2 GiB heap", POPEN),
        1 / 300,
    ),
    Target(
        "asyncio: exec and wait, of asyncio's own",
        ("asyncio, exec and wait", DROP_IN),
        ("asyncio, exec and wait", POPEN),
        0.5,
    ),
    Target(
        "... where the scheduler likes",
        ("asyncio, exec and wait, where the scheduler likes", DROP_IN),
        ("asyncio, exec and wait, where the scheduler likes", POPEN),
        0.5,
    ),
)


def times_of(report: dict[str, Any]) -> dict[tuple[str, str], Time]:
    """Every benchmark's time, by group and contestant."""
    return {
        (entry["group"], entry["params"].get("name") or entry["params"]["module"]): Time(
            entry["stats"]["min"], entry["stats"]["median"]
        )
        for entry in report["benchmarks"]
    }


def ratio_text(ratio: float) -> str:
    """As `0.85x`, or `1/300` where it is small."""
    return f"{ratio:.2f}x" if ratio >= 0.1 else f"1/{1 / ratio:.0f}"


def time_table(
    times: Times, columns: Mapping[str, str], rows: Mapping[str, str], ours: str
) -> Iterator[str]:
    """Microseconds of each contestant, and how many times those of `ours` that is."""
    columns = {group: title for group, title in columns.items() if (group, ours) in times}
    if not columns:
        return
    yield f"| µs | {' | '.join(columns.values())} |"
    yield "|---|" + "---:|" * len(columns)
    for name, title in rows.items():
        cells = []
        for group in columns:
            time = times.get((group, name))
            if time is None:
                cells.append("")
            else:
                ratio = time.median / times[group, ours].median
                cells.append(f"{micros_text(time)} ({ratio_text(ratio)})")
        yield f"| {title} | {' | '.join(cells)} |"


def micros_text(time: Time) -> str:
    """Its median in microseconds."""
    micros = time.median * 1e6
    return f"{micros:,.{0 if micros >= 10 else 1}f}"


def pair_table(times: Times) -> Iterator[str]:
    """What the drop-in takes, beside the standard library."""
    groups = [group for group, name in times if name == DROP_IN and group != "import"]
    if not groups:
        return
    yield "| as subprocess | ours, µs | the standard library, µs | ratio |"
    yield "|---|---:|---:|---:|"
    for group in groups:
        ours, other = times[group, DROP_IN], times[group, POPEN]
        cells = micros_text(ours), micros_text(other), ratio_text(ours.median / other.median)
        yield f"| {group} | {' | '.join(cells)} |"


def verdict(target: Target, times: Times) -> str:
    """Whether it is met; if not, how far the same system calls in C are from the limit."""
    other = times[target.other].median
    ratio = times[target.ours].median / other
    if ratio <= target.limit:
        return "met"
    missed = f"missed by {ratio / target.limit - 1:.0%}"
    floor = times.get((target.ours[0], FLOOR))
    return (
        missed if floor is None else f"{missed}; its calls alone, in C: {floor.median / other:.2f}x"
    )


def target_table(times: Times) -> Iterator[str]:
    """What was promised, and what is."""
    targets = [target for target in TARGETS if {target.ours, target.other} <= times.keys()]
    if not targets:
        return
    yield "| at most | promised | by medians | by minima | |"
    yield "|---|---:|---:|---:|---|"
    for target in targets:
        ours, other = times[target.ours], times[target.other]
        ratios = (target.limit, ours.median / other.median, ours.minimum / other.minimum)
        cells = " | ".join(map(ratio_text, ratios))
        yield f"| {target.name} | {cells} | {verdict(target, times)} |"


def main() -> None:
    """Print them."""
    reports = [json.loads(Path(name).read_text()) for name in sys.argv[1:]]
    times = {key: time for each in reports for key, time in times_of(each).items()}
    report = reports[0]
    machine = report["machine_info"]
    print(
        f"{report['datetime'][:10]}, {machine['cpu'].get('brand_raw', machine['machine'])}, "
        f"{machine['system']} {machine['release']}, Python {machine['python_version']}\n"
    )
    tables = (
        time_table(times, COLUMNS, ROWS, OURS),
        pair_table(times),
        target_table(times),
        time_table(times, PLACES, TRIPS, "pipe"),
        time_table(times, PLACES, STARTS, "plain"),
        time_table(times, USERS, RUNTIMES, OURS),
    )
    print("\n\n".join(filter(None, map("\n".join, tables))))


if __name__ == "__main__":
    main()
