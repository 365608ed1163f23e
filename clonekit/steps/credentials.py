"""Who the program is: ids, capabilities, securebits, keys."""

from __future__ import annotations

import os
import struct

from clonekit.errors import DeclarationError
from clonekit.linux.abi import NUMBERS, lib, refuse_nul
from clonekit.records import Call, Slot
from clonekit.steps.step import Option, names_or_number, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from clonekit.records import Records

SETS = ("bounding", "permitted", "inheritable", "effective", "ambient")
CAPABILITY_WORDS = 2
UNCHANGED = -1
#: `groups=KEEP`: the program has the parent's supplementary groups.
KEEP = "keep"


def capability(name: str | int) -> int:
    """A capability's number: "net_bind_service", "CAP_NET_BIND_SERVICE" or 10."""
    if isinstance(name, int):
        return name
    value = getattr(lib, "CAP_" + name.upper().removeprefix("CAP_"), None)
    if not isinstance(value, int) or name.upper() == "LAST_CAP":
        msg = f"{name!r} is no capability; see capabilities(7) for the names, as 'net_bind_service'"
        raise DeclarationError(msg)
    return value


def last_capability() -> int:
    """The highest capability that this kernel knows."""
    try:
        with open("/proc/sys/kernel/cap_last_cap", "rb") as file:  # noqa: PTH123 - pathlib is slow to import
            return int(file.read())
    except OSError:
        number = 0
        while True:
            result: int = lib.ck_raw(NUMBERS["prctl"], lib.PR_CAPBSET_READ, number, 0, 0, 0, 0)
            if result < 0:
                return number - 1
            number += 1


def capability_sets(value: Mapping[str, Iterable[str]] | Iterable[str]) -> dict[str, set[int]]:
    """A declaration's `capabilities`: sets by name, or one list that all five sets become."""
    if not hasattr(value, "items"):
        names = [value] if isinstance(value, str) else list(value)
        value = dict.fromkeys(SETS, names)
    unknown = set(value) - set(SETS)
    if unknown:
        msg = f"capabilities: no set is called {sorted(unknown)}; use {', '.join(SETS)}"
        raise DeclarationError(msg)
    sets = {key: {capability(name) for name in names} for key, names in value.items()}
    permitted = sets.get("permitted")
    if permitted is not None:
        sets.setdefault("effective", permitted)
        sets.setdefault("inheritable", set(sets.get("ambient", ())))
    elif sets.keys() & {"effective", "inheritable"}:
        msg = (
            "capabilities: one call sets permitted, effective and inheritable; say 'permitted' too"
        )
        raise DeclarationError(msg)
    if permitted is not None and not sets["effective"] <= permitted:
        msg = "capabilities: effective may hold only what permitted holds; add it to permitted"
        raise DeclarationError(msg)
    if permitted is not None and not sets.get("ambient", set()) <= permitted & sets["inheritable"]:
        msg = (
            "capabilities: ambient may hold only what permitted and inheritable hold; add it there"
        )
        raise DeclarationError(msg)
    return sets


def parse_capabilities(text: str) -> tuple[str, list[str]]:
    """`ambient=net_bind_service,net_raw`, `bounding=`."""
    name, equals, names = text.partition("=")
    if not equals:
        msg = f"{text!r} names no capabilities; write SET=NAMES (SET= for none)"
        raise ValueError(msg)
    return name, [part for part in names.split(",") if part]


def of_set(name: str) -> Any:
    """How `capabilities` becomes the arguments of the step for one of its sets."""
    return lambda value: [(sets[name],) for sets in [capability_sets(value)] if name in sets]


@step(phase="privileges", field="securebits", lasting=True, option=Option("BITS", names_or_number))
def set_securebits(securebits: int | Iterable[str]) -> Records:
    """Set how uid 0 and capabilities go together ("noroot", ...): prctl PR_SET_SECUREBITS.

    Raises: EPERM without CAP_SETPCAP, or for a locked bit. See: capabilities(7).
    """
    value = securebits if isinstance(securebits, int) else 0
    if not isinstance(securebits, int):
        for name in securebits:
            bit = getattr(lib, "SECBIT_" + name.upper().removeprefix("SECBIT_"), None)
            if not isinstance(bit, int):
                msg = f"securebits: no bit is called {name!r}; see capabilities(7)"
                raise DeclarationError(msg)
            value |= bit
    yield Call("prctl", lib.PR_SET_SECUREBITS, value, 0, 0, 0)


