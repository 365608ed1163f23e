"""Steps in their final form.

What every program has, which descriptors must survive the vector, which values are inputs, and
from when our memory must be untraceable.
"""

from __future__ import annotations

import os
import signal
import sys
from itertools import takewhile

from clonekit.errors import DeclarationError
from clonekit.linux.abi import NUMBERS, call, ffi, lib
from clonekit.manners import (
    GUARDED_CALLS,
    JOINS,
    ORDERED,
    STARTED,
    Manner,
    refuse_record,
    refuse_step,
)
from clonekit.records import Call, ChildFd, Clone, Fd, Move, Slot
from clonekit.steps.descriptors import INHERIT, own_table, place_descriptors, targets_of
from clonekit.steps.execute import execute, stop_at_exec
from clonekit.steps.opening import receive_descriptors
from clonekit.steps.sandbox import set_attribute
from clonekit.steps.signals import (
    clear_handlers,
    mask_of,
    set_parent_death_signal,
    set_signal_mask,
)
from clonekit.steps.step import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clonekit.records import Record
    from clonekit.steps.step import Kind

#: The slot for the first descriptor that no step uses, where slots decide it.
ABOVE = Slot(".above")
#: How the slot begins that carries a cgroup's descriptor to the clone.
CGROUP = ".cgroup "
#: The moves of a vector that keeps what is inheritable.
NOT_PLACED: dict[int, Fd] = {}
MOST_STEPS = 1 << 16  # struct ck_record has 16 bits for the step's number
CLOSED_PHASES = ("landlock", "seccomp", "mask", "exec")
OWN_TABLE: Kind = own_table  # type: ignore[assignment] # what step() makes of a function
PLACE: Kind = place_descriptors  # type: ignore[assignment]
MASK: Kind = set_signal_mask  # type: ignore[assignment]
EXECUTE: Kind = execute  # type: ignore[assignment]
RECEIVE: Kind = receive_descriptors  # type: ignore[assignment]
STOP: Kind = stop_at_exec  # type: ignore[assignment]
INT = 0xFFFFFFFF
#: The mask at an exec that is to stop: ptrace tells of it by SIGTRAP.
ALL_BUT_TRAP = tuple(number for number in range(1, 65) if number != signal.SIGTRAP)
#: Where a child that waits keeps what it is driven by, if its limit allows that.
RESERVED = 200
#: Steps whose records depend on all the others.
ARRANGED = (OWN_TABLE, PLACE)
#: The slot for the child's end of the socket over which a child that waits is given descriptors.
CHANNEL = Slot(".channel")


