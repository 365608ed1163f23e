"""A cgroup's limits by the names of the kernel's files: which there are, and what each takes."""

from __future__ import annotations

import errno
import re

from clonekit.errors import DeclarationError
from clonekit.linux.cgroup2 import path_of, read, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    Texts = list[str]

AMOUNT = re.compile(r"max|\d+[KMGTPE]?", re.IGNORECASE)
DEVICE = re.compile(r"\d+:\d+")
RANGES = re.compile(r"(\d+(-\d+)?(,\d+(-\d+)?)*)?")
WORD = (1 << 64) - 1
SHORTEST, LONGEST = 1_000, 1_000_000  # microseconds, of a period of cpu.max
IO_KEYS = ("rbps", "wbps", "riops", "wiops")
PRIORITIES = ("no-change", "promote-to-rt", "restrict-to-be", "idle", "none-to-rt")


def wrong(name: str, value: object, instead: str) -> DeclarationError:
    """The error for a value that the file does not take."""
    return DeclarationError(f"{name} is {value!r}; write {instead}")


def number(name: str, value: object, least: int, most: int, instead: str) -> str:
    """A whole number within bounds."""
    if isinstance(value, str) and value.lstrip("-").isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise wrong(name, value, instead)
    return str(value)


def amount(name: str, value: object) -> Texts:
    """A number from 0 up, or `max`; of bytes with a unit, too, as the kernel reads it."""
    if isinstance(value, str) and AMOUNT.fullmatch(value):
        return [value.lower() if value.isalpha() else value]
    return [number(name, value, 0, WORD, 'a number from 0 up, "64M" or "max"')]


def between(least: int, most: int) -> Callable[[str, object], Texts]:
    """A number within bounds."""
    return lambda name, value: [number(name, value, least, most, f"a number {least} to {most}")]


def flag(name: str, value: object) -> Texts:
    """Whether."""
    if value not in (0, 1, "0", "1"):
        raise wrong(name, value, "True or False")
    return [str(int(value))]


def word(*words: str) -> Callable[[str, object], Texts]:
    """One of these."""

    def take(name: str, value: object) -> Texts:
        if value not in words:
            raise wrong(name, value, " or ".join(map(repr, words)))
        return [str(value)]

    return take


def bandwidth(name: str, value: Any) -> Texts:
    """So many microseconds of each period of so many: `(50_000, 100_000)`, `"max"`, a quota."""
    instead = '(quota, period) in microseconds, as (50000, 100000), a quota, or "max"'
    parts = value.split() if isinstance(value, str) else value
    quota, *period = parts if isinstance(parts, list | tuple) and parts else [parts]
    if len(period) > 1:
        raise wrong(name, value, instead)
    texts = ["max" if quota == "max" else number(name, quota, SHORTEST, WORD, instead)]
    texts += [number(name, each, SHORTEST, LONGEST, instead) for each in period]
    return [" ".join(texts)]


def percentage(name: str, value: object) -> Texts:
    """Of the processor's capacity, 0 to 100, or `max`."""
    if value == "max":
        return ["max"]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 100:  # noqa: PLR2004 - percent
        raise wrong(name, value, 'a percentage 0 to 100, or "max"')
    return [f"{value:.2f}"]


def numbers(name: str, value: Any) -> Texts:
    """Processors or memory nodes: `"0-1,4"`, or their numbers."""
    instead = 'numbers, as [0, 1] or "0-1,4"'
    if isinstance(value, str):
        if not RANGES.fullmatch(value):
            raise wrong(name, value, instead)
        return [value]
    try:
        return [",".join(number(name, each, 0, 1 << 20, instead) for each in value)]
    except TypeError:
        raise wrong(name, value, instead) from None


def by_key(pattern: re.Pattern[str], inner: Iterable[str]) -> Callable[[str, object], Texts]:
    """A line for each device or resource, whose parts are limits of their own."""
    inner = tuple(inner)

    def take(name: str, value: object) -> Texts:
        instead = f'a mapping, as {{"8:0": {{"{inner[0] if inner else "KEY"}": 1000}}}}'
        if not isinstance(value, dict) or not value:
            raise wrong(name, value, instead)
        lines = []
        for key, parts in value.items():
            if not pattern.fullmatch(str(key)) or not isinstance(parts, dict) or not parts:
                raise wrong(name, value, instead)
            if inner and not set(parts) <= set(inner):
                raise wrong(name, value, f"only {', '.join(inner)} for {key}")
            told = [f"{part}={amount(f'{name} {part}', each)[0]}" for part, each in parts.items()]
            lines.append(" ".join([str(key), *told]))
        return lines

    return take


