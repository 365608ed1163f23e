"""Landlock's rules as they are written: what is restricted, and what is allowed all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from clonekit.errors import DeclarationError
from clonekit.linux.flags import FsAccess, NetAccess, Scope

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping
    from typing import Any, Protocol, TypeAlias

    class HasFileno(Protocol):
        """An open file."""

        def fileno(self) -> int:
            """Its descriptor."""

    Place: TypeAlias = str | bytes | os.PathLike[str] | int | HasFileno

LAST_PORT = 65535

READ = FsAccess.READ_FILE | FsAccess.READ_DIR
WRITE = (
    FsAccess.WRITE_FILE | FsAccess.TRUNCATE | FsAccess.REMOVE_DIR | FsAccess.REMOVE_FILE
    | FsAccess.MAKE_CHAR | FsAccess.MAKE_DIR | FsAccess.MAKE_REG | FsAccess.MAKE_SOCK
    | FsAccess.MAKE_FIFO | FsAccess.MAKE_BLOCK | FsAccess.MAKE_SYM | FsAccess.REFER
)  # fmt: skip
#: Each list of paths: its name, what it forbids elsewhere and what it allows there.
LISTS = (
    ("read", READ, READ),
    ("write", WRITE, WRITE),
    ("execute", FsAccess.EXECUTE, FsAccess.EXECUTE | READ),
)
#: What each list of ports is about: tcp_bind, tcp_connect, udp_bind, udp_connect.
PORTS = (
    NetAccess.BIND_TCP, NetAccess.CONNECT_TCP, NetAccess.BIND_UDP, NetAccess.CONNECT_SEND_UDP,
)  # fmt: skip
#: What a file can have that is no directory.
OF_FILES = (
    FsAccess.EXECUTE | FsAccess.READ_FILE | FsAccess.WRITE_FILE | FsAccess.TRUNCATE
    | FsAccess.IOCTL_DEV | FsAccess.RESOLVE_UNIX
)  # fmt: skip
#: What came after the first ABI: with which, and the first kernel that has it.
YOUNGER: tuple[tuple[int, str, FsAccess | NetAccess | Scope], ...] = (
    (2, "5.19", FsAccess.REFER),
    (3, "6.2", FsAccess.TRUNCATE),
    (4, "6.7", NetAccess.BIND_TCP | NetAccess.CONNECT_TCP),
    (5, "6.10", FsAccess.IOCTL_DEV),
    (6, "6.12", Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL),
    (9, "7.1", FsAccess.RESOLVE_UNIX),
    (10, "7.2", NetAccess.BIND_UDP | NetAccess.CONNECT_SEND_UDP),
)
NOT_HERE = "it needs Linux 5.13, and its place in the list of security modules (lsm=)"


class Restrictions(NamedTuple):
    """What a ruleset forbids, but for what its rules allow."""

    fs: FsAccess = FsAccess(0)
    net: NetAccess = NetAccess(0)
    scope: Scope = Scope(0)

    def known_to(self, version: int) -> tuple[Restrictions, list[str]]:
        """That part of it which this version of Landlock has, and a word for each other part."""
        kept: list[FsAccess | NetAccess | Scope] = list(self)
        lacking = []
        for first, kernel, younger in YOUNGER:
            for n, asked in enumerate(self):
                if first > version and type(asked) is type(younger) and asked & younger:
                    kept[n] &= ~younger
                    lacking.append(f"{(asked & younger).name} needs Linux {kernel} (ABI {first})")
        return Restrictions(*kept), lacking  # type: ignore[arg-type]


class Rules(NamedTuple):
    """What is asked to be restricted, and the places and ports where that is allowed."""

    asked: Restrictions
    places: list[tuple[Place, FsAccess]]
    ports: list[tuple[int, NetAccess]]


def rules_of(
    fs: Mapping[Any, int] | None,
    lists: Iterable[Iterable[Place] | None],
    ports: Iterable[Iterable[int] | None],
    handled: int,
    scopes: int | Iterable[str],
) -> Rules:
    """The rules that these words of `Landlock` and `Ruleset` stand for.

    `lists` are those of LISTS, `ports` those of PORTS; what is None is not restricted.

    Raises: DeclarationError for what cannot be a rule.
    """
    files, net = FsAccess(handled), NetAccess(0)
    places = [(place, FsAccess(access)) for place, access in (fs or {}).items()]
    for _, access in places:
        files |= access
    for listed, (name, forbidden, allowed) in zip(lists, LISTS, strict=True):
        if listed is not None:
            files |= forbidden
            places += [(place, allowed) for place in _list_of(name, listed)]
    port_rules = []
    for numbers, forbidden_port in zip(ports, PORTS, strict=True):
        if numbers is not None:
            net |= forbidden_port
            if isinstance(numbers, str | bytes | int):
                msg = f"a list of ports is {numbers!r}; give numbers, as [443]"
                raise DeclarationError(msg)
            port_rules += [(_port(number), forbidden_port) for number in numbers]
    return Rules(Restrictions(files, net, _scopes(scopes)), places, port_rules)


def _list_of(name: str, places: Iterable[Place]) -> Iterable[Place]:
    """A single path where a list is meant would be read letter by letter."""
    if isinstance(places, str | bytes) or hasattr(places, "__fspath__"):
        msg = f"{name} is {places!r}; give a list of paths, as [{places!r}]"
        raise DeclarationError(msg)
    return places


def _port(number: int) -> int:
    """A port, checked: the kernel's error would not say which."""
    if not isinstance(number, int) or not 0 <= number <= LAST_PORT:
        msg = f"{number!r} is no port; give 0 to {LAST_PORT}"
        raise DeclarationError(msg)
    return number


def _scopes(scopes: int | Iterable[str]) -> Scope:
    """Scopes by their names, or as flags."""
    if isinstance(scopes, int):
        return Scope(scopes)
    together = Scope(0)
    for name in [scopes] if isinstance(scopes, str) else scopes:
        scope = Scope.__members__.get(name.upper().replace("-", "_"))
        if scope is None:
            known = " and ".join(repr(each.lower()) for each in Scope.__members__)
            msg = f"{name!r} is no scope; there are {known}"
            raise DeclarationError(msg)
        together |= scope
    return together