class Arranged:
    """A program's records, step by step, and what is known of its descriptors.

    Attributes:
        manner: how the records reach the child.
        lists: the records of each step.
        clone: what is asked of the clone.
        kept: our descriptors that it uses, by number.
        given: of these, for a child that exists already, the slot in which it gets its own.
        moved: the numbers that the vector gives to descriptors that later steps or orders use.
        vector: which step is the vector, or -1.
        fd_slots: the inputs that are descriptors.
        above: the first number that nothing uses, or the slot that will hold it.
        inputs: the slots that no record makes.
        guard: how our memory is kept untraceable.

    Of a child that exists already, `numbers` are those of slots that are known.
    """

    __slots__ = (
        "_fds", "_makers", "_plain", "above", "clone", "fd_slots", "given", "guard", "inputs",
        "kept", "lists", "manner", "moved", "numbers", "vector",
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
        self.moved: dict[Fd, int] = {}
        self._makers: dict[Slot, int] = {}  # which step makes a slot
        self._fds: list[tuple[int, Fd]] = []  # which step reads a descriptor
        self._plain: list[tuple[int, Slot]] = []  # which step reads a slot that is no Fd
        self.vector = next((n for n, step in enumerate(steps) if step.kind is PLACE), -1)
        for number, step in enumerate(steps):
            if manner.exists and number == 0:  # what we give, which is not known yet
                self.lists.append([])
                continue
            refuse_step(step, manner)
            self.lists.append([] if step.kind in ARRANGED else self._made(step))
        vector = steps[self.vector].arguments[0] if self.vector >= 0 else INHERIT
        moves = NOT_PLACED if vector == INHERIT else targets_of(vector)
        if manner.exists:
            moves = self._give(moves)
        credentials: list[tuple[int, int]] = []
        for number, records in enumerate(self.lists):
            for at, record in enumerate(records):
                if type(record) is Call and record.name in GUARDED_CALLS:
                    credentials.append((number, at))
                self._note(record, number)
        if vector != INHERIT:
            self._refuse_plain(self.vector, steps)
        self._cross(moves, alive, limit)
        if steps[0].kind is OWN_TABLE:
            steps[0] = own_table(self.above)
        if self.given:
            steps[0] = receive_descriptors(CHANNEL, *(slot.name for slot in self.given.values()))
            self.lists[0] = list(steps[0].records())
            self._read(CHANNEL)
        self.guard = self._guard(credentials, steps)

    def _made(self, step: Step) -> list[Record]:
        """A step's records; what it asks of the clone is no record of the child's."""
        made: list[Record] = []
        for record in step.records():
            if type(record) is Clone:
                self._note_clone(record)
                continue
            refuse_record(record, step, self.manner)
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
        if type(record) is Call:
            values = record.operands
        elif record.to is None:  # type: ignore[union-attr]
            values = (record.value,)  # type: ignore[union-attr]
        else:
            values = ()
        for value in values:
            kind = type(value)
            if kind is int or kind is bytes:
                continue
            if kind is Fd:
                self._fds.append((step, value))  # type: ignore[arg-type]
                self._read(value.of)  # type: ignore[union-attr]
            elif isinstance(value, Slot):
                self._plain.append((step, value))
                self._read(value)
        result = record.to  # type: ignore[union-attr]
        if result is not None:
            if result in self.inputs:
                msg = f"{result} is used before the step that makes it; put that step first"
                raise DeclarationError(msg)
            self._makers.setdefault(result, step)

    def _refuse_plain(self, vector: int, steps: list[Step]) -> None:
        """Only an `Fd` is moved out of the vector's way: a number would mean another file."""
        for step, slot in self._plain:
            made = self._makers.get(slot, vector)
            if made < vector < step and steps[made].phase == "opening":
                msg = f"{steps[step]}: {slot} was opened before the vector; write Fd({slot})"
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
            self.inputs[of] = None

    def _cross(self, moves: dict[int, Fd], alive: Sequence[Slot], limit: int | None) -> None:
        """Place the vector, and move what is used after it out of its way."""
        makers, at = self._makers, self.vector
        for slot in alive:
            self._read(slot)
        used = [*alive, *(fd.of for _, fd in self._fds)]
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
            for step, fd in self._fds
            if step > at and makers.get(fd.of, -1) < at  # type: ignore[arg-type]
        )
        base = max(max(moves, default=-1) + 1, reserved_from(limit) if alive else 0)
        made_before = any(step < at for step in makers.values())
        tidy = None if made_before or self.above is ABOVE or self.manner.exists else floor
        known = {to: self._numbered(fd) for to, fd in moves.items()}
        later = map(self._numbered, crossing)
        self.lists[at] = list(PLACE.function(known, later, tidy_below=tidy, base=base))
        if not self.manner.exists:
            self.lists[0] = list(OWN_TABLE.function(self.above))
        if crossing:
            self.moved = {fd: base + n for n, fd in enumerate(crossing)}
            for records in self.lists[at + 1 :]:
                records[:] = [redirected(record, self.moved) for record in records]

    def _numbered(self, fd: Fd) -> Fd:
        """A descriptor whose number in the child is known, by that: it need not be lifted first."""
        return Fd(self.numbers.get(fd.of, fd.of))  # type: ignore[arg-type]

    def _guard(self, credentials: list[tuple[int, int]], steps: Sequence[Step]) -> int:
        """How our memory is kept untraceable, H7; puts the record that does it where it belongs.

        A join of a user namespace, or a new one made by a privileged parent, is guarded from
        before the clone: the kernel itself would not forbid it. A change of ids is guarded by a
        record before it, after what had to be written to /proc/self.
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
            self.lists[step].insert(at, untraceable())
        if self.vector >= 0 and dumps_end_all(os.uname().release):
            ends = [n for n, step in enumerate(steps) if step.phase in ("seccomp", "mask")]
            for number in ends[:1]:
                self.lists[number].insert(0, untraceable())
                places = [(number, 0)]
        if joins:
            return int(lib.CK_GUARDED_FROM_CLONE)
        return int(lib.CK_GUARDED if places else lib.CK_OPEN)

    def _lessened(self, credentials: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], bool]:
        """Where ids or capabilities change, and whether a user namespace is entered."""
        places = []
        joins = False
        for step, at in credentials:
            if joins_users(self.lists[step][at]):
                joins = True
            elif self.lists[step][at].name not in JOINS:  # type: ignore[union-attr]
                places.append((step, at))
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


def completed(steps: list[Step], manner: Manner, *, has_clone3: bool) -> list[Step]:
    """The caller's steps with those that every program has."""
    refuse_others(steps)
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
        first = beginning(manner, inherits=vector.arguments[0] == INHERIT, has_clone3=has_clone3)
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

    A change of credentials clears the signal, so it is set again after each. One that the caller
    declares after them is the program's own.
    """
    ours = not has_death_signal(steps)
    for n in reversed(range(len(steps))):
        if any(call.name in GUARDED_CALLS for call in calls_of(steps[n])):
            steps.insert(n + 1, set_parent_death_signal("KILL"))
    if any(step.kind is STOP for step in steps):
        steps[-2] = set_signal_mask(ALL_BUT_TRAP)
    elif ours:
        steps.insert(closing(steps), set_attribute("PR_SET_PDEATHSIG", 0))


def has_death_signal(steps: Sequence[Step]) -> bool:
    """Whether the caller has a parent-death signal for the program, after what would clear it."""
    found = False
    for step in steps:
        calls = calls_of(step)
        if any(call.name in GUARDED_CALLS for call in calls):
            found = False
        if any(
            call.name in {"prctl", NUMBERS["prctl"]}
            and call.operands[:1] == (lib.PR_SET_PDEATHSIG,)
            for call in calls
        ):
            found = True
    return found


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
        self.clears = not has_death_signal(steps)


def suspension(steps: Sequence[object]) -> Suspension | None:
    """What the caller's steps say of that, if they stop at the exec."""
    own = [step for step in steps if isinstance(step, Step)]
    return Suspension(own) if any(step.kind is STOP for step in own) else None


