"""The steps that every program has, beside those of the caller."""

from __future__ import annotations

import signal

from clonekit.errors import DeclarationError
from clonekit.linux.abi import NUMBERS, lib
from clonekit.manners import GUARDED_CALLS, STARTED, Manner
from clonekit.records import Call, OwnMemory, Slot
from clonekit.steps.descriptors import inherits, own_table, place_descriptors
from clonekit.steps.execute import execute, stop_at_exec
from clonekit.steps.memory import load_first_stage
from clonekit.steps.namespaces import join_namespaces
from clonekit.steps.opening import receive_descriptors
from clonekit.steps.sandbox import set_attribute
from clonekit.steps.signals import (
    clear_handlers,
    mask_of,
    set_parent_death_signal,
    set_signal_mask,
)
from clonekit.steps.step import Kind, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_STEPS = 1 << 16  # struct ck_record has 16 bits for the step's number
CLOSED_PHASES = ("landlock", "init", "seccomp", "mask", "exec")
OWN_TABLE: Kind = own_table  # type: ignore[assignment] # what step() makes of a function
PLACE: Kind = place_descriptors  # type: ignore[assignment]
MASK: Kind = set_signal_mask  # type: ignore[assignment]
EXECUTE: Kind = execute  # type: ignore[assignment]
LOAD: Kind = load_first_stage  # type: ignore[assignment]
JOIN: Kind = join_namespaces  # type: ignore[assignment]
STOP: Kind = stop_at_exec  # type: ignore[assignment]
#: The mask at an exec that is to stop: ptrace tells of it by SIGTRAP.
ALL_BUT_TRAP = tuple(number for number in range(1, 65) if number != signal.SIGTRAP)
#: The slot for the child's end of the socket over which a child that waits is given descriptors.
CHANNEL = Slot(".channel")


def needs_memory(step: Step) -> bool:
    """Whether a step needs a memory of the child's own."""
    return step.kind.apart and any(type(record) is OwnMemory for record in step.records())


def needs_stage(steps: Sequence[Step]) -> int:
    """The first step that needs a memory of the child's own, or -1.

    With the joins before it: an exec between two takes the capabilities that the first has given.
    """
    at = next((n for n, step in enumerate(steps) if needs_memory(step)), -1)
    while at > 0 and steps[at].kind is JOIN and steps[at - 1].kind is JOIN:
        at -= 1
    return at


def put_stage(steps: list[Step]) -> None:
    """Load the first stage where it is needed."""
    at = needs_stage(steps)
    if at < 0:
        return
    if any(step.kind is STOP for step in steps):
        msg = (
            f"{steps[at]}: a program that is suspended has no first stage; give it to do() when it "
            "is suspended, or leave suspended out"
        )
        raise DeclarationError(msg)
    steps.insert(at, load_first_stage())


def completed(steps: list[Step], manner: Manner, *, has_clone3: bool) -> list[Step]:
    """The caller's steps with those that every program has."""
    refuse_others(steps)
    if manner.shares and not manner.exists:
        put_stage(steps)
    kinds = [step.kind for step in steps]
    if kinds.count(EXECUTE) != 1 or kinds[-1] is not EXECUTE:
        msg = "a program ends with one execute(argv) step; put it last"
        raise DeclarationError(msg)
    if MASK not in kinds:
        steps.insert(-1, set_signal_mask())
    elif kinds.count(MASK) > 1 or kinds[-2] is not MASK:
        msg = (
            "signals stay blocked until the last step; put set_signal_mask() just before execute()"
        )
        raise DeclarationError(msg)
    if PLACE not in kinds:
        steps.insert(closing(steps), place_descriptors(open_stdio()))
    elif kinds.count(PLACE) > 1:
        msg = "a program has one vector of descriptors; give place_descriptors() once"
        raise DeclarationError(msg)
    if not manner.holds:
        keep_to_parent(steps)
    first = [receive_descriptors(CHANNEL)] if manner is STARTED else []
    vector = next(step for step in steps if step.kind is PLACE)
    if not manner.exists:
        first = beginning(manner, inherits=inherits(vector.arguments[0]), has_clone3=has_clone3)
    if len(first) + len(steps) > MOST_STEPS:
        msg = f"{len(first) + len(steps)} steps are too many; a program has at most {MOST_STEPS}"
        raise DeclarationError(msg)
    return first + steps


