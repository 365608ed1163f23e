"""Maps of ids in user namespaces, and the ranges of subordinate ids that a user has."""

from __future__ import annotations

import itertools
import os

from clonekit.errors import DeclarationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Self

    Range = tuple[int, int, int]

#: The kernel's own limits: user_namespaces(7).
MOST_RANGES = 340
LAST_ID = (1 << 32) - 1
MOST_BYTES = 4095
#: Ranges of three numbers, or pairs of single ids.
THREE = 3


class IdMap:
    """A map of ids, inside a user namespace and outside: ranges of (inside, outside, count).

    `IdMap((0, 1000, 1), (1, 100000, 65536))`. A pair is a range of one id. The kernel's limits are
    checked: 1 to 340 ranges, which overlap on neither side.

    Raises: DeclarationError. See: user_namespaces(7).
    """

    __slots__ = ("ranges",)

    def __init__(self, *ranges: Sequence[int]) -> None:
        self.ranges: tuple[Range, ...] = tuple(map(checked, ranges))
        if not 0 < len(self.ranges) <= MOST_RANGES:
            msg = f"an id map has 1 to {MOST_RANGES} ranges, not {len(self.ranges)}"
            raise DeclarationError(msg)
        for side, name in enumerate(("inside", "outside")):
            ordered = sorted(self.ranges, key=lambda entry: entry[side])
            for low, high in itertools.pairwise(ordered):
                if low[side] + low[2] > high[side]:
                    msg = f"id map: {low} and {high} overlap {name}; each id has one place"
                    raise DeclarationError(msg)
        if len(self.text) > MOST_BYTES:
            msg = f"id map: {len(self.text)} bytes of text; the kernel takes {MOST_BYTES} at once"
            raise DeclarationError(msg)

    @classmethod
    def subordinate(cls, kind: str, inside: int = 0) -> Self:
        """Our own id as `inside`, and our subordinate ids as those that are left from 0 up.

        `kind` is "uid" or "gid". The ranges are those of /etc/subuid or /etc/subgid.

        Raises: DeclarationError where we have none. See: subuid(5), newuidmap(1).
        """
        own = os.geteuid() if kind == "uid" else os.getegid()
        ranges: list[Sequence[int]] = [(inside, own, 1)]
        at = 0
        for first, count in subordinate_ids(kind):
            below = max(0, min(count, inside - at))  # what fits under our own id
            for start, size in ((first, below), (first + below, count - below)):
                if at == inside:
                    at += 1
                if size:
                    ranges.append((at, start, size))
                    at += size
        if len(ranges) == 1:
            msg = (
                f"user {user_name()} has no ranges in /etc/sub{kind}; give it one with "
                f"usermod --add-sub{kind}s"
            )
            raise DeclarationError(msg)
        return cls(*ranges)

    @property
    def text(self) -> bytes:
        """As the kernel's file has it, a line for each range."""
        return "".join(f"{a} {b} {count}\n" for a, b, count in self.ranges).encode()

    def is_own(self, outside: int) -> bool:
        """Whether it is one id, and this one: what a process may write for itself."""
        return len(self.ranges) == 1 and self.ranges[0][1:] == (outside, 1)

    def frozen(self) -> object:
        """All that it is."""
        return self.ranges

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdMap) and self.ranges == other.ranges

    def __hash__(self) -> int:
        return hash(self.ranges)

    def __repr__(self) -> str:
        return f"IdMap({', '.join(map(str, self.ranges))})"


def checked(entry: Sequence[int]) -> Range:
    """One range, within the kernel's limits."""
    if isinstance(entry, tuple | list) and len(entry) in (2, THREE):
        inside, outside, count = (*entry, 1)[:THREE]
        whole = all(type(value) is int for value in (inside, outside, count))
        if whole and count > 0 <= min(inside, outside) and max(inside, outside) + count <= LAST_ID:
            return inside, outside, count
    msg = f"id map: {entry!r} is no range; give (inside, outside, count), ids below {LAST_ID}"
    raise DeclarationError(msg)


def map_of(value: object, own: int) -> IdMap:
    """A declaration's id map: an id inside for our own, a pair, ranges, or an IdMap."""
    if isinstance(value, IdMap):
        return value
    if type(value) is int:
        return IdMap((value, own, 1))
    if isinstance(value, tuple | list) and value:
        if all(type(part) is int for part in value):
            return IdMap(value)
        return IdMap(*value)
    msg = f"id map: {value!r}; give an id, (inside, outside), or ranges of (inside, outside, count)"
    raise DeclarationError(msg)


def user_name() -> str:
    """Our name, or our number where we have none."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def subordinate_ids(kind: str) -> Iterator[tuple[int, int]]:
    """Our ranges of subordinate ids, (first, count), from /etc/subuid or /etc/subgid."""
    names = {user_name(), str(os.getuid())}
    try:
        with open(f"/etc/sub{kind}", encoding="utf-8") as file:  # noqa: PTH123 - pathlib is slow to import
            lines = file.read().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        name, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if name in names and first.isdecimal() and count.strip().isdecimal():
            yield int(first), int(count)


def refuse_foreign(id_map: IdMap, kind: str) -> None:
    """Refuse ranges that newuidmap would not write for us, where /etc/subuid alone says which.

    Raises: DeclarationError naming the range and the file.
    """
    own = os.getuid() if kind == "uid" else os.getgid()
    if asks_others():
        return
    ours = list(subordinate_ids(kind))
    for entry in id_map.ranges:
        _, outside, count = entry
        if (outside, count) == (own, 1):
            continue
        if not any(first <= outside and outside + count <= first + many for first, many in ours):
            told = ", ".join(f"{first}:{many}" for first, many in ours) or "none"
            msg = (
                f"{kind}_map: {entry}: user {user_name()} may not use these ids; its ranges in "
                f"/etc/sub{kind} are {told}"
            )
            raise DeclarationError(msg)


def asks_others() -> bool:
    """Whether somebody else than the files knows of subordinate ids: nsswitch.conf(5)."""
    try:
        with open("/etc/nsswitch.conf", encoding="utf-8") as file:  # noqa: PTH123 - pathlib is slow to import
            entries: Iterable[str] = (line.split("#")[0] for line in file)
            return any(line.startswith("subid:") and "files" not in line for line in entries)
    except OSError:
        return False
