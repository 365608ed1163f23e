"""Landlock: what a process may do with files, ports and other processes, less than its user."""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING

from clonekit.linux.abi import call, lib
from clonekit.linux.block import Owned, here
from clonekit.linux.landlock_rules import NOT_HERE, OF_FILES, Restrictions, rules_of
from clonekit.linux.memory import address

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from clonekit.linux.landlock_rules import Place

__all__ = [
    "Restrictions",
    "Ruleset",
    "abi",
    "add_path_rule",
    "add_port_rule",
    "create_ruleset",
    "restrict_self",
]

# Enumerators of linux/landlock.h, enum landlock_rule_type.
RULE_PATH_BENEATH, RULE_NET_PORT = 1, 2
_NONE_HERE = (errno.ENOSYS, errno.EOPNOTSUPP)


def abi() -> int:
    """The version of Landlock that this kernel has, or 0: landlock_create_ruleset.

    0 also where it is compiled in but left out of the boot's list of security modules.

    See: landlock(7).
    """
    try:
        return call("landlock_create_ruleset", 0, 0, lib.LANDLOCK_CREATE_RULESET_VERSION)
    except OSError as error:
        if error.errno in _NONE_HERE:
            return 0
        raise


def create_ruleset(fs: int = 0, net: int = 0, scoped: int = 0) -> int:
    """A descriptor of an empty ruleset: landlock_create_ruleset.

    `fs` and `net` are what it forbids where no rule allows it, `scoped` what it forbids outright.

    Raises: ENOMSG if nothing is forbidden; EINVAL or E2BIG for what this kernel does not know;
        ENOSYS, EOPNOTSUPP. Since: Linux 5.13. See: landlock_create_ruleset(2).
    """
    attributes = struct.pack("=QQQ", fs, net, scoped)
    return call("landlock_create_ruleset", address(attributes), len(attributes), 0)


def add_path_rule(ruleset: int, beneath: int, allowed: int) -> None:
    """Allow this beneath a directory, or of a file, given by its descriptor: landlock_add_rule.

    Raises: EINVAL for what the ruleset does not handle or a file cannot have; ENOMSG for nothing.
    Since: Linux 5.13. See: landlock_add_rule(2).
    """
    rule = struct.pack("=Qi", allowed, beneath)
    call("landlock_add_rule", ruleset, RULE_PATH_BENEATH, address(rule), 0)


def add_port_rule(ruleset: int, port: int, allowed: int) -> None:
    """Allow this with a port: landlock_add_rule. To bind port 0 is to take any ephemeral one.

    Raises: EINVAL for what the ruleset does not handle; ENOMSG for nothing.
    Since: Linux 6.7. See: landlock_add_rule(2).
    """
    rule = struct.pack("=QQ", allowed, port)
    call("landlock_add_rule", ruleset, RULE_NET_PORT, address(rule), 0)


def restrict_self(ruleset: int, flags: int = 0) -> None:
    """Enforce a ruleset on the calling thread and what it makes, for good: landlock_restrict_self.

    Raises: EPERM without no_new_privs or CAP_SYS_ADMIN; E2BIG above 16 layers.
    Since: Linux 5.13. See: landlock_restrict_self(2).
    """
    call("landlock_restrict_self", ruleset, flags)


class Ruleset(Owned):
    """A Landlock ruleset, made here and enforced elsewhere: `spawn(..., landlock=ruleset)`.

    What is named is restricted to what the list says; what is left out stays as it is.

    - `read`, `write`, `execute`: paths beneath which that is allowed, or files. Execution takes
      reading, so `execute` allows that too; `write` is to write, truncate, make, remove, rename
      and link, and does not allow reading.
    - `fs`: a mapping of paths to `FsAccess`, for what these do not say.
    - `handled`: `FsAccess` that is forbidden too, where no rule allows it.
    - `tcp_bind`, `tcp_connect`, `udp_bind`, `udp_connect`: ports.
    - `scopes`: what is forbidden towards processes outside, as `Scope` or by name: "signal",
      "abstract_unix_socket".

    Paths are resolved now, as this process sees them; an open file or a descriptor does too. The
    ruleset owns a descriptor, which `close` or the end of the block closes. It may be used many
    times.

    Without no_new_privs or CAP_SYS_ADMIN the program cannot enforce it.

    Raises: EOPNOTSUPP for what this kernel cannot restrict, naming the first that can. With
        `best_effort` that is left out, and `enforced` says what remains; if nothing does, it is
        an error still. ENOENT and others for a path.
    Since: Linux 5.13; TCP ports 6.7, UDP ports 7.2, scopes 6.12. See: landlock(7).
    """

    __slots__ = ("_fd", "enforced")

    #: What is really forbidden, but for what the rules allow.
    enforced: Restrictions

    def __init__(
        self,
        *,
        read: Iterable[Place] | None = None,
        write: Iterable[Place] | None = None,
        execute: Iterable[Place] | None = None,
        fs: Mapping[Any, int] | None = None,
        handled: int = 0,
        tcp_bind: Iterable[int] | None = None,
        tcp_connect: Iterable[int] | None = None,
        udp_bind: Iterable[int] | None = None,
        udp_connect: Iterable[int] | None = None,
        scopes: int | Iterable[str] = 0,
        best_effort: bool = False,
    ) -> None:
        self._fd, self._maker = -1, here()
        rules = rules_of(
            fs,
            [read, write, execute],
            [tcp_bind, tcp_connect, udp_bind, udp_connect],
            handled,
            scopes,
        )
        self.enforced = _enforceable(rules.asked, best_effort=best_effort)
        self._fd = create_ruleset(*self.enforced)
        try:
            for place, access in rules.places:
                self._allow(place, access)
            for port, forbidden_port in rules.ports:
                if forbidden_port & self.enforced.net:
                    add_port_rule(self._fd, port, forbidden_port)
        except BaseException:
            self.close()
            raise

    def _allow(self, place: Place, access: int) -> None:
        """One rule: that part of it which is enforced, and which a file can have."""
        opened = isinstance(place, str | bytes | os.PathLike)
        if opened:
            fd = os.open(place, os.O_PATH | os.O_CLOEXEC)  # type: ignore[arg-type]
        else:
            fd = place if isinstance(place, int) else place.fileno()  # type: ignore[union-attr]
        try:
            access &= self.enforced.fs
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                access &= OF_FILES
            if access:
                add_path_rule(self._fd, fd, access)
        finally:
            if opened:
                os.close(fd)

    def fileno(self) -> int:
        """Its descriptor.

        Raises: ValueError when it is closed.
        """
        if self._fd < 0:
            msg = "the ruleset is closed"
            raise ValueError(msg)
        return self._fd

    def close(self) -> None:
        """Close its descriptor. Processes that enforce it go on doing so."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __repr__(self) -> str:
        parts = [str(part.name) for part in self.enforced if part]
        return f"<Ruleset {'|'.join(parts)}{', closed' * (self._fd < 0)}>"


def _enforceable(asked: Restrictions, *, best_effort: bool) -> Restrictions:
    """What of it this kernel can enforce, or an error that says since when it could."""
    version = abi()
    if not version:
        raise OSError(errno.EOPNOTSUPP, f"landlock: {NOT_HERE}")
    enforced, lacking = asked.known_to(version)
    if lacking and not (best_effort and any(enforced)):
        told = f"landlock: {'; '.join(lacking)}; this kernel has ABI {version}"
        if not best_effort:
            told += ". best_effort=True leaves it out"
        raise OSError(errno.EOPNOTSUPP, told)
    return enforced
