"""The manners in which records reach a child, and what each of them forbids.

A child of a vfork runs its whole program at once, and its parent's thread sleeps. One that is
driven runs beside its parent, within a deadline. One that waits carries out orders, and is started
in the end. In all of these it runs on our memory. Into one that is stopped after its exec, records
are injected: it has a memory of its own.
"""

from __future__ import annotations

import os

from clonekit.errors import DeclarationError
from clonekit.linux.abi import NUMBERS, lib, name_of
from clonekit.linux.shared_memory import (
    CREDENTIAL_CALLS,
    FLOW_CALLS,
    OOM_FILES,
    REFUSED_CALLS,
    REFUSED_FILES,
    REFUSED_KEYCTL,
    REFUSED_PRCTL,
)
from clonekit.records import Call, Data

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clonekit.records import Record
    from clonekit.steps.step import Step

SLICE = 50_000_000  # ns after which Python looks for signals, which may come just before a wait
C_INT = 0xFFFFFFFF  # prctl's option and keyctl's operation: the kernel does not see more
#: Calls that may lead into another user namespace, by name and number.
JOINS = ("setns", NUMBERS["setns"], "unshare", NUMBERS["unshare"])
GUARDED_CALLS = frozenset(
    {*JOINS, *CREDENTIAL_CALLS, *(NUMBERS[name] for name in CREDENTIAL_CALLS)}
)

#: The calls that open a file, and which of their operands is its path.
OPENING = {"open": 0, "creat": 0, "openat": 1, "openat2": 1}