@step(phase="privileges", field="capabilities", lasting=True, each=of_set("permitted"))
def keep_capabilities(_permitted: object = None) -> Records:
    """Keep the permitted set over a change of ids from root: prctl PR_SET_KEEPCAPS. Exec ends it.

    Raises: EPERM if SECBIT_KEEP_CAPS_LOCKED. See: PR_SET_KEEPCAPS(2const).
    """
    yield Call("prctl", lib.PR_SET_KEEPCAPS, 1, 0, 0, 0)


@step(
    phase="privileges",
    field="capabilities",
    lasting=True,
    each=of_set("bounding"),
    option=Option("SET=NAMES", parse_capabilities, dict),
)
def bound_capabilities(capabilities: Iterable[str | int]) -> Records:
    """Leave only these in the bounding set, for good: prctl PR_CAPBSET_DROP of each other.

    Raises: EPERM without CAP_SETPCAP. See: PR_CAPBSET_DROP(2const).
    """
    left = {capability(name) for name in capabilities}
    for number in range(last_capability() + 1):
        if number not in left:
            yield Call("prctl", lib.PR_CAPBSET_DROP, number, 0, 0, 0)


def looked_up(name: str, database: str) -> int:
    """The id of a user or a group by name."""
    import grp
    import pwd

    try:
        if database == "user":
            return pwd.getpwnam(name).pw_uid
        return grp.getgrnam(name).gr_gid
    except KeyError:
        msg = f"there is no {database} called {name!r}"
        raise DeclarationError(msg) from None


def identity(value: int | str | Slot | None, database: str) -> int | Slot:
    """An id as the kernel takes it: a number, a name of ours, a slot, or None for "as it is"."""
    if value is None:
        return UNCHANGED
    if isinstance(value, Slot):
        return value
    if isinstance(value, str):
        value = int(value) if value.isdecimal() else looked_up(value, database)
    if isinstance(value, bool) or not 0 <= value < (1 << 32) - 1:
        msg = f"{value!r} is no {database} id; use 0 to {(1 << 32) - 2}"
        raise DeclarationError(msg)
    return value


def numbers(value: object) -> object:
    """Ids whose meaning does not change: a name's may, with the files that it is looked up in."""
    parts = value if isinstance(value, tuple | list) else (value,)
    return value if all(type(part) in {int, type(None)} for part in parts) else None


def kept_or_numbers(groups: object) -> object:
    """The same for a declaration's `groups`."""
    return groups if groups == KEEP else numbers(groups)


def three(value: Any, database: str) -> list[int | Slot]:
    """Real, effective and saved: one value for all, or three."""
    parts = value if isinstance(value, tuple | list) else (value,) * 3
    if len(parts) != 3:  # noqa: PLR2004 - real, effective, saved
        msg = f"give one {database} id, or three: real, effective, saved; not {value!r}"
        raise DeclarationError(msg)
    return [identity(part, database) for part in parts]


@step(
    phase="ids",
    field="groups",
    lasting=kept_or_numbers,
    ours=True,
    each=lambda groups: [] if groups == KEEP else [(groups,)],
    option=Option("GIDS", lambda text: KEEP if text == KEEP else [g for g in text.split(",") if g]),
)
def set_groups(groups: Iterable[int | str]) -> Records:
    """Set the supplementary groups, numbers or names; an empty list gives up all: setgroups.

    A declaration with `uid` or `gid` and no `groups` gives up all; "keep" leaves them.

    Raises: EPERM without CAP_SETGID, or in a user namespace that denies it. See: setgroups(2).
    """
    numbers = [identity(group, "group") for group in groups]
    yield Call("setgroups", len(numbers), struct.pack(f"<{len(numbers)}I", *numbers) or 0)


