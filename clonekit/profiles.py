"""seccomp profiles of containers: the OCI runtime spec's format, and Docker's, which extends it."""

from __future__ import annotations

import errno
import os

from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib
from clonekit.linux.libseccomp import number_of
from clonekit.rules import Arg, action_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from typing import Any

    from clonekit.linux.libseccomp import Comparison

#: A machine as os.uname() has it: as the spec's architecture, and as Docker's rules name it.
MACHINES = {
    "aarch64": ("SCMP_ARCH_AARCH64", "arm64"),
    "loongarch64": ("SCMP_ARCH_LOONGARCH64", "loongarch64"),
    "ppc64le": ("SCMP_ARCH_PPC64LE", "ppc64le"),
    "riscv64": ("SCMP_ARCH_RISCV64", "riscv64"),
    "s390x": ("SCMP_ARCH_S390X", "s390x"),
    "x86_64": ("SCMP_ARCH_X86_64", "amd64"),
}
OPERATORS = {
    "SCMP_CMP_NE": "!=", "SCMP_CMP_LT": "<", "SCMP_CMP_LE": "<=", "SCMP_CMP_EQ": "==",
    "SCMP_CMP_GE": ">=", "SCMP_CMP_GT": ">",
}  # fmt: skip
MASKED_EQ = "SCMP_CMP_MASKED_EQ"
WITH_ERRNO = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
#: In a child that has one thread there is nobody to synchronise with.
NO_FLAG = "SECCOMP_FILTER_FLAG_TSYNC"


class Profile:
    """What a profile says for one place: the names of `Filter.from_oci`.

    Attributes:
        default: the action where no rule is, and its errno.
        rules: for each an action, the names of its calls and what their arguments must be.
        architectures: whose calls the rules are for, beside the machine's own.
        flags: SECCOMP_FILTER_FLAG_*.
        unknown: the names that libseccomp does not know.
    """

    __slots__ = ("architectures", "default", "flags", "rules", "unknown")

    def __init__(
        self,
        profile: Mapping[str, Any] | str | os.PathLike[str],
        *,
        capabilities: Iterable[str],
        kernel: str | None,
        machine: str | None,
    ) -> None:
        if isinstance(profile, str | os.PathLike):
            profile = read(profile)
        uname = os.uname()
        where = Where(capabilities, kernel or uname.release, machine or uname.machine)
        try:
            self._fill(profile, where)
        except (TypeError, AttributeError, LookupError, ValueError) as error:
            if isinstance(error, DeclarationError):
                raise
            told = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            msg = f"it is no seccomp profile: {told}"
            raise DeclarationError(msg) from error

    def _fill(self, profile: Mapping[str, Any], where: Where) -> None:
        """Read it rule by rule, as crun does."""
        self.default = action(profile, "defaultAction", "defaultErrnoRet")
        names = profile.get("flags") or ()
        self.flags = sum({flag(name) for name in names if name != NO_FLAG})
        self.architectures = [
            name.removeprefix("SCMP_ARCH_").lower() for name in abis(profile, where)
        ]
        self.rules: list[tuple[int, list[str], tuple[Comparison, ...]]] = []
        unknown: dict[str, None] = {}
        for rule in profile.get("syscalls") or ():
            answer = action_of(*action(rule, "action", "errnoRet"))
            if not where.has(rule) or answer == action_of(*self.default):
                continue
            named = [rule["name"]] if rule.get("name") else rule.get("names") or ()
            known = [name for name in named if number_of(name) is not None]
            unknown |= dict.fromkeys(name for name in named if name not in known)
            for each in comparisons(rule.get("args") or ()):
                self.rules.append((answer, known, each))
        self.unknown = tuple(unknown)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The profile that a file holds.

    Raises: DeclarationError for what is not JSON, OSError.
    """
    with open(path, "rb") as file:  # noqa: PTH123 - pathlib is slow to import
        return parsed(file.read(), os.fspath(path))


def parsed(text: bytes, source: str) -> dict[str, Any]:
    """A profile in JSON; of a whole container's configuration, its part for seccomp."""
    import json

    try:
        profile = json.loads(text)
    except ValueError as error:
        msg = f"{source} is no profile: {error}"
        raise DeclarationError(msg) from None
    if not isinstance(profile, dict):
        msg = f"{source} is no profile: it holds no object"
        raise DeclarationError(msg)
    return profile


