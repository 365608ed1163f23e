"""Landlock as a value of a declaration: rules whose paths are those of the program's own root.

The ruleset is made in the child. A ruleset that the parent makes can name only what the parent
sees: a path inside a new root or below a mount of the child's would mean another file, and an
error would come from nowhere in the order of set-up.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import NamedTuple

from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib
from clonekit.linux.flags import FsAccess, NetAccess, Scope
from clonekit.linux.landlock import RULE_NET_PORT, RULE_PATH_BENEATH
from clonekit.linux.landlock import abi as abi_here
from clonekit.linux.landlock_rules import NOT_HERE, OF_FILES, Restrictions, rules_of
from clonekit.records import Call, Data, Fd, Move, Scratch, Slot
from clonekit.steps.opening import OPEN_HOW, path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from clonekit.linux.landlock_rules import Place
    from clonekit.records import Records

FD_OFFSET = 8  # of parent_fd, in struct landlock_path_beneath_attr


class Enforced(NamedTuple):
    """What a `Landlock` really restricts, but for what its rules allow.

    - `abi`: the version of Landlock that is relied on; 0 where there is none.
    - `fs`, `net`, `scope`: what is forbidden. Where anything of `fs` is, the kernel forbids REFER
      too, which is to link or move a file into another directory.
    - `missing`: a line for each thing that was asked for and is not enforced.
    """

    abi: int
    fs: FsAccess
    net: NetAccess
    scope: Scope
    missing: tuple[str, ...]


class Landlock:
    """What the program may do with files, ports and other processes: `spawn(landlock=...)`.

    What is named is restricted to what the list says; what is left out stays as it is.

    - `read`, `write`, `execute`: paths beneath which that is allowed, or files. Execution takes
      reading, so `execute` allows that too; `write` is to write, truncate, make, remove, rename
      and link, and does not allow reading.
    - `fs`: a mapping of paths to `FsAccess`, for what these do not say.
    - `handled`: `FsAccess` that is forbidden too, where no rule allows it.
    - `tcp_bind`, `tcp_connect`, `udp_bind`, `udp_connect`: ports.
    - `scopes`: what is forbidden towards processes outside, as `Scope` or by name: "signal",
      "abstract_unix_socket".
    - `best_effort`: leave out what this kernel cannot restrict; `enforced()` says what remains.
    - `abi`: use nothing that is younger than this version of Landlock.
    - `symlinks`: with False, a path that leads over a symlink is refused (ELOOP). A program that
      could write where a rule's path leads over could otherwise widen what it may do next time.

    Paths are opened by the child, once its root and directory are the program's and before its ids
    change. A path may also be a descriptor: ours, or a `Slot` that an earlier step makes. The value
    owns nothing, and may be used many times.

    Without no_new_privs or CAP_SYS_ADMIN the program cannot enforce it.

    Raises: DeclarationError for what cannot be a rule; when it is compiled, for what this kernel
        cannot restrict, naming the first that can.
    Since: Linux 5.13; TCP ports 6.7, UDP ports 7.2, scopes 6.12. See: landlock(7).
    """

    __slots__ = ("_places", "_rules", "abi", "best_effort", "symlinks")

    def __init__(
        self,
        *,
        read: Iterable[Place | Slot] | None = None,
        write: Iterable[Place | Slot] | None = None,
        execute: Iterable[Place | Slot] | None = None,
        fs: Mapping[Any, int] | None = None,
        handled: int = 0,
        tcp_bind: Iterable[int] | None = None,
        tcp_connect: Iterable[int] | None = None,
        udp_bind: Iterable[int] | None = None,
        udp_connect: Iterable[int] | None = None,
        scopes: int | Iterable[str] = 0,
        best_effort: bool = False,
        abi: int | None = None,
        symlinks: bool = True,
    ) -> None:
        self._rules = rules_of(
            fs,
            [read, write, execute],  # type: ignore[list-item]
            [tcp_bind, tcp_connect, udp_bind, udp_connect],
            handled,
            scopes,
        )
        if not any(self._rules.asked):
            msg = "Landlock() restricts nothing; name what is to be restricted, as read=['/usr']"
            raise DeclarationError(msg)
        self._places: dict[bytes | Fd, FsAccess] = {}
        for place, access in self._rules.places:
            known = place_of(place)
            self._places[known] = self._places.get(known, FsAccess(0)) | access
        self.best_effort = best_effort
        self.abi = abi
        self.symlinks = symlinks

    def enforced(self) -> Enforced:
        """What of it this kernel restricts: what a program that is spawned with it cannot do.

        Raises: DeclarationError if that is not all of it, and no best effort was asked for.
        """
        asked = self._rules.asked
        version = abi_here()
        if self.abi is not None:
            version = min(version, self.abi)
        kept, lacking = asked.known_to(version)
        if not version:
            kept, lacking = Restrictions(), [f"Landlock: {NOT_HERE}"]
        if lacking and not self.best_effort:
            told = f"; ABI {version} is what there is here" if version else ""
            msg = f"landlock: {'; '.join(lacking)}{told}; best_effort=True leaves it out"
            raise DeclarationError(msg)
        fs = kept.fs | FsAccess.REFER if kept.fs else kept.fs
        return Enforced(version, fs, kept.net, kept.scope, tuple(lacking))

    def made(self, ruleset: Slot) -> Records:
        """The records that make the ruleset; none if nothing of it can be enforced."""
        enforced = self.enforced()
        fs = enforced.fs & self._rules.asked.fs
        if not any(enforced[1:4]):
            return
        attributes = struct.pack("=QQQ", fs, enforced.net, enforced.scope)
        yield Call("landlock_create_ruleset", attributes, len(attributes), 0, to=ruleset)
        opened = Slot()
        for place, access in self._places.items():
            if access & fs:
                yield from self._beneath(ruleset, place, access & fs, opened)
        for port, allowed in self._rules.ports:
            if allowed & enforced.net:
                rule = struct.pack("=QQ", allowed, port)
                yield Call("landlock_add_rule", Fd(ruleset), RULE_NET_PORT, rule, 0)

    def _beneath(self, ruleset: Slot, place: bytes | Fd, access: FsAccess, opened: Slot) -> Records:
        """One rule.

        Whether a path is a directory shows only in the child, and a file has fewer rights: the
        kernel takes all or nothing. So all are tried, and then those that a file can have, which
        adds nothing to a directory's.
        """
        fd = place if isinstance(place, Fd) else Fd(opened)
        if isinstance(place, bytes):
            flags = os.O_PATH | os.O_CLOEXEC
            if self.symlinks:
                yield Call("openat", lib.AT_FDCWD, place, flags, 0, to=opened, retry=True)
            else:
                how = Data(OPEN_HOW.pack(flags, 0, lib.RESOLVE_NO_SYMLINKS))
                yield Call(
                    "openat2", lib.AT_FDCWD, place, how, OPEN_HOW.size, to=opened, retry=True
                )
        every = dict.fromkeys(allowed for allowed in (access, access & OF_FILES) if allowed)
        for n, allowed in enumerate(every, 1):
            rule = Scratch(struct.pack("=Qi", allowed, -1))
            yield Move(rule.at(FD_OFFSET), value=fd)
            yield Call(
                "landlock_add_rule", Fd(ruleset), RULE_PATH_BENEATH, rule, 0,
                tolerate=(errno.EINVAL,) if n < len(every) else (),
            )  # fmt: skip
        if isinstance(place, bytes):
            yield Call("close", opened)

    def enforces(self) -> bool:
        """Whether anything of it is enforced here."""
        return any(self.enforced()[1:4])

    def frozen(self) -> object:
        """What it compiles to here."""
        places = [(place, int(access)) for place, access in self._places.items()]
        ports = [(port, int(allowed)) for port, allowed in self._rules.ports]
        asked = [int(part) for part in self._rules.asked]
        return asked, places, ports, self.best_effort, self.abi, self.symlinks, abi_here()

    def _key(self) -> tuple[object, ...]:
        return (
            self._rules.asked, list(self._places.items()), set(self._rules.ports),
            self.best_effort, self.abi, self.symlinks,
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Landlock) else NotImplemented

    def __hash__(self) -> int:
        return hash((self._rules.asked, frozenset(self._places), self.best_effort, self.abi))

    def __repr__(self) -> str:
        return f"Landlock({', '.join(self._told())})"

    def _told(self) -> Iterator[str]:
        """Each rule as short as it can be said."""
        for place, access in self._places.items():
            name = repr(os.fsdecode(place[:-1])) if isinstance(place, bytes) else repr(place)
            yield f"{name}: {access.name}"
        for port, allowed in self._rules.ports:
            yield f"{port}: {allowed.name}"
        if self._rules.asked.scope:
            yield str(self._rules.asked.scope.name)


def place_of(place: Place | Slot) -> bytes | Fd:
    """A path as the kernel takes it, or a descriptor."""
    if isinstance(place, str | bytes | os.PathLike):
        return path_of(place)
    return Fd(place)


#: What `--landlock` takes, and the words of `Landlock` that it stands for.
WORDS = {
    "ro": ("read",),
    "rw": ("read", "write"),
    "x": ("execute",),
    "tcp-bind": ("tcp_bind",),
    "tcp-connect": ("tcp_connect",),
    "udp-bind": ("udp_bind",),
    "udp-connect": ("udp_connect",),
    "scope": ("scopes",),
}


def parse_landlock(text: str) -> Landlock:
    """`ro=/usr,rw=/tmp,tcp-connect=443,scope=signal,best-effort`.

    With `ro` or `rw`, both reading and writing are restricted, and execution to what is readable.
    `x` restricts execution further. A name without a value (`tcp-bind=`) allows nothing.
    """
    import re

    words: dict[str, Any] = {}
    for part in re.split(r"(?<!\\),", text):
        name, equals, value = part.replace(r"\,", ",").partition("=")
        if part == "best-effort":
            words["best_effort"] = True
            continue
        if name not in WORDS or not equals:
            msg = f"{part!r} is no rule; write {'=, '.join(WORDS)}= or best-effort"
            raise ValueError(msg)
        for word in WORDS[name]:
            listed = words.setdefault(word, [])
            if value:
                listed.append(int(value) if "-" in name else value)
        if name in ("ro", "rw"):
            words.setdefault("read", [])
            words.setdefault("write", [])
    return Landlock(**words)
