"""Steps in their final form: what every program has, which descriptors must survive, which
values are inputs, and when our memory must be untraceable.
"""

from __future__ import annotations

import os

from clonekit.errors import DeclarationError
from clonekit.linux.abi import NUMBERS, lib
from clonekit.linux.shared_memory import CREDENTIAL_CALLS
from clonekit.records import Call, Clone, Fd, Move, Slot
from clonekit.steps.descriptors import INHERIT, own_table, place_descriptors, targets_of
from clonekit.steps.execute import execute
from clonekit.steps.signals import clear_handlers, set_signal_mask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from clonekit.records import Record
    from clonekit.steps.step import Kind, Step

#: The slot for the first descriptor that no step uses, where slots decide it.
ABOVE = Slot(".above")
#: How the slot begins that carries a cgroup's descriptor to the clone.
CGROUP = ".cgroup "
CLOSED_PHASES = ("landlock", "seccomp", "mask", "exec")
OWN_TABLE: Kind = own_table  # type: ignore[assignment] # what step() makes of a function
PLACE: Kind = place_descriptors  # type: ignore[assignment]
MASK: Kind = set_signal_mask  # type: ignore[assignment]
EXECUTE: Kind = execute  # type: ignore[assignment]


class Arranged:
    """A program's records, step by step, and what is known of its descriptors.

    Attributes:
        lists: the records of each step.
        clone: what is asked of the clone.
        kept: our descriptors that it uses, by number.
        fd_slots: the inputs that are descriptors.
        above: the first number that nothing uses, or the slot that will hold it.
        inputs: the slots that no record makes.
        guard: how our memory is kept untraceable.
    """

    __slots__ = ("above", "clone", "fd_slots", "guard", "inputs", "kept", "lists")

    def __init__(self, steps: list[Step]) -> None:
        self.lists: list[list[Record]] = []
        self.clone: list[Clone] = []
        vector = self._expand(steps)
        self._cross(vector, steps[vector].arguments[0])
        if steps[0].kind is OWN_TABLE:
            steps[0] = own_table(self.above)
        self.inputs = self._find_inputs()
        self.guard = guarded(self.lists, self.clone)

    def _expand(self, steps: Sequence[Step]) -> int:
        """Make every record but those of the vector; give the vector's place."""
        at = -1
        for number, step in enumerate(steps):
            made: list[Record] = []
            if step.kind is PLACE:
                at = number
            elif step.kind is not OWN_TABLE:
                for record in step.records():
                    if type(record) is Clone:
                        self.clone.append(record)
                    else:
                        made.append(record)
            self.lists.append(made)
        return at

    def _cross(self, at: int, vector: object) -> None:
        """Place the vector, and move what later steps use out of its way."""
        before, after = self.lists[:at], self.lists[at + 1 :]
        moves = {} if vector == INHERIT else targets_of(vector)
        used = [fd for records in self.lists for fd in descriptors(records)] + list(moves.values())
        made_before, made_ever = results(before), results(self.lists)
        self.kept = sorted({fd.of for fd in used if isinstance(fd.of, int)})
        slots = dict.fromkeys(fd.of for fd in used if isinstance(fd.of, Slot))
        self.fd_slots = [slot for slot in slots if slot not in made_ever]
        floor = self.kept[-1] + 1 if self.kept else 0
        self.above: int | Slot = ABOVE if self.fd_slots else floor
        if vector == INHERIT:
            return
        crossing = [
            fd
            for fd in dict.fromkeys(fd for records in after for fd in descriptors(records))
            if fd.of not in made_ever or fd.of in made_before
        ]
        tidy = None if made_before or self.fd_slots else floor
        self.lists[at] = list(PLACE.function(vector, crossing, tidy_below=tidy))
        self.lists[0] = list(OWN_TABLE.function(self.above))
        if crossing:
            base = max(moves, default=-1) + 1
            moved = {fd: base + n for n, fd in enumerate(crossing)}
            for records in after:
                records[:] = [redirected(record, moved) for record in records]

    def _find_inputs(self) -> list[Slot]:
        """The slots that are read and never made, in order of use."""
        inputs: dict[Slot, None] = {}
        made: set[Slot] = set()
        for records in self.lists:
            for record in records:
                for value in operands(record):
                    slot = value.of if type(value) is Fd else value
                    if type(slot) is Slot and slot not in made:
                        inputs[slot] = None
                made |= results([[record]])
        early = next((slot for slot in inputs if slot in made), None)
        if early is not None:
            msg = f"{early} is used before the step that makes it; put that step first"
            raise DeclarationError(msg)
        for entry in self.clone:
            if entry.cgroup is not None:
                inputs[cgroup_slot(entry.cgroup)] = None
        return list(inputs)


def cgroup_slot(fd: Fd) -> Slot:
    """The input that carries the cgroup's descriptor to the clone."""
    return fd.of if isinstance(fd.of, Slot) else Slot(f"{CGROUP}{fd.of}")