def parse_ids(text: str) -> Any:
    """`1000`, `nobody`, or `real:effective:saved`."""
    parts = text.split(":")
    return parts[0] if len(parts) == 1 else tuple(part or None for part in parts)


@step(
    phase="ids",
    field="gid",
    lasting=numbers,
    ours=True,
    each=lambda gid: [(gid,)],
    option=Option("GID", parse_ids),
)
def set_gid(gid: Any) -> Records:
    """Set the real, effective and saved gid: a number, a name, or three of them: setresgid.

    Raises: EPERM without CAP_SETGID, EINVAL for an id that the user namespace has not.
    See: setresgid(2).
    """
    yield Call("setresgid", *three(gid, "group"))


@step(
    phase="ids",
    field="uid",
    lasting=numbers,
    ours=True,
    each=lambda uid: [(uid,)],
    option=Option("UID", parse_ids),
)
def set_uid(uid: Any) -> Records:
    """Set the real, effective and saved uid: a number, a name, or three of them: setresuid.

    Our memory is untraceable from here to exec; see the hazards in the documentation.

    Raises: EPERM without CAP_SETUID, EINVAL for an id that the user namespace has not, EAGAIN.
    See: setresuid(2).
    """
    yield Call("setresuid", *three(uid, "user"))


@step(
    phase="capabilities",
    field="capabilities",
    lasting=True,
    ours=True,
    each=lambda value: [
        (sets["permitted"], sets["effective"], sets["inheritable"])
        for sets in [capability_sets(value)]
        if "permitted" in sets
    ],
)
def set_capabilities(
    permitted: Iterable[str | int],
    effective: Iterable[str | int] | None = None,
    inheritable: Iterable[str | int] = (),
) -> Records:
    """Set the permitted, effective and inheritable capabilities: capset.

    Raises: EPERM for one that the child has not. See: capset(2).
    """
    permitted = list(permitted)
    words = [
        sum(1 << number for number in {capability(name) for name in names})
        for names in (permitted if effective is None else effective, permitted, inheritable)
    ]
    header = struct.pack("<Ii", lib._LINUX_CAPABILITY_VERSION_3, 0)  # noqa: SLF001 - the kernel's own name
    data = b"".join(
        struct.pack("<III", *(word >> 32 * half & 0xFFFFFFFF for word in words))
        for half in range(CAPABILITY_WORDS)
    )
    yield Call("capset", header, data)


@step(phase="capabilities", field="capabilities", lasting=True, each=of_set("ambient"))
def raise_ambient(capabilities: Iterable[str | int]) -> Records:
    """Have exactly these in the ambient set, which exec keeps: prctl PR_CAP_AMBIENT.

    Raises: EPERM for one that is not both permitted and inheritable.
    Since: Linux 4.3. See: PR_CAP_AMBIENT(2const).
    """
    yield Call("prctl", lib.PR_CAP_AMBIENT, lib.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for number in sorted({capability(name) for name in capabilities}):
        yield Call("prctl", lib.PR_CAP_AMBIENT, lib.PR_CAP_AMBIENT_RAISE, number, 0, 0)


@step(phase="keys", field="keyring", lasting=True, option=Option("NAME"))
def join_session_keyring(name: str | None = None) -> Records:
    """Have a session keyring of one's own, anonymous without a name: keyctl.

    `keyring=True` makes an anonymous one.

    Raises: ENOSYS, EACCES, EDQUOT. See: KEYCTL_JOIN_SESSION_KEYRING(2const).
    """
    text = refuse_nul(os.fsencode(name), "a keyring's name") if name else 0
    yield Call("keyctl", lib.KEYCTL_JOIN_SESSION_KEYRING, text)


@step(phase="no_new_privs", field="no_new_privs", lasting=True)
def set_no_new_privs() -> Records:
    """No exec may raise privileges any more, for good: prctl PR_SET_NO_NEW_PRIVS.

    Since: Linux 3.5. See: PR_SET_NO_NEW_PRIVS(2const).
    """
    yield Call("prctl", lib.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
