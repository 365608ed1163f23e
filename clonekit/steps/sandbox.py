"""The doors that close last: Landlock and seccomp; and calls that have no step of their own."""

from __future__ import annotations

import struct
from functools import lru_cache

from clonekit.errors import DeclarationError
from clonekit.linux.abi import NUMBERS, lib
from clonekit.records import Ask, Call, Data, Fd, Slot
from clonekit.steps.step import Option, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from clonekit.filters import Filter
    from clonekit.notify import Listener
    from clonekit.records import Operand, Records

INSTRUCTION_SIZE = 8
MOST_INSTRUCTIONS = 4096
#: Where a declaration's ruleset is between the step that makes it and the one that enforces it.
RULESET = Slot(".landlock")
#: What every program still does after a filter.
LAST_CALLS = ("rt_sigprocmask", "execve", "execveat")


def parse_rules(text: str) -> object:
    """`ro=/usr,rw=/tmp,tcp-connect=443`."""
    from clonekit.landlock import parse_landlock

    return parse_landlock(text)


def own_rules(value: object) -> object:
    """A declaration's `landlock`, if the child makes it; a descriptor may come to be another."""
    return value if hasattr(value, "made") else None


def to_make(value: object) -> Iterable[tuple[object, ...]]:
    """A declaration's `landlock`, if the child makes it: at a step of its own, while it can."""
    return [(value, RULESET)] if hasattr(value, "made") else []


def to_enforce(value: Any) -> Iterable[tuple[object, ...]]:
    """A declaration's `landlock`: what was made before, a descriptor of ours, or nothing."""
    if not hasattr(value, "made"):
        return [(value,)]
    return [(RULESET,)] if value.enforces() else []


@step(phase="rules", field="landlock", lasting=own_rules, each=to_make)
def make_ruleset(rules: Any, ruleset: Slot) -> Records:
    """Make a Landlock ruleset in the child: landlock_create_ruleset, openat, landlock_add_rule.

    `rules` is a `clonekit.Landlock`. Its paths are the child's at this point of the order.

    Raises: DeclarationError for what this kernel cannot restrict; ENOENT and others for a path,
        ELOOP for one over a symlink where none may be, EINVAL for rights that a file cannot have.
    Since: Linux 5.13. See: landlock_create_ruleset(2), landlock_add_rule(2).
    """
    yield from rules.made(ruleset)


@step(
    phase="landlock",
    field="landlock",
    lasting=own_rules,
    each=to_enforce,
    option=Option("ro=PATH,rw=PATH,...", parse_rules),
)
def restrict_with_landlock(ruleset: Any, flags: int = 0) -> Records:
    """Enforce Landlock rules, for good: landlock_restrict_self.

    A `clonekit.Landlock`, which the child makes here; the slot of one that it made before; or one
    that was made in the parent, a `clonekit.linux.landlock.Ruleset` or its descriptor. On the
    command line ro=PATH, rw=PATH, x=PATH (execution), tcp-bind=PORT, tcp-connect=PORT and their udp
    kin, scope=signal or abstract-unix-socket, and best-effort, with commas between.

    Raises: EPERM without no_new_privs or CAP_SYS_ADMIN, E2BIG above 16 layers, EOPNOTSUPP.
    Since: Linux 5.13. See: landlock_restrict_self(2).
    """
    if isinstance(ruleset, str | bytes | dict | list | tuple):
        msg = f"landlock is {ruleset!r}; give rules, as clonekit.Landlock(read=['/usr'])"
        raise DeclarationError(msg)
    made = Slot()
    records = list(ruleset.made(made)) if hasattr(ruleset, "made") else None
    if records == []:
        return
    yield from records or ()
    own = records is not None or ruleset == RULESET
    fd = Fd(made if records else ruleset)
    yield Call("landlock_restrict_self", fd, flags)
    if own:
        yield Call("close", fd)


def read_filter(path: str) -> bytes | Filter:
    """The filter that a file holds: instructions as struct sock_filter, or a profile in JSON."""
    with open(path, "rb") as file:  # noqa: PTH123 - pathlib is slow to import
        content = file.read()
    if content.lstrip()[:1] != b"{":
        return content
    from clonekit.filters import Filter
    from clonekit.profiles import parsed

    return Filter.from_oci(parsed(content, path))


