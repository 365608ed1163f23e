"""Steps in their final form.

What every program has, which descriptors must survive the vector, which values are inputs, and
from when our memory must be untraceable.
"""

from __future__ import annotations

import os
import sys
from itertools import takewhile

from clonekit.errors import DeclarationError
from clonekit.linux.abi import NUMBERS, call, ffi, lib
from clonekit.linux.shared_memory import CREDENTIAL_CALLS
from clonekit.records import Call, Clone, Fd, Move, Slot
from clonekit.steps.descriptors import INHERIT, own_table, place_descriptors, targets_of
from clonekit.steps.execute import execute
from clonekit.steps.signals import clear_handlers, set_signal_mask
from clonekit.steps.step import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from clonekit.records import Record
    from clonekit.steps.step import Kind

#: The slot for the first descriptor that no step uses, where slots decide it.
ABOVE = Slot(".above")
#: How the slot begins that carries a cgroup's descriptor to the clone.
CGROUP = ".cgroup "
MOST_STEPS = 1 << 16  # struct ck_record has 16 bits for the step's number
CLOSED_PHASES = ("landlock", "seccomp", "mask", "exec")
OWN_TABLE: Kind = own_table  # type: ignore[assignment] # what step() makes of a function
PLACE: Kind = place_descriptors  # type: ignore[assignment]
MASK: Kind = set_signal_mask  # type: ignore[assignment]
EXECUTE: Kind = execute  # type: ignore[assignment]
INT = 0xFFFFFFFF
#: Calls that may lead into another user namespace, by name and number.
JOINS = ("setns", NUMBERS["setns"], "unshare", NUMBERS["unshare"])
GUARDED_CALLS = frozenset(
    {*JOINS, *CREDENTIAL_CALLS, *(NUMBERS[name] for name in CREDENTIAL_CALLS)}
)


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

    __slots__ = (
        "_fds",
        "_makers",
        "_plain",
        "above",
        "clone",
        "fd_slots",
        "guard",
        "inputs",
        "kept",
        "lists",
    )

    def __init__(self, steps: list[Step]) -> None:
        self.lists: list[list[Record]] = []
        self.clone: list[Clone] = []
        self.inputs: dict[Slot, None] = {}
        self._makers: dict[Slot, int] = {}  # which step makes a slot
        self._fds: list[tuple[int, Fd]] = []  # which step reads a descriptor
        credentials: list[tuple[int, int]] = []
        vector = -1
        self._plain: list[tuple[int, Slot]] = []  # which step reads a slot that is no Fd
        for number, step in enumerate(steps):
            made: list[Record] = []
            if step.kind is PLACE:
                vector = number
            elif step.kind is not OWN_TABLE:
                for record in step.records():
                    if type(record) is Clone:
                        self._note_clone(record)
                        continue
                    if type(record) is Call and record.name in GUARDED_CALLS:
                        credentials.append((number, len(made)))
                    self._note(record, number)
                    made.append(record)
            self.lists.append(made)
        if steps[vector].arguments[0] != INHERIT:
            self._refuse_plain(vector, steps)
        self._cross(vector, steps[vector].arguments[0])
        if steps[0].kind is OWN_TABLE:
            steps[0] = own_table(self.above)
        self.guard = self._guard(credentials, steps)

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
            elif kind is Slot:
                self._plain.append((step, value))  # type: ignore[arg-type]
                self._read(value)  # type: ignore[arg-type]
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
        if type(of) is Slot and of not in self._makers:
            self.inputs[of] = None

    def _cross(self, at: int, vector: object) -> None:
        """Place the vector, and move what later steps use out of its way."""
        makers = self._makers
        moves = {} if vector == INHERIT else targets_of(vector)
        used = [fd.of for _, fd in self._fds]
        for fd in moves.values():
            if makers.get(fd.of, at) > at:  # type: ignore[arg-type]
                msg = f"fds: {fd.of} is made by a step that comes later; put that step first"
                raise DeclarationError(msg)
            self._read(fd.of)
            used.append(fd.of)
        self.kept = sorted({of for of in used if type(of) is int})
        self.fd_slots = [of for of in dict.fromkeys(used) if type(of) is Slot and of in self.inputs]
        floor = self.kept[-1] + 1 if self.kept else 0
        self.above: int | Slot = ABOVE if self.fd_slots else floor
        if vector == INHERIT:
            return
        if self.fd_slots:
            self.inputs[ABOVE] = None
        crossing = dict.fromkeys(
            fd
            for step, fd in self._fds
            if step > at and makers.get(fd.of, -1) < at  # type: ignore[arg-type]
        )
        made_before = any(step < at for step in makers.values())
        tidy = None if made_before or self.fd_slots else floor
        self.lists[at] = list(PLACE.function(vector, crossing, tidy_below=tidy))
        self.lists[0] = list(OWN_TABLE.function(self.above))
        if crossing:
            base = max(moves, default=-1) + 1
            moved = {fd: base + n for n, fd in enumerate(crossing)}
            for records in self.lists[at + 1 :]:
                records[:] = [redirected(record, moved) for record in records]

    def _guard(self, credentials: list[tuple[int, int]], steps: Sequence[Step]) -> int:
        """How our memory is kept untraceable, H7; puts the record that does it where it belongs.

        A join of a user namespace, or a new one made by a privileged parent, is guarded from
        before the clone: the kernel itself would not forbid it. A change of ids is guarded by a
        record before it, after what had to be written to /proc/self.
        """
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
        if places or joins:
            refuse_debug_dumps()
        if places:
            step, at = min(places)
            self.lists[step].insert(at, untraceable())
        if dumps_end_all(os.uname().release):
            closing = [n for n, step in enumerate(steps) if step.phase in ("seccomp", "mask")]
            self.lists[closing[0]].insert(0, untraceable())
            places = [(closing[0], 0)]
        if joins:
            return int(lib.CK_GUARDED_FROM_CLONE)
        return int(lib.CK_GUARDED if places else lib.CK_OPEN)

    def _writes_own_files(self) -> bool:
        """Whether a step opens a file of /proc/self for itself."""
        return any(
            type(record) is Call
            and record.name in {"openat", "openat2"}
            and any(type(v) is bytes and v.startswith(b"/proc/self/") for v in record.operands)
            for records in self.lists
            for record in records
        )


def cgroup_slot(fd: Fd) -> Slot:
    """The input that carries the cgroup's descriptor to the clone."""
    return fd.of if isinstance(fd.of, Slot) else Slot(f"{CGROUP}{fd.of}")


def completed(steps: list[Step], *, has_clone3: bool) -> list[Step]:
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
    if len(first) + len(steps) > MOST_STEPS:
        msg = f"{len(first) + len(steps)} steps are too many; a program has at most {MOST_STEPS}"
        raise DeclarationError(msg)
    return first + steps


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


def redirected(record: Record, moved: dict[Fd, int]) -> Record:
    """The record with each moved descriptor at its new number."""
    if type(record) is Call and any(
        type(value) is Fd and value in moved for value in record.operands
    ):
        return Call(
            record.name,
            *(moved.get(value, value) if type(value) is Fd else value for value in record.operands),
            to=record.to, expect=record.expect, tolerate=record.tolerate, flags=record.flags,
        )  # fmt: skip
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