def beginning(manner: Manner, *, inherits: bool, has_clone3: bool) -> list[Step]:
    """What every new child does first."""
    first = [] if inherits else [own_table(0)]
    if not has_clone3:
        first.append(clear_handlers())
    if not manner.holds:
        first.append(set_parent_death_signal("KILL"))
    return first


def closing(steps: Sequence[Step]) -> int:
    """Where the sandbox begins to close: the place for what must still be allowed."""
    return next(n for n, step in enumerate(steps) if step.phase in CLOSED_PHASES)


def keep_to_parent(steps: list[Step]) -> None:
    """H11: a child that does not hold us ends with us, until its program begins or it is held.

    A change of credentials clears the signal, so it is set again after each, up to where the caller
    declares one of the program's own. Otherwise it is taken away when nothing sets it any more.
    """
    declared = next((n for n, step in enumerate(steps) if sets_death_signal(step)), len(steps))
    ours = declared == len(steps)
    again = set_parent_death_signal("KILL")
    for n in reversed(range(declared)):
        changes = any(call.name in GUARDED_CALLS for call in calls_of(steps[n]))
        if changes or steps[n].kind is LOAD:  # its exec may give root its capabilities again
            steps.insert(n + 1, again)
    last = max((n + 1 for n, step in enumerate(steps) if step is again), default=0)
    if any(step.kind is STOP for step in steps):
        steps[-2] = set_signal_mask(ALL_BUT_TRAP)
    elif ours:
        steps.insert(max(closing(steps), last), set_attribute("PR_SET_PDEATHSIG", 0))


def sets_death_signal(step: Step) -> bool:
    """Whether a step declares a parent-death signal."""
    return any(
        call.name in {"prctl", NUMBERS["prctl"]} and call.operands[:1] == (lib.PR_SET_PDEATHSIG,)
        for call in calls_of(step)
    )


def calls_of(step: Step) -> list[Call]:
    """The calls of a step that does not depend on the others."""
    if step.phase in {"clone", "table", "vector", "exec"}:
        return []
    return [record for record in step.records() if type(record) is Call]


class Suspension:
    """How a program that stops at its exec is let go.

    Attributes:
        mask: the signal mask that it then has, or None for that of whoever made it.
        clears: whether its parent-death signal is ours, to be cleared.
    """

    __slots__ = ("clears", "mask")

    def __init__(self, steps: Sequence[Step]) -> None:
        masks = [step for step in steps if step.kind is MASK]
        names = [*masks[-1].arguments, *masks[-1].keywords.values()] if masks else []
        self.mask = None if names in ([], [None]) else mask_of(names[0])
        self.clears = not any(map(sets_death_signal, steps))


def suspension(steps: Sequence[object]) -> Suspension | None:
    """What the caller's steps say of that, if they stop at the exec."""
    own = [step for step in steps if isinstance(step, Step)]
    return Suspension(own) if any(step.kind is STOP for step in own) else None


def refuse_others(steps: Sequence[object]) -> None:
    """A program is made of steps alone."""
    for step in steps:
        if isinstance(step, Step):
            continue
        msg = f"{step!r} is no step; make one with a function of clonekit.steps"
        if isinstance(step, Kind):
            msg = f"{step!r} wants its arguments; call it, as {step.name}(...)"
        elif isinstance(step, list | tuple):
            msg = f"{step!r} is a list; give each step by itself, as do(*steps)"
        raise DeclarationError(msg)


def open_stdio(open_bits: int | None = None) -> dict[int, int]:
    """Those of the descriptors 0, 1 and 2 that are open here and not close-on-exec.

    `open_bits` is what `ck_open_stdio` has said, where that was asked already.
    """
    bits = lib.ck_open_stdio() if open_bits is None else open_bits
    return {fd: fd for fd in range(3) if bits >> fd & 1}