@step(phase="seccomp", field="seccomp", lasting=True, asks=True, option=Option("FILE", read_filter))
def install_seccomp_filter(
    program: bytes | Filter, flags: int = 0, listener: Listener | None = None
) -> Records:
    """Install a filter of system calls, of a profile or as BPF instructions: seccomp.

    `program` is a `clonekit.Filter`, or instructions as the kernel's struct sock_filter. On the
    command line it is a file that holds these, or a profile in JSON (OCI's or Docker's, as for a
    program without capabilities).

    The `clonekit.notify.Listener` of a filter that has one, or `listener`, gets the descriptor over
    which the calls come that a supervisor is to answer. It takes the right to trace the child.

    What follows must pass it: rt_sigprocmask for the signal mask, then execve (execveat for a
    program given by descriptor). A filter that refuses these is refused before the spawn.

    Raises: EACCES without no_new_privs or CAP_SYS_ADMIN, EINVAL for a filter that does not check,
        EBUSY where the child has a filter with a listener already.
    Since: Linux 3.17, listener 5.0. See: seccomp(2).
    """
    if isinstance(program, str | dict | list | tuple):
        msg = f"seccomp is {program!r}; give a clonekit.Filter, as Filter.from_oci(path)"
        raise DeclarationError(msg)
    if not isinstance(program, bytes | bytearray):
        flags |= program.flags
        listener = listener or program.listener
        if listener is None and program.notifies:
            msg = f"{program!r} asks a supervisor; say which: told(clonekit.notify.Listener())"
            raise DeclarationError(msg)
        program = program.program()
    count, rest = divmod(len(program), INSTRUCTION_SIZE)
    if rest or not 0 < count <= MOST_INSTRUCTIONS:
        msg = (
            f"seccomp: {len(program)} bytes are no filter; give 1 to {MOST_INSTRUCTIONS} "
            f"instructions of {INSTRUCTION_SIZE} bytes each"
        )
        raise DeclarationError(msg)
    fprog = Data(struct.pack("<HxxxxxxQ", count, 0), {8: bytes(program)})
    if listener is None:
        yield Call("seccomp", lib.SECCOMP_SET_MODE_FILTER, flags, fprog)
        return
    about_exec = asks_of_last(bytes(program))
    slot = Slot()
    flags |= listener_flags()
    yield Ask(
        "fetch the seccomp listener: pidfd_getfd",
        lambda child: listener.take_from(child, slot, about_exec=about_exec),
        slot,
        meanwhile=Call("seccomp", lib.SECCOMP_SET_MODE_FILTER, flags, fprog, to=slot),
    )


def listener_flags() -> int:
    """A listener is asked for; once it has received a call, only death interrupts that."""
    flags: int = lib.SECCOMP_FILTER_FLAG_NEW_LISTENER
    killable = flags | lib.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
    from clonekit.linux.seccomp import seccomp_flags_available

    return killable if seccomp_flags_available(killable) else flags


@lru_cache(maxsize=16)
def asks_of_last(program: bytes) -> bool:
    """Whether a filter may ask its supervisor about what the child itself does after it."""
    from clonekit.linux.bpf import answers
    from clonekit.linux.seccomp import AUDIT_ARCH

    return any(
        answer & lib.SECCOMP_RET_ACTION_FULL == lib.SECCOMP_RET_USER_NOTIF
        for name in LAST_CALLS
        for answer in answers(program, AUDIT_ARCH, NUMBERS[name])
    )


def parse_prctl(text: str) -> tuple[object, ...]:
    """`PR_SET_NAME,123` or numbers."""
    option, *arguments = text.split(",")
    return option, *(int(argument, 0) for argument in arguments)


@step(
    phase="prctl",
    field="prctl",
    lasting=True,
    raw=True,
    each=lambda calls: [tuple(call) for call in calls],
    option=Option("OPTION[,ARG...]", parse_prctl, list),
)
def set_attribute(option: int | str, *arguments: Operand) -> Records:
    """Any prctl that has no step of its own, by name or number: prctl.

    Options that act on the memory that the child shares with its parent are refused.

    Raises: what the option raises. See: prctl(2).
    """
    if isinstance(option, str) and not option.isdecimal():
        number = getattr(lib, "PR_" + option.upper().removeprefix("PR_"), None)
        if not isinstance(number, int):
            msg = f"prctl: {option!r} is no option known here; give its number"
            raise DeclarationError(msg)
    else:
        number = int(option)
    yield Call("prctl", number, *arguments, *(0,) * (4 - len(arguments)))


@step(phase="prctl", raw=True)
def system_call(
    name: str | int,
    *operands: Operand,
    expect: int | None = None,
    tolerate: Iterable[int] = (),
    retry: bool = False,
    result: str | None = None,
) -> Records:
    """Any other system call, by name or number.

    Operands are integers, bytes (their address is passed), `Data`, `Scratch`, `Slot` and `Fd`.
    `expect` is the only result that is success, `tolerate` names errnos that are none, `result`
    names the slot for what it returns. Calls that change the shared memory are refused.

    Raises: what the call raises. See: syscalls(2).
    """
    if isinstance(name, int) and not 0 <= name < 1 << 31:
        msg = f"{name} cannot be the number of a system call"
        raise DeclarationError(msg)
    if isinstance(name, str) and name not in NUMBERS:
        msg = f"{name!r} is no system call of this machine; give its number"
        raise DeclarationError(msg)
    if len(operands) > 6:  # noqa: PLR2004 - the kernel's own limit
        msg = f"{name}: a system call has at most 6 operands, not {len(operands)}"
        raise DeclarationError(msg)
    errnos = tuple(tolerate)
    if len(errnos) > lib.CK_TOLERATED or not all(0 < number < 256 for number in errnos):  # noqa: PLR2004
        msg = f"{name}: tolerate at most {lib.CK_TOLERATED} errnos, each below 256"
        raise DeclarationError(msg)
    slot = None if result is None else Slot(result)
    yield Call(name, *operands, to=slot, expect=expect, tolerate=errnos, retry=retry)