class Manner:
    """One of them.

    Attributes:
        name: what it is called.
        holds: the thread that makes the child sleeps until its exec.
        exists: the child is there already, with a descriptor table of its own.
        shares: it runs on our memory.
        phases: those whose steps are refused, each with what to do instead.
    """

    __slots__ = ("exists", "holds", "name", "phases", "shares")

    def __init__(
        self,
        name: str,
        *,
        holds: bool = False,
        exists: bool = False,
        shares: bool = True,
        phases: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.holds = holds
        self.exists = exists
        self.shares = shares
        self.phases = phases or {}

    def __repr__(self) -> str:
        return f"<Manner {self.name}>"


_MADE = {
    "clone": "the child is made already; give it to nascent() or spawn()",
    "table": "the child has a descriptor table of its own already; leave it out",
}
_LESSER = "a child that waits on our memory never has lesser credentials; give it to start()"
#: A whole program in a child of vfork.
VFORKED = Manner("vforked", holds=True)
#: A whole program in a child that does not hold us: with a deadline, or to be suspended.
DRIVEN = Manner("driven")
#: What a child that waits does before it is started.
ORDERED = Manner(
    "ordered",
    exists=True,
    phases={
        **_MADE,
        "vector": "the vector is placed when the child is started; give it to start()",
        "ids": _LESSER,
        "capabilities": _LESSER,
        "parent": "until it is started, a child that waits ends with us; give it to start()",
        "seccomp": "a filter could forbid the calls by which the child waits; give it to start()",
        "mask": "signals stay blocked until the child is started; give it to start()",
        "exec": "start() begins the program",
    },
)
#: How a child that waits is started.
STARTED = Manner("started", exists=True, phases=_MADE)
#: What is done in a child that is stopped after its exec.
INJECTED = Manner(
    "injected",
    exists=True,
    shares=False,
    phases={
        **_MADE,
        "vector": "the program has its descriptors; use give(fd, at=number) for one more",
        "parent": "the program ends with us until resume(); declare it when it is made",
        "mask": "all signals are blocked until resume(); declare it when it is made",
        "exec": "the program has been loaded; resume() begins it",
    },
)


def deadline_of(value: object) -> float:
    """How many seconds a set-up or an order may take, checked."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        msg = f"deadline is {value!r}; give a number of seconds above 0, as 2.5"
        raise DeclarationError(msg)
    return float(value)


def refuse_step(step: Step, manner: Manner) -> None:
    """A step that this manner has no room for."""
    reason = manner.phases.get(step.phase)
    if reason:
        msg = f"{step}: {reason}"
        raise DeclarationError(msg)


def refuse_ask(step: Step, manner: Manner, *, in_stage: bool) -> None:
    """A question to a parent that sleeps, or that acts between two orders."""
    if in_stage:
        msg = (
            f"{step}: the parent cannot be asked from the first stage, which init, a setting of "
            "memory, or a PID or time namespace that is joined needs; leave one of them out"
        )
        raise DeclarationError(msg)
    if manner.holds:
        msg = f"{step}: its parent sleeps and cannot be asked; define the step with asks=True"
        raise DeclarationError(msg)
    if not manner.shares:
        msg = f"{step}: the child is made already; do what it asks for between two orders"
        raise DeclarationError(msg)


def refuse_apart(step: Step, manner: Manner) -> None:
    """A step that needs a memory of its own, in a child that waits on ours."""
    if manner.exists and manner.shares:
        msg = f"{step}: a child that waits is on our memory to the end; give it to spawn()"
        raise DeclarationError(msg)


def refuse_record(record: Record, step: Step, manner: Manner, *, shares: bool = True) -> None:
    """A call that would reach what is not the child's own; in the first stage its memory is."""
    if type(record) is not Call:
        return
    name = record.name if isinstance(record.name, str) else name_of(record.name)
    if name == "clone" and not step.kind.raw and not manner.shares:
        msg = f"{step}: a program that has been loaded cannot be forked; give it to spawn()"
        raise DeclarationError(msg)
    if step.kind.raw:
        reason = FLOW_CALLS.get(name) or refused_call(name, record, manner)
        if reason:
            msg = f"{name}: {reason}"
            raise DeclarationError(msg)
    if name in OPENING and manner.shares and shares:
        refuse_file(record, OPENING[name], manner)


def refused_call(name: str, record: Call, manner: Manner) -> str | None:
    """Why a call that the caller wrote is refused, if it is."""
    if name == "rt_sigprocmask" or (manner.shares and name in REFUSED_CALLS):
        return REFUSED_CALLS[name]
    if manner is ORDERED and name == "seccomp":
        return ORDERED.phases["seccomp"]
    if name not in {"prctl", "keyctl"} or not record.operands:
        return None
    operation = record.operands[0]
    if not isinstance(operation, int):
        return "what it does must be known before the spawn; give its number"
    if manner is ORDERED and name == "prctl":
        if operation & C_INT == lib.PR_SET_PDEATHSIG:
            return ORDERED.phases["parent"]
        if operation & C_INT == lib.PR_SET_SECCOMP:
            return ORDERED.phases["seccomp"]
    if not manner.shares:
        return None
    reason = (REFUSED_PRCTL if name == "prctl" else REFUSED_KEYCTL).get(operation & C_INT)
    return f"{operation}: {reason}" if reason else None


def refuse_file(record: Call, at: int, manner: Manner) -> None:
    """A file of /proc that writes the memory shared with the parent, or a setting kept with it.

    This keeps from mistakes. Who means it finds another way to name the file.
    """
    path, flags = (*record.operands[at:], 0)[:2]
    if type(path) is not bytes:
        return
    if type(flags) is Data:
        flags = int.from_bytes(flags.content[:8], "little")
    if record.name != "creat" and not (isinstance(flags, int) and flags & os.O_ACCMODE):
        return
    directory, _, name = os.path.normpath(path[:-1]).rpartition(b"/")
    if not directory.lstrip(b"/").startswith(b"proc/"):
        return
    reason = REFUSED_FILES.get(name) or (not manner.holds and OOM_FILES.get(name))
    if reason:
        msg = f"{os.fsdecode(path[:-1])}: {reason}"
        raise DeclarationError(msg)