def completed(steps: list[Step], *, has_clone3: bool) -> list[Step]:
    """The caller's steps with those that every program has."""
    kinds = [step.kind for step in steps]
    if kinds.count(EXECUTE) != 1 or kinds[-1] is not EXECUTE:
        msg = "a program ends with one execute(argv) step; put it last"
        raise DeclarationError(msg)
    if MASK not in kinds:
        steps.insert(-1, set_signal_mask())
    elif kinds.count(MASK) > 1 or kinds[-2] is not MASK:
        msg = "signals stay blocked until the last step; put set_signal_mask() just before execute()"
        raise DeclarationError(msg)
    if PLACE not in kinds:
        at = next(n for n, step in enumerate(steps) if step.phase in CLOSED_PHASES)
        steps.insert(at, place_descriptors(open_stdio()))
    elif kinds.count(PLACE) > 1:
        msg = "a program has one vector of descriptors; give place_descriptors() once"
        raise DeclarationError(msg)
    first = []
    vector = next(step for step in steps if step.kind is PLACE)
    if vector.arguments[0] != INHERIT:
        first.append(own_table(0))
    if not has_clone3:
        first.append(clear_handlers())
    return first + steps


def open_stdio() -> dict[int, int]:
    """Those of the descriptors 0, 1 and 2 that are open here."""
    open_bits = lib.ck_open_stdio()
    return {fd: fd for fd in range(3) if open_bits >> fd & 1}


def operands(record: Record) -> Sequence[object]:
    """What a record reads."""
    if type(record) is Call:
        return record.operands
    return (record.value,) if type(record) is Move and record.to is None else ()


def descriptors(records: Sequence[Record]) -> list[Fd]:
    """The descriptors that records read."""
    return [value for record in records for value in operands(record) if type(value) is Fd]


def results(lists: Sequence[Sequence[Record]]) -> set[Slot]:
    """The slots that records make."""
    return {
        record.to
        for records in lists
        for record in records
        if type(record) is not Clone and record.to is not None  # type: ignore[union-attr]
    }


def redirected(record: Record, moved: dict[Fd, int]) -> Record:
    """The record with each moved descriptor at its new number."""
    if type(record) is Call and any(type(value) is Fd and value in moved for value in record.operands):
        return Call(
            record.name,
            *(moved.get(value, value) if type(value) is Fd else value for value in record.operands),
            to=record.to, expect=record.expect, tolerate=record.tolerate, flags=record.flags,
        )  # fmt: skip
    if type(record) is Move and type(record.value) is Fd and record.value in moved:
        return Move(record.place, to=record.to, value=moved[record.value], width=record.width)
    return record


def guarded(lists: Sequence[list[Record]], clone: Sequence[Clone]) -> int:
    """How our memory is kept untraceable, H7; puts the record that does it where it belongs.

    A join of a user namespace, or a new one made by root, is guarded from before the clone: the
    kernel itself would not forbid it. A change of ids is guarded by a record before it, after
    what had to be written to /proc/self.
    """
    guard = lib.CK_OPEN
    if os.geteuid() == 0 and any(entry.flags & lib.CLONE_NEWUSER for entry in clone):
        guard = lib.CK_GUARDED_FROM_CLONE
    placed = False
    for records in lists:
        for n, record in enumerate(records):
            if type(record) is not Call:
                continue
            nr = NUMBERS[record.name] if isinstance(record.name, str) else record.name
            if joins_users(nr, record.operands):
                guard = lib.CK_GUARDED_FROM_CLONE
            if nr in CREDENTIAL_CALLS and not placed:
                refuse_debug_dumps()
                records.insert(n, Call("prctl", lib.PR_SET_DUMPABLE, 0, 0, 0, 0))
                placed = True
                guard = max(guard, lib.CK_GUARDED)
                break
    return int(guard)


def joins_users(nr: int, values: Sequence[object]) -> bool:
    """Whether a call may put the child into another user namespace."""
    if nr == NUMBERS["setns"]:
        kinds = values[1] if len(values) > 1 else 0
        return not isinstance(kinds, int) or kinds == 0 or bool(kinds & lib.CLONE_NEWUSER)
    if nr == NUMBERS["unshare"]:
        return not isinstance(values[0], int) or bool(values[0] & lib.CLONE_NEWUSER)
    return False


def refuse_debug_dumps() -> None:
    """fs.suid_dumpable=1 makes memory traceable by the very change of ids that must not."""
    try:
        with open("/proc/sys/fs/suid_dumpable", "rb") as file:  # noqa: PTH123 - pathlib is slow to import
            value = file.read(1)
    except OSError:
        return
    if value == b"1":
        msg = (
            "the sysctl fs.suid_dumpable is 1, so a process of the new uid could trace our memory "
            "while the child shares it; set it to 0 or 2"
        )
        raise DeclarationError(msg)