class Where:
    """What Docker's rules depend on."""

    __slots__ = ("arch", "capabilities", "kernel", "spec")

    def __init__(self, capabilities: Iterable[str], kernel: str, machine: str) -> None:
        if isinstance(capabilities, str):
            msg = f"capabilities is {capabilities!r}; give a list, as [{capabilities!r}]"
            raise DeclarationError(msg)
        if machine not in MACHINES:
            msg = f"machine is {machine!r}; known are {', '.join(MACHINES)}"
            raise DeclarationError(msg)
        names = {"CAP_" + name.upper().removeprefix("CAP_") for name in capabilities}
        unknown = [name for name in names if not hasattr(lib, name)]
        if unknown:
            msg = f"{unknown[0]} is no capability known here"
            raise DeclarationError(msg)
        self.capabilities = names
        self.kernel = version(kernel)
        self.spec, self.arch = MACHINES[machine]

    def has(self, rule: Mapping[str, Any]) -> bool:
        """Whether a rule is for here."""
        excludes, includes = rule.get("excludes") or {}, rule.get("includes") or {}
        return not (
            self._any(excludes.get("caps"), self.capabilities)
            or self._any(excludes.get("arches"), [self.arch])
            or (excludes.get("minKernel") and self.kernel >= version(excludes["minKernel"]))
        ) and (
            set(includes.get("caps") or ()) <= self.capabilities
            and (not includes.get("arches") or self.arch in includes["arches"])
            and (not includes.get("minKernel") or self.kernel >= version(includes["minKernel"]))
        )

    @staticmethod
    def _any(named: Iterable[str] | None, here: Collection[str]) -> bool:
        return any(name in here for name in named or ())


def version(text: str) -> tuple[int, int]:
    """`4.8` of `4.8.0-1-amd64`."""
    import re

    found = re.match(r"(\d+)\.(\d+)", text)
    if found is None:
        msg = f"{text!r} is no version of a kernel; write it as 4.8"
        raise DeclarationError(msg)
    return int(found[1]), int(found[2])


def action(rule: Mapping[str, Any], key: str, errno_key: str) -> tuple[str, int]:
    """An action and its errno, which only some have."""
    name, number = rule[key], rule.get(errno_key)
    if number is not None and name not in WITH_ERRNO:
        msg = f"{errno_key} is {number} for {name}, which has none; leave it out"
        raise DeclarationError(msg)
    if not name.startswith("SCMP_ACT_"):
        msg = f"{key} is {name!r}; it is SCMP_ACT_ERRNO or the like"
        raise DeclarationError(msg)
    # The spec's KILL is libseccomp's: of the thread.
    short = {"KILL": "KILL_THREAD"}.get(name[9:], name[9:])
    return short, errno.EPERM if number is None else number


def flag(name: str) -> int:
    """A flag of a filter by name."""
    value = getattr(lib, name, None)
    if not name.startswith("SECCOMP_FILTER_FLAG_") or not isinstance(value, int):
        msg = f"{name!r} is no flag of a filter that is known here"
        raise DeclarationError(msg)
    return value


def abis(profile: Mapping[str, Any], where: Where) -> list[str]:
    """The architectures whose calls the rules are for."""
    listed, mapped = profile.get("architectures"), profile.get("archMap")
    if listed and mapped:
        msg = "a profile has either architectures or archMap; leave one of them out"
        raise DeclarationError(msg)
    if not mapped:
        return list(listed or ())
    for entry in mapped:
        if entry["architecture"] == where.spec:
            return [where.spec, *(entry.get("subArchitectures") or ())]
    return []


def comparisons(args: Sequence[Mapping[str, Any]]) -> list[tuple[Comparison, ...]]:
    """What a rule compares: all of it must hold, or any where one argument is named twice."""
    made = []
    for arg in args:
        index, operator = arg["index"], arg["op"]
        value, second = arg.get("value", 0), arg.get("valueTwo", 0)
        if operator == MASKED_EQ:
            made.append(Arg(index, "==", second, mask=value).comparison)
        elif operator in OPERATORS:
            made.append(Arg(index, OPERATORS[operator], value).comparison)
        else:
            msg = f"{operator!r} is no comparison; write one of {', '.join(OPERATORS)}, {MASKED_EQ}"
            raise DeclarationError(msg)
    indices = [each[0] for each in made]
    return [(each,) for each in made] if len(set(indices)) < len(indices) else [tuple(made)]