def weights(name: str, value: object) -> Texts:
    """A weight 1 to 10000 for all, or `{"default": 100, "8:0": 200}`."""
    instead = 'a weight 1 to 10000, or {"default": 100, "8:0": 200}'
    if not isinstance(value, dict):
        return [f"default {number(name, value, 1, 10_000, instead)}"]
    lines = []
    for key, weight in value.items():
        if key != "default" and not DEVICE.fullmatch(str(key)):
            raise wrong(name, value, instead)
        lines.append(f"{key} {number(name, weight, 1, 10_000, instead)}")
    return lines


def resources(name: str, value: object) -> Texts:
    """`{"res_a": 3}`, each with a number or `max`."""
    if not isinstance(value, dict) or not value:
        raise wrong(name, value, 'a mapping, as {"res_a": 3}')
    return [f"{key} {amount(f'{name} {key}', each)[0]}" for key, each in value.items()]


NAME = re.compile(r"[\w.-]+")
#: Each file that limits, and what makes its lines of a value. See: the kernel's cgroup-v2.
FILES: dict[str, Callable[[str, Any], Texts]] = {
    "cgroup.max.depth": amount,
    "cgroup.max.descendants": amount,
    "cgroup.pressure": flag,
    "cpu.idle": flag,
    "cpu.max": bandwidth,
    "cpu.max.burst": between(0, WORD),
    "cpu.uclamp.max": percentage,
    "cpu.uclamp.min": percentage,
    "cpu.weight": between(1, 10_000),
    "cpu.weight.nice": between(-20, 19),
    "cpuset.cpus": numbers,
    "cpuset.cpus.exclusive": numbers,
    "cpuset.cpus.partition": word("member", "root", "isolated"),
    "cpuset.mems": numbers,
    "dmem.low": resources,
    "dmem.max": resources,
    "dmem.min": resources,
    "io.bfq.weight": weights,
    "io.latency": by_key(DEVICE, ["target"]),
    "io.max": by_key(DEVICE, IO_KEYS),
    "io.prio.class": word(*PRIORITIES),
    "io.weight": weights,
    "memory.high": amount,
    "memory.low": amount,
    "memory.max": amount,
    "memory.min": amount,
    "memory.oom.group": flag,
    "memory.swap.high": amount,
    "memory.swap.max": amount,
    "memory.zswap.max": amount,
    "memory.zswap.writeback": flag,
    "misc.max": resources,
    "pids.max": amount,
    "rdma.max": by_key(NAME, ["hca_handle", "hca_object"]),
}
HUGETLB = re.compile(r"hugetlb\.\d+[KMG]B\.(rsvd\.)?max")


def lines_of(limits: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each file and line that these limits are written with, in their order.

    Raises: DeclarationError for a name that is no limit, and a value that it does not take.
    """
    lines = []
    for name, value in limits.items():
        take = amount if HUGETLB.fullmatch(str(name)) else FILES.get(name)
        if take is None:
            raise unknown(name)
        lines += [(name, line) for line in take(name, value)]
    return lines


def set_lines(group: int, lines: Iterable[tuple[str, str]]) -> None:
    """Write limits, and see that they hold.

    Raises: what the kernel answers, with the file.
    """
    for name, line in lines:
        try:
            write(group, name, line)
        except FileNotFoundError as error:
            msg = f"this kernel has no {name}, or its controller is not enabled"
            raise FileNotFoundError(errno.ENOENT, msg, error.filename) from None
        unmet = unmet_of(name, line, lambda other: read(group, other))
        if unmet:
            msg = f"{line!r} to {name} was taken but does not hold: {unmet}"
            raise OSError(errno.EINVAL, msg, path_of(group))


def unmet_of(name: str, line: str, says: Callable[[str], str]) -> str:
    """Why a limit does not hold that the kernel has taken; "" if it does.

    Of cpusets it takes what it then does not give: processors that the group above has not.
    """
    if name == "cpuset.cpus.partition":
        told = says(name).strip()
        return told if "invalid" in told else ""
    if name in ("cpuset.cpus", "cpuset.mems") and line:
        told = says(f"{name}.effective").strip()
        return "" if members(told) <= members(line) else f"{name}.effective is {told!r}"
    return ""


def members(ranges: str) -> set[int]:
    """The numbers that `0-1,4` names."""
    found: set[int] = set()
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def unknown(name: object) -> DeclarationError:
    """The error for a name that is no limit, and which was meant."""
    import difflib

    close = difflib.get_close_matches(str(name), FILES, 1)
    told = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(FILES)}"
    return DeclarationError(f"{name!r} is no limit; {told}")


def controllers_of(limits: Iterable[str]) -> set[str]:
    """The controllers that must be enabled for these files to be there."""
    return {name.partition(".")[0] for name in limits} - {"cgroup"}
