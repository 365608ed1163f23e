"""Steps for a child that exists already: what is compiled for it, and what comes of it."""

from __future__ import annotations

from clonekit.arrange import Arranged
from clonekit.compiled import Compiled
from clonekit.completion import CHANNEL, EXECUTE, completed, suspension
from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib, name_of
from clonekit.linux.descriptors import MAKERS
from clonekit.manners import STARTED
from clonekit.records import Call, ChildFd, Move, Scratch, Slot
from clonekit.steps.opening import receive_descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from clonekit.manners import Manner
    from clonekit.records import Record
    from clonekit.steps.step import Step

SCHEDULING = ("sched_setattr", "sched_setscheduler", "sched_setparam")
DUPLICATES = (lib.F_DUPFD, lib.F_DUPFD_CLOEXEC)


class Order(Compiled):
    """Steps that a child carries out at once.

    `known` is what the slots of earlier orders hold, and `reserved` where the child has what we
    keep there. Where the order ends with an exec, `alive` are the child's descriptors that must be
    there still if that fails; `limit` is the child's RLIMIT_NOFILE.

    Attributes:
        given: our descriptors that it needs, in the order in which they are to be sent.
        values: its input registers.
        argv: what it begins, where it ends with an exec.
        repeatable: a child in which it has failed may wait for another order.
        schedules: it may give the child another scheduling policy.
    """

    __slots__ = (
        "_buffers", "_closed", "_known", "_results", "argv", "arranged", "given",
        "repeatable", "schedules", "values",
    )  # fmt: skip

    def __init__(
        self,
        steps: Sequence[Step],
        manner: Manner,
        child: object = None,
        *,
        known: Mapping[str, ChildFd | int],
        reserved: Mapping[Slot, int],
        alive: Sequence[ChildFd] = (),
        limit: int | None = None,
    ) -> None:
        suspended = suspension(steps)
        has_clone3 = bool(lib.ck_has_clone3())
        steps = [*steps]
        if manner is STARTED and steps[-1].kind is EXECUTE:
            steps = completed(steps, manner, has_clone3=has_clone3)
        else:
            steps = [receive_descriptors(CHANNEL), *steps]
        numbers: dict[Slot, int] = {**reserved, **{slot: slot.number for slot in alive}}
        arranged = self.arranged = Arranged(
            steps, manner, (*reserved, *alive), numbers=numbers, limit=limit
        )
        self.argv: tuple[Any, ...] = ()
        if steps[-1].kind is EXECUTE:
            self.argv = tuple(steps[-1].arguments[0])
        self._known = known
        self._closed: list[Slot] = []
        self._buffers: list[tuple[Scratch, bytearray]] = []
        self._results: list[list[tuple[Slot, bool]]] = []
        if manner is not STARTED:
            for step, records in zip(steps[1:], arranged.lists[1:], strict=True):
                self._results.append(results_of(step, records))
                records[:] = [self._with_room(record) for record in records]
            arranged.lists[-1] += [Call("close", slot) for slot in arranged.given.values()]
        self._compile(arranged, steps, has_clone3=has_clone3)
        self.setup.suspension = suspended
        self.given = tuple(arranged.given)
        self.values = [self._value(slot, reserved, child) for slot in self.setup.inputs]
        calls = [record for made in arranged.lists for record in made if isinstance(record, Call)]
        self.schedules = any(name_of_call(call) in SCHEDULING for call in calls)
        self.repeatable = not (arranged.guard or suspended or any(map(filters, calls)))

    def _with_room(self, record: Record) -> Record:
        """A record whose bytearrays are rooms that are copied back into them."""
        if not isinstance(record, Call):
            return record
        if name_of_call(record) == "close":
            of = getattr(record.operands[0], "of", record.operands[0]) if record.operands else None
            if isinstance(of, Slot):
                self._closed.append(of)
        if not any(isinstance(value, bytearray) for value in record.operands):
            return record
        operands = []
        for value in record.operands:
            if isinstance(value, bytearray):
                room = Scratch(bytes(value))
                self._buffers.append((room, value))
                operands.append(room)
            else:
                operands.append(value)
        return record.replaced(*operands)

    def _value(self, slot: Slot, reserved: Mapping[Slot, int], child: object) -> int:
        """What an input holds."""
        if slot in reserved:
            return reserved[slot]
        value = slot if isinstance(slot, ChildFd) else self._known.get(slot.name)
        if value is None:
            msg = f"{slot} is made by no step of this child; make it first, or give a descriptor"
            raise DeclarationError(msg)
        if isinstance(value, ChildFd):
            if not value.belongs_to(child):
                msg = f"{value!r} is another child's; fetch() it, and give what that returns"
                raise DeclarationError(msg)
            if value.number < 0:
                msg = f"{slot!r} is closed in the child"
                raise DeclarationError(msg)
            return value.number
        return value

    def outcome(self, child: Any, registers: Any, scratch: bytes) -> list[Any]:
        """The result of each step, when the child has carried them all out.

        What a step opened is a `ChildFd` (a tuple of several), any other result that of its last
        call. Buffers get what the kernel wrote, and closed descriptors are closed.
        """
        of = self.setup.assembler.registers
        for room, buffer in self._buffers:
            at = self.setup.assembler.placed(room)
            buffer[: len(room.content)] = scratch[at : at + len(room.content)]
        results = []
        for slots in self._results:
            values: list[Any] = []
            for slot, is_descriptor in slots:
                number = registers[of[slot]]
                values.append(child.opened(number) if is_descriptor and number >= 0 else number)
                if slot.name:
                    child.names[slot.name] = values[-1]
            results.append(values[0] if len(values) == 1 else tuple(values) or None)
        for slot in self._closed:
            known = slot if isinstance(slot, ChildFd) else self._known.get(slot.name)
            if isinstance(known, ChildFd):
                known.number = -1
        return results


def results_of(step: Step, records: list[Record]) -> list[tuple[Slot, bool]]:
    """The slots that hold a step's result, and which of them are descriptors.

    Those that it names; else the result of its last call, which gets a slot here.
    """
    made = [
        (record.to, step.phase == "opening")
        for record in records
        if isinstance(record, Call | Move) and record.to is not None and record.to.name
    ]
    for n in reversed(range(len(records))):
        record = records[n]
        if isinstance(record, Call) and not made:
            slot = record.to or Slot()
            records[n] = record.replaced(to=slot)
            made = [(slot, makes_descriptor(record))]
    return made


def name_of_call(record: Call) -> str:
    """The name of its system call."""
    return record.name if isinstance(record.name, str) else name_of(record.name)


def filters(call: Call) -> bool:
    """Whether a call installs a filter, which could forbid what a child that waits has to do."""
    name = name_of_call(call)
    return name == "seccomp" or (name == "prctl" and call.operands[:1] == (lib.PR_SET_SECCOMP,))


def makes_descriptor(record: Call) -> bool:
    """Whether the call's result is a new descriptor."""
    name = name_of_call(record)
    if name == "fcntl":
        return len(record.operands) > 1 and record.operands[1] in DUPLICATES
    return name in MAKERS
