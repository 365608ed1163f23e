"""Steps in their final form.

Which descriptors must survive the vector, which values are inputs, and from when our memory must be
untraceable.
"""

from __future__ import annotations

import os

from clonekit.bridge import bridge
from clonekit.completion import CHANNEL, LOAD, OWN_TABLE, PLACE
from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib
from clonekit.linux.privilege import is_privileged
from clonekit.manners import (
    GUARDED_CALLS,
    JOINS,
    ORDERED,
    Manner,
    refuse_apart,
    refuse_ask,
    refuse_record,
    refuse_step,
)
from clonekit.passing import refuse_closed
from clonekit.records import (
    Ask,
    Call,
    ChildFd,
    Clone,
    Fd,
    OwnMemory,
    Slot,
    descriptors_of,
    read_by,
    redirected,
)
from clonekit.steps.descriptors import INHERIT, inherits, own_table, targets_of
from clonekit.steps.opening import receive_descriptors
from clonekit.trees import ROOT
from clonekit.untraceable import (
    checks_are_over,
    dumps_end_all,
    joins_users,
    refuse_debug_dumps,
    refuse_unreachable,
    untraceable,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from clonekit.records import Record
    from clonekit.steps.step import Step

#: The slot for the first descriptor that no step uses, where slots decide it.
ABOVE = Slot(".above")
#: How the slot begins that carries a cgroup's descriptor to the clone.
CGROUP = ".cgroup "
#: The moves of a vector that keeps what is inheritable.
NOT_PLACED: dict[int, Fd] = {}
#: Where a child that waits keeps what it is driven by, if its limit allows that.
RESERVED = 200
#: Steps whose records depend on all the others.
ARRANGED = (OWN_TABLE, PLACE)


class Arranged:
    """A program's records, step by step, and what is known of its descriptors.

    Attributes:
        manner: how the records reach the child.
        lists: the records of each step.
        clone: what is asked of the clone.
        kept: our descriptors that it uses, by number.
        given: of these, for a child that exists already, the slot in which it gets its own.
        moved: the numbers that the vector gives to descriptors that later steps or orders use.
        vector, vector_of: which step is the vector, or -1; what it is made of.
        stage: which step loads the first stage, or -1.
        carried: the slots that it gets the values of, in the order of its registers.
        fds: which step reads a descriptor, and which.
        fd_slots: the inputs that are descriptors.
        above: the first number that nothing uses, or the slot that will hold it.
        inputs: the slots that no record makes.
        guard: how our memory is kept untraceable.

    Of a child that exists already, `numbers` are those of slots that are known.
    """

    __slots__ = (
        "_makers", "_plain", "above", "carried", "clone", "fd_slots", "fds", "given", "guard",
        "inputs", "kept", "lists", "manner", "moved", "numbers", "stage", "vector", "vector_of",
    )  # fmt: skip

    def __init__(
        self,
        steps: list[Step],
        manner: Manner,
        alive: Sequence[Slot] = (),
        *,
        numbers: Mapping[Slot, int] | None = None,
        limit: int | None = None,
    ) -> None:
        self.manner = manner
        self.numbers = numbers or {}
        self.lists: list[list[Record]] = []
        self.clone: list[Clone] = []
        self.inputs: dict[Slot, None] = {}
        self.given: dict[int, Slot] = {}
        self.moved: dict[Fd, Any] = {}
        self._makers: dict[Slot, int] = {}  # which step makes a slot
        self.fds: list[tuple[int, Fd]] = []
        self.carried: tuple[Slot, ...] = ()
        self._plain: list[tuple[int, Slot]] = []  # which step reads a slot that is no Fd
        kinds = [step.kind for step in steps]
        self.vector = kinds.index(PLACE) if PLACE in kinds else -1
        self.stage = kinds.index(LOAD) if LOAD in kinds else -1
        for number, step in enumerate(steps):
            if manner.exists and number == 0:  # what we give, which is not known yet
                self.lists.append([])
                continue
            refuse_step(step, manner)
            self.lists.append([] if step.kind in ARRANGED else self._made(step))
        self.vector_of = vector = steps[self.vector].arguments[0] if self.vector >= 0 else INHERIT
        moves = NOT_PLACED if vector == INHERIT else targets_of(vector)
        if manner.exists:
            moves = self._give(moves)
        credentials = self._note_all()
        for at, what in ((self.vector, "vector"), (self.stage, "first stage")):
            if at >= 0 and not (at == self.vector and vector == INHERIT):
                self._refuse_plain(at, what, steps)
        self._cross(moves, alive, limit)
        if steps[0].kind is OWN_TABLE:
            steps[0] = own_table(self.above)
        if self.given:
            steps[0] = receive_descriptors(CHANNEL, *(slot.name for slot in self.given.values()))
            self.lists[0] = list(steps[0].records())
            self._read(CHANNEL)
        refuse_closed(self.lists, steps)
        self.guard = self._guard(credentials, steps)
        if self.stage >= 0:
            bridge(self, moves)

    def _note_all(self) -> list[tuple[int, int]]:
        """Remember what all records read and make; where credentials change on our memory."""
        credentials: list[tuple[int, int]] = []
        for number, records in enumerate(self.lists):
            on_ours = self.stage < 0 or number < self.stage
            for at, record in enumerate(records):
                if type(record) is Call and record.name in GUARDED_CALLS:
                    if on_ours:
                        credentials.append((number, at))
                    elif record.name not in JOINS:
                        refuse_debug_dumps()
                self._note(record, number)
        return credentials

    def _made(self, step: Step) -> list[Record]:
        """A step's records; what it asks of the clone is no record of the child's."""
        made: list[Record] = []
        in_stage = 0 <= self.stage < len(self.lists)
        for record in step.records():
            if type(record) is Clone:
                self._note_clone(record)
                continue
            if type(record) is OwnMemory:
                refuse_apart(step, self.manner)
                continue
            if type(record) is Ask:
                refuse_ask(step, self.manner, in_stage=in_stage)
                made += record.spread()
                continue
            refuse_record(record, step, self.manner, shares=not in_stage)
            made.append(record)
        return made

    def _give(self, moves: dict[int, Fd]) -> dict[int, Fd]:
        """Our descriptors become slots, which the child's first step fills with its own."""
        fds = [fd for records in self.lists for record in records for fd in descriptors_of(record)]
        for fd in (*fds, *moves.values()):
            if type(fd.of) is int:
                self.given.setdefault(fd.of, Slot(f".given {fd.of}"))
        slots = {Fd(number): Fd(slot) for number, slot in self.given.items()}
        for records in self.lists:
            records[:] = [redirected(record, slots) for record in records]
        for slot in self.given.values():
            self._makers[slot] = 0
        return moves and {to: slots.get(fd, fd) for to, fd in moves.items()}

    def _note(self, record: Record, step: int) -> None:
        """Remember what a record reads and makes."""
        for value in read_by(record):
            kind = type(value)
            if kind is int or kind is bytes:
                continue
            if kind is Fd:
                self.fds.append((step, value))  # type: ignore[arg-type]
                self._read(value.of)  # type: ignore[attr-defined]
            elif isinstance(value, Slot):
                self._plain.append((step, value))
                self._read(value)
        result = getattr(record, "to", None)
        if result is not None:
            if result in self.inputs:
                msg = f"{result} is used before the step that makes it; put that step first"
                raise DeclarationError(msg)
            self._makers.setdefault(result, step)

    def _refuse_plain(self, at: int, what: str, steps: list[Step]) -> None:
        """Only an `Fd` is moved out of the way or kept open: a number would mean another file."""
        for step, slot in self._plain:
            made = self._makers.get(slot, at)
            if made < at < step and steps[made].phase == "opening":
                msg = f"{steps[step]}: {slot} was opened before the {what}; write Fd({slot})"
                raise DeclarationError(msg)

    def _note_clone(self, record: Clone) -> None:
        """Remember what is asked of the clone."""
        self.clone.append(record)
        if record.cgroup is not None:
            self.inputs[cgroup_slot(record.cgroup)] = None

    def _read(self, of: int | Slot) -> None:
        """A slot that nobody has made yet is an input."""
        if isinstance(of, Slot) and of not in self._makers:
            if isinstance(of, ChildFd) and not self.manner.exists:
                msg = f"{of!r} is not ours; fetch() gives a descriptor of ours for the same file"
                raise DeclarationError(msg)
            if of == ROOT and not self.manner.exists:
                msg = 'there is no root to mount in; put new_root(...) first, "/" for the present'
                raise DeclarationError(msg)
            self.inputs[of] = None

    def _cross(self, moves: dict[int, Fd], alive: Sequence[Slot], limit: int | None) -> None:
        """Place the vector, and move what is used after it out of its way."""
        makers, at = self._makers, self.vector
        for slot in alive:
            self._read(slot)
        used = [*alive, *(fd.of for _, fd in self.fds)]
        for fd in moves.values():
            if makers.get(fd.of, at) > at:  # type: ignore[arg-type]
                msg = f"fds: {fd.of} is made by a step that comes later; put that step first"
                raise DeclarationError(msg)
            self._read(fd.of)
            used.append(fd.of)
        self.kept = sorted({of for of in used if type(of) is int})
        self.fd_slots = [
            of for of in dict.fromkeys(used) if isinstance(of, Slot) and of in self.inputs
        ]
        floor = self.kept[-1] + 1 if self.kept else 0
        self.above: int | Slot = ABOVE if self.fd_slots else floor
        if at < 0 or moves is NOT_PLACED:
            return
        if self.above is ABOVE and not self.manner.exists:
            self.inputs[ABOVE] = None
        crossing = dict.fromkeys(map(Fd, alive))
        crossing |= dict.fromkeys(
            fd
            for step, fd in self.fds
            if step > at and makers.get(fd.of, -1) < at  # type: ignore[arg-type]
        )
        if inherits(self.vector_of):
            self._keep_aside(moves, crossing)
            return
        base = max(max(moves, default=-1) + 1, reserved_from(limit) if alive else 0)
        made_before = any(step < at for step in makers.values())
        tidy = None if made_before or self.above is ABOVE or self.manner.exists else floor
        known = {to: self._numbered(fd) for to, fd in moves.items()}
        later = map(self._numbered, crossing)
        self.lists[at] = list(PLACE.function(known, later, tidy_below=tidy, base=base))
        if not self.manner.exists:
            self.lists[0] = list(OWN_TABLE.function(self.above))
        self._use_moved({fd: base + n for n, fd in enumerate(crossing)})

    def _use_moved(self, moved: Mapping[Fd, int | Fd]) -> None:
        """What comes after the vector finds its descriptors where that has put them."""
        self.moved = dict(moved)
        if moved:
            for records in self.lists[self.vector + 1 :]:
                records[:] = [redirected(record, moved) for record in records]

    def _keep_aside(self, moves: Mapping[int, Fd], crossing: Iterable[Fd]) -> None:
        """Where any number may be inherited, what is used later gets one that is free."""
        if self.manner.exists or self.stage >= 0:
            what = "a child that waits" if self.manner.exists else "a program with a first stage"
            msg = f"fds: {what} cannot inherit beside a vector; name its descriptors, without ..."
            raise DeclarationError(msg)
        aside = {fd: Slot() for fd in crossing}
        least = max(moves, default=-1) + 1
        self.lists[self.vector] = [
            *(Call("fcntl", fd, lib.F_DUPFD_CLOEXEC, least, to=slot) for fd, slot in aside.items()),
            *PLACE.function({**moves, ...: INHERIT}),
        ]
        self._use_moved({fd: Fd(slot) for fd, slot in aside.items()})

    def _numbered(self, fd: Fd) -> Fd:
        """A descriptor whose number in the child is known, by that: it need not be lifted first."""
        return Fd(self.numbers.get(fd.of, fd.of))  # type: ignore[arg-type]

    def _guard(self, credentials: list[tuple[int, int]], steps: Sequence[Step]) -> int:
        """How our memory is kept untraceable, H7; puts the records that do it where they belong.

        A join of a user namespace, or a new one made by a privileged parent, is guarded from
        before the clone: the kernel itself would not forbid it. A change of ids is guarded by
        records before it, after what had to be written to /proc/self; and so is a join of a child
        that exists, whose tracers may have begun to look at it: P12.
        """
        if not self.manner.shares:
            return int(lib.CK_OPEN)
        places, joins = self._lessened(credentials)
        if self.manner is ORDERED and (places or joins):
            step = places[0][0] if places else credentials[0][0]
            msg = f"{steps[step]}: {ORDERED.phases['ids']}"
            raise DeclarationError(msg)
        if places or joins:
            refuse_debug_dumps()
        if places:
            step, at = min(places)
            self.lists[step][at:at] = [untraceable(), checks_are_over()]
        if self.vector >= 0 and dumps_end_all(os.uname().release):
            shared = steps[: self.stage] if self.stage >= 0 else steps
            ends = [n for n, step in enumerate(shared) if step.phase in ("seccomp", "mask")]
            for number in ends[:1]:
                self.lists[number].insert(0, untraceable())
                places = [(number, 0)]
        if any(step.kind.asks for step in steps):
            refuse_unreachable(self.lists, steps, joins=joins)
        if joins:
            return int(lib.CK_GUARDED_FROM_CLONE)
        return int(lib.CK_GUARDED if places else lib.CK_OPEN)

    def _lessened(self, credentials: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], bool]:
        """Where credentials change in a child that exists, and whether a new one joins."""
        places = []
        joins = False
        for step, at in credentials:
            record = self.lists[step][at]
            if not joins_users(record):
                if record.name not in JOINS:  # type: ignore[union-attr]
                    places.append((step, at))
            elif self.manner.exists:
                places.append((step, at))
            else:
                joins = True
        if any(entry.flags & lib.CLONE_NEWUSER for entry in self.clone) and is_privileged():
            if os.geteuid() != 0 and self._writes_own_files():
                msg = (
                    "we hold capabilities without being root: a new user namespace must be kept "
                    "from its owner's tracing, and then it cannot write /proc/self; give up the "
                    "capabilities first, or leave the maps out"
                )
                raise DeclarationError(msg)
            joins = True
        return places, joins

    def _writes_own_files(self) -> bool:
        """Whether a step opens a file of /proc/self for itself."""
        return any(
            type(record) is Call
            and record.name in {"openat", "openat2"}
            and any(type(v) is bytes and v.startswith(b"/proc/self/") for v in record.operands)
            for records in self.lists
            for record in records
        )


def reserved_from(limit: int | None = None) -> int:
    """From which number on a child keeps what it is driven by, out of the way of the program's.

    `limit` is its RLIMIT_NOFILE, by default our own.
    """
    import resource

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    return min(RESERVED, soft // 2)


def cgroup_slot(fd: Fd) -> Slot:
    """The input that carries the cgroup's descriptor to the clone."""
    return fd.of if isinstance(fd.of, Slot) else Slot(f"{CGROUP}{fd.of}")
