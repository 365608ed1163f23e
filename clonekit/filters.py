"""Filters of system calls as values: said by name here, compiled by libseccomp in the parent."""

from __future__ import annotations

import errno as _errno

from clonekit.errors import DeclarationError
from clonekit.linux.libseccomp import architecture, compiled
from clonekit.rules import ACTIONS, Arg, action_of, call_number, unknown_call

NOTIFY = ACTIONS["NOTIFY"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping
    from typing import Any, Self, TypeAlias

    from clonekit.linux.libseccomp import Comparison

    #: What an argument must be, and what is then answered.
    Answer: TypeAlias = tuple[tuple[Comparison, ...], int]


class Filter:
    """A seccomp filter as a value: `spawn(..., no_new_privs=True, seccomp=filter)`. Immutable.

    Each method gives a filter with one rule more, for calls given by name, and for all arguments
    or those that every `Arg` of the rule holds for:

        Filter().allow("read", "write", "exit_group").errno("socket", errno=errno.EACCES)

    `default` is the answer to a call that no rule is for: an action's name, as ERRNO (with
    `errno`), KILL, TRAP, LOG or ALLOW. A call that is answered by two rules, of which one holds
    for all arguments, is refused here. Between rules that compare, libseccomp decides.

    A machine has more than one ABI (x86 and x32 on x86_64), with other numbers for the same names:
    name those that the rules shall hold for too in `architectures`. Calls of all others get the
    answer `foreign`, by default that the process is killed.

    The numbers are libseccomp's and this kernel's. A name that neither knows is an error; with
    `best_effort` it is left out, and `skipped` says which.

    Raises: DeclarationError, also where libseccomp is not installed. Since: Linux 3.17; LOG and
    KILL 4.14, NOTIFY 5.0. See: seccomp(2).
    """

    __slots__ = (
        "_architectures", "_compiled", "_default", "_foreign", "_rules", "best_effort", "flags",
        "listener", "skipped",
    )  # fmt: skip

    #: SECCOMP_FILTER_FLAG_* with which it is installed.
    flags: int
    #: The `Listener` that is told of the calls of NOTIFY, or None.
    listener: Any
    #: Names that libseccomp and the kernel do not know, and that have no rule.
    skipped: tuple[str, ...]

    def __init__(
        self,
        default: str = "ERRNO",
        errno: int = _errno.EPERM,
        *,
        architectures: Iterable[str] = (),
        foreign: str = "KILL",
        flags: int = 0,
        best_effort: bool = False,
    ) -> None:
        if isinstance(architectures, str):
            msg = f"architectures is {architectures!r}; give a list, as [{architectures!r}]"
            raise DeclarationError(msg)
        self._default = action_of(default, errno)
        self._foreign = action_of(foreign)
        self._architectures = tuple(map(architecture, architectures))
        self._rules: dict[str, list[Answer]] = {}
        self._compiled: tuple[bytes, str] | None = None
        self.best_effort = best_effort
        self.flags = flags
        self.listener = None
        self.skipped = ()

    @classmethod
    def from_oci(
        cls,
        profile: Mapping[str, Any] | str | os.PathLike[str],
        *,
        capabilities: Iterable[str] = (),
        kernel: str | None = None,
        machine: str | None = None,
        listener: Any = None,
    ) -> Filter:
        """The filter of a profile: `linux.seccomp` of the OCI runtime spec, or Docker's format.

        `profile` is a path, or its JSON as a dict. Docker's profiles depend on where they are used:
        on the capabilities that the program's bounding set will have (by default none of them,
        which allows least), on the kernel's version and the machine (by default ours, as
        os.uname() has them). `listener` is told of the calls of SCMP_ACT_NOTIFY.

        It means what crun makes of it with the same libseccomp. Names that this does not know have
        no rule, as there; `skipped` lists them.

        Raises: DeclarationError for what is no profile; OSError for the file.
        """
        from clonekit.profiles import Profile

        read = Profile(profile, capabilities=capabilities, kernel=kernel, machine=machine)
        made = cls(
            *read.default, architectures=read.architectures, foreign="KILL_THREAD",
            flags=read.flags, best_effort=True,
        ).told(listener)  # fmt: skip
        made.skipped = read.unknown
        for action, names, comparisons in read.rules:
            for name in names:
                made._rules.setdefault(name, []).append((comparisons, action))  # noqa: SLF001 - our own
        return made

    def allow(self, *calls: str | Arg) -> Self:
        """Let these calls be made."""
        return self.answer("ALLOW", *calls)

    def errno(self, *calls: str | Arg, errno: int = _errno.EPERM) -> Self:
        """Let these calls fail with an errno. With 0, they do nothing, and say 0."""
        return self.answer("ERRNO", *calls, errno=errno)

    def kill(self, *calls: str | Arg) -> Self:
        """Kill the process that makes one of these, with SIGSYS."""
        return self.answer("KILL", *calls)

    def trap(self, *calls: str | Arg) -> Self:
        """Send the thread SIGSYS instead of these calls, which it may handle."""
        return self.answer("TRAP", *calls)

    def log(self, *calls: str | Arg) -> Self:
        """Let these calls be made, and log them."""
        return self.answer("LOG", *calls)

    def notify(self, *calls: str | Arg, to: Any = None) -> Self:
        """Let a supervisor answer these calls: `to` is its `clonekit.notify.Listener`.

        A filter has one listener, which needs to be named but once.
        """
        return self.told(to).answer("NOTIFY", *calls)

    def told(self, listener: Any) -> Self:
        """The same filter with this listener, or this filter if it is None."""
        if listener is None or listener is self.listener:
            return self
        if self.listener is not None:
            msg = "a filter has one listener; let it tell the calls of both apart"
            raise DeclarationError(msg)
        other = self._copy()
        other.listener = listener
        return other

    def answer(self, action: str, *calls: str | Arg, errno: int = _errno.EPERM) -> Self:
        """Give these calls any action by name, as the other methods do.

        `errno` is what ERRNO answers, and the message that TRACE gives.
        """
        code = action_of(action, errno)
        comparisons = tuple(sorted(arg.comparison for arg in calls if isinstance(arg, Arg)))
        names = [name for name in calls if not isinstance(name, Arg)]
        if not names:
            msg = f"{action.lower()}: name the calls that it is for, as {action.lower()}('read')"
            raise DeclarationError(msg)
        indices = [comparison[0] for comparison in comparisons]
        if len(indices) != len(set(indices)):
            msg = (
                f"{names[0]}: a rule compares an argument once, for both must hold; make two rules "
                "for one or the other"
            )
            raise DeclarationError(msg)
        other = self._copy()
        for name in names:
            if call_number(name) is not None:
                add(other._rules.setdefault(name, []), name, comparisons, code)  # noqa: SLF001 - our own
            elif self.best_effort:
                other.skipped += (name,)
            else:
                raise unknown_call(name)
        return other

    def _copy(self) -> Self:
        """Another with the same rules."""
        other = type(self).__new__(type(self))
        for field in Filter.__slots__:
            setattr(other, field, getattr(self, field))
        other._rules = {name: list(answers) for name, answers in self._rules.items()}  # noqa: SLF001 - our own
        other._compiled = None  # noqa: SLF001 - our own
        return other

    def _both(self) -> tuple[bytes, str]:
        """Compiled, once."""
        if self._compiled is None:
            self._compiled = compiled(
                self._default,
                self._foreign,
                self._architectures,
                [
                    (action, call_number(name), comparisons)  # type: ignore[misc] # it was known
                    for name, answers in self._rules.items()
                    for comparisons, action in answers
                    if action != self._default
                ],
            )
        return self._compiled

    def program(self) -> bytes:
        """Its instructions, as the kernel's struct sock_filter."""
        return self._both()[0]

    def explain(self) -> str:
        """Its rules as libseccomp has put them together, for people to read.

        See: seccomp_export_pfc(3).
        """
        return self._both()[1]

    @property
    def notifies(self) -> bool:
        """Whether it lets a supervisor answer some calls."""
        answers = (answer for rules in self._rules.values() for _, answer in rules)
        return NOTIFY in (self._default, *answers)

    def frozen(self) -> object:
        """What it compiles to, or None where that is not all of it."""
        return None if self.listener is not None else (self.flags, self.program())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filter) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        """What decides what it does."""
        return (
            self._default, self._foreign, self._architectures, self.flags, id(self.listener),
            *((name, *answers) for name, answers in self._rules.items()),
        )  # fmt: skip

    def __repr__(self) -> str:
        default = next(name for name in ACTIONS if self._default & ~0xFFFF == ACTIONS[name])
        count = sum(map(len, self._rules.values()))
        return f"<Filter of {count} rules, else {default}>"


def add(answers: list[Answer], name: str, comparisons: tuple[Comparison, ...], action: int) -> None:
    """One rule more for a call, unless another says otherwise."""
    for other, answer in answers:
        if answer != action and (other == comparisons or not other or not comparisons):
            msg = f"{name} has two answers for the same arguments; leave one of them"
            raise DeclarationError(msg)
    if (comparisons, action) not in answers:
        answers.append((comparisons, action))