def refuse_others(steps: Sequence[object]) -> None:
    """A program is made of steps alone."""
    for step in steps:
        if not isinstance(step, Step):
            msg = f"{step!r} is no step; make one with a function of clonekit.steps"
            raise DeclarationError(msg)


def open_stdio() -> dict[int, int]:
    """Those of the descriptors 0, 1 and 2 that are open here."""
    open_bits = lib.ck_open_stdio()
    return {fd: fd for fd in range(3) if open_bits >> fd & 1}


def descriptors_of(record: Record) -> list[Fd]:
    """The descriptors that a record reads."""
    if type(record) is Call:
        return [value for value in record.operands if type(value) is Fd]
    return [record.value] if type(record) is Move and type(record.value) is Fd else []


def redirected(record: Record, moved: Mapping[Fd, int | Fd]) -> Record:
    """The record with each moved descriptor at its new number."""
    if type(record) is Call and any(
        type(value) is Fd and value in moved for value in record.operands
    ):
        return record.replaced(
            *(moved.get(value, value) if type(value) is Fd else value for value in record.operands)
        )
    if type(record) is Move and type(record.value) is Fd and record.value in moved:
        return Move(record.place, to=record.to, value=moved[record.value], width=record.width)
    return record


def joins_users(record: Record) -> bool:
    """Whether a call may put the child into another user namespace."""
    if type(record) is not Call:
        return False
    values = record.operands
    if record.name in JOINS[:2]:
        kinds = values[1] if len(values) > 1 else 0
        return type(kinds) is not int or kinds & INT == 0 or bool(kinds & lib.CLONE_NEWUSER)
    if record.name in JOINS[2:]:
        makes = not values or type(values[0]) is not int or bool(values[0] & lib.CLONE_NEWUSER)
        return makes and is_privileged()
    return False


def untraceable() -> Call:
    """No process without CAP_SYS_PTRACE may trace our memory, and no core is made of it."""
    return Call("prctl", lib.PR_SET_DUMPABLE, 0, 0, 0, 0)


def dumps_end_all(release: str) -> bool:
    """Before Linux 5.16 a core dump of the child ends every process that shares its memory: us."""
    major, minor = (int("".join(takewhile(str.isdigit, part))) for part in release.split(".")[:2])
    return (major, minor) < (5, 16)


def is_privileged() -> bool:
    """Whether we have what a process of our uid may lack: capabilities.

    Where our own uid owns our user namespace, each of its processes outside has them all there.
    """
    if os.geteuid() == 0:
        return True
    header = ffi.new("uint32_t[2]", [lib._LINUX_CAPABILITY_VERSION_3, 0])  # noqa: SLF001 - the kernel's own name
    data = ffi.new("uint32_t[6]")
    call("capget", int(ffi.cast("uintptr_t", header)), int(ffi.cast("uintptr_t", data)))
    _, permitted, _, _, permitted_high, _ = data
    return bool(permitted or permitted_high) and owner_of_namespace() != os.geteuid()


def owner_of_namespace() -> int:
    """The uid that made our user namespace; -1 where that cannot be told."""
    import fcntl

    try:
        with open("/proc/self/ns/user", "rb") as file:  # noqa: PTH123 - pathlib is slow to import
            return int.from_bytes(fcntl.ioctl(file, lib.NS_GET_OWNER_UID, bytes(4)), sys.byteorder)
    except OSError:
        return -1


def refuse_debug_dumps() -> None:
    """fs.suid_dumpable=1 makes memory traceable by the very change of ids that must not."""
    try:
        with open("/proc/sys/fs/suid_dumpable", "rb") as file:  # noqa: PTH123 - pathlib is slow to import
            value = file.read(1)
    except (FileNotFoundError, PermissionError):
        return
    if value == b"1":
        msg = (
            "the sysctl fs.suid_dumpable is 1, so a process of the new uid could trace our memory "
            "while the child shares it; set it to 0 or 2"
        )
        raise DeclarationError(msg)
