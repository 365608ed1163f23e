"""Steps laid out as the machine reads them, whoever drives the child that runs them."""

from __future__ import annotations

import os
import signal

from clonekit.arrange import CGROUP, Arranged, cgroup_slot
from clonekit.assembler import Assembler
from clonekit.completion import EXECUTE, OWN_TABLE
from clonekit.errors import DeclarationError
from clonekit.linux.abi import NUMBERS, ffi, lib
from clonekit.linux.block import Owned, here
from clonekit.records import (
    CALLER_MASK,
    CLEARED_DISPOSITIONS,
    EXEC,
    POINTERS,
    RECORD,
    Clone,
)
from clonekit.steps.execute import execute
from clonekit.steps.signals import PARENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from clonekit.completion import Suspension
    from clonekit.steps.step import Step

SIGNAL_OF_END = signal.SIGCHLD.value
NOT_IN_CLONE2 = (
    (lib.CLONE_INTO_CGROUP, "cgroup"),
    (lib.CLONE_NEWTIME, "namespaces: time"),
    (lib.CLONE_AUTOREAP, "autoreap"),
    (lib.CLONE_NNP, "clone_nnp"),
    (lib.CLONE_PIDFD_AUTOKILL, "autokill"),
    (lib.CLONE_EMPTY_MNTNS, "empty_mounts"),
)


class Setup:
    """All of a program that comes before its exec, laid out as the machine reads it.

    Many programs may share one: it holds nothing of argv or the environment.

    Attributes:
        names: those of the inputs, in their order.
        slots: those that a spawn must be given.
        known: the values of those that are the same at every spawn.
        rest: the same of what the first stage carries out, if there is one.
        deadline: how many seconds it may take, or None where it holds the thread that spawns.
        suspension: for a program that stops at its exec, how it is let go.
    """

    __slots__ = (
        "assembler", "clone_flags", "deadline", "fd_slots", "floor", "has_parent", "held", "image",
        "inputs", "known", "manner", "names", "owners", "pointers", "records", "rest", "scratch",
        "slots", "steps", "struct", "suspension",
    )  # fmt: skip

    def __init__(self, arranged: Arranged, steps: Sequence[Step], *, has_clone3: bool) -> None:
        self.steps = tuple(steps)
        self.manner = arranged.manner
        self.deadline: float | None = None
        self.suspension: Suspension | None = None
        self.rest: Setup | None = None
        self.owners = [entry.owner for entry in arranged.clone if entry.owner is not None]
        self.inputs = tuple(arranged.inputs)
        self.names = tuple(slot.name for slot in self.inputs)
        self.slots = frozenset(name for name in self.names if not name.startswith("."))
        self.known = {
            name: int(name.removeprefix(CGROUP)) for name in self.names if name.startswith(CGROUP)
        }
        self.has_parent = PARENT in self.inputs
        self.fd_slots = tuple(slot.name for slot in arranged.fd_slots)
        self.floor = arranged.kept[-1] + 1 if arranged.kept else 0
        assembler = self.assembler = Assembler(self.inputs)
        for number, records in enumerate(arranged.lists[:-1]):
            for record in records:
                assembler.emit(record, number)  # type: ignore[arg-type]
        self.records = bytes(assembler.records)
        self.image = bytes(assembler.image)
        self.pointers = b"".join([POINTERS.pack(*pair) for pair in assembler.pointers])
        self.scratch = bytes(assembler.scratch)
        program = self.struct = ffi.new("struct ck_program *")
        self._ask_of_clone(arranged.clone, has_clone3=has_clone3)
        self.held: list[object] = []
        if self.scratch:
            program.scratch = self._hold(ffi.from_buffer("uint8_t[]", self.scratch))
            program.scratch_size = len(self.scratch)
        if assembler.relocations:
            relocations = ffi.new("struct ck_relocation[]", assembler.relocations)
            program.relocations = self._hold(relocations)
            program.relocation_count = len(assembler.relocations)
        if arranged.kept:
            program.kept = self._hold(ffi.new("int32_t[]", arranged.kept))
            program.kept_count = len(arranged.kept)
        program.register_count = len(assembler.registers)
        program.input_count = len(self.inputs)
        program.mask_at = assembler.placed(CALLER_MASK)
        program.dispositions_at = assembler.placed(CLEARED_DISPOSITIONS)
        program.guard = arranged.guard
        program.asleep = any(step.phase == "scheduling" for step in self.steps)

    def _hold(self, memory: Any) -> Any:
        """Keep memory that the struct points at."""
        self.held.append(memory)
        return memory

    def _ask_of_clone(self, clone: Sequence[Clone], *, has_clone3: bool) -> None:
        """What the clone is told."""
        program = self.struct
        flags = lib.CLONE_VM | lib.CLONE_PIDFD
        flags |= lib.CLONE_VFORK if self.manner.holds else lib.CLONE_CHILD_CLEARTID
        if self.steps and self.steps[0].kind is OWN_TABLE:
            flags |= lib.CLONE_FILES
        if has_clone3:
            flags |= lib.CLONE_CLEAR_SIGHAND
        program.exit_signal = SIGNAL_OF_END
        program.cgroup = -1
        for entry in clone:
            flags |= entry.flags
            if entry.exit_signal is not None:
                program.exit_signal = entry.exit_signal
            if entry.cgroup is not None:
                program.cgroup = self.inputs.index(cgroup_slot(entry.cgroup))
        if not has_clone3:
            refuse_for_clone2(flags)
        program.without_clone3 = not has_clone3
        program.clone_flags = self.clone_flags = flags


class OurPidfd(Owned):
    """A pidfd of ours, for one spawn: it closes, too, with whoever is interrupted."""

    __slots__ = ("_open",)

    def __init__(self) -> None:
        self._open: list[int] = []
        self._maker = here()
        self._open += map(os.pidfd_open, [os.getpid()])  # at once: no handler comes between

    @property
    def fd(self) -> int:
        """Its number."""
        return self._open[0]

    def close(self) -> None:
        """Close it."""
        if self._open:
            os.close(self._open.pop())


class Compiled:
    """A list of steps as records, an image and a template of scratch; explained from these.

    Attributes:
        setup: all of it but the last step.
        rest: the part that the first stage carries out, if there is one.
    """

    __slots__ = ("_last", "image", "pointers", "records", "rest", "setup", "struct")

    def _compile(self, arranged: Arranged, steps: Sequence[Step], *, has_clone3: bool) -> None:
        """Lay out the setup, and an exec after it, which makes no slots."""
        self._last: Step | tuple[Any, ...] | None = steps[-1]
        if steps[-1].kind is not EXECUTE:
            self._last = None
            steps = [*steps, steps[-1]]
            arranged.lists.append([])
        setup = Setup(arranged, steps[:-1], has_clone3=has_clone3)
        assembler = setup.assembler.copy()
        for record in arranged.lists[-1]:
            assembler.emit(record, len(setup.steps))  # type: ignore[arg-type]
        pointers = b"".join([POINTERS.pack(*pair) for pair in assembler.pointers])
        self._link(setup, bytes(assembler.records), bytes(assembler.image), pointers)

    def is_exec(self, record: int) -> bool:
        """Whether this record begins a program."""
        return bool(RECORD.unpack_from(self.records, record * RECORD.size)[1] & EXEC)

    def _link(self, setup: Setup, records: bytes, image: bytes, pointers: bytes) -> None:
        """Give the image its addresses, and check that every record stays inside."""
        self.rest: Any = None
        self.setup = setup
        self.records = records
        self.pointers = pointers
        self.image = ffi.new("uint8_t[]", image)
        self.struct = ffi.new("struct ck_program *")
        wrong = lib.ck_link(
            self.struct, setup.struct, records, len(records), self.image, len(image), pointers,
            len(pointers) // POINTERS.size,
        )  # fmt: skip
        if wrong >= 0:
            msg = f"record {wrong} of {self.steps[self.step_of(wrong)]} reaches outside its program"
            raise DeclarationError(msg)

    @property
    def steps(self) -> tuple[Step, ...]:
        """All its steps, those that were added too."""
        last = self._last
        if last is None:
            return self.setup.steps
        if type(last) is tuple:
            argv, *of_exec = last
            given = zip(("executable", "env"), of_exec, strict=True)
            last = execute(argv, **{name: value for name, value in given if value is not None})
        return (*self.setup.steps, last)  # type: ignore[arg-type]

    def step_of(self, record: int) -> int:
        """The number of the step, from 0, that a record belongs to."""
        return int(RECORD.unpack_from(self.records, record * RECORD.size)[2])

    def __len__(self) -> int:
        """How many records it has."""
        return len(self.records) // RECORD.size

    def explain(self) -> list[dict[str, object]]:
        """The program, one entry a system call in order: phase, step, syscall, args, text.

        `args` are the call's arguments: numbers, strings, lists of strings, `"$name"` for a
        register and `"&..."` for other memory. What the parent does is an entry without `syscall`,
        whose `parent` says what. See `clonekit.explain`.
        """
        from clonekit.explain import entries

        return entries(self)

    def with_parent(self, values: list[int]) -> tuple[OurPidfd | None, list[int]]:
        """A pidfd of ours for the child to see whether we live, if it does; the input registers."""
        inputs = self.setup.inputs
        if not self.setup.has_parent:
            return None, values
        parent = OurPidfd()
        values = list(values)
        for n, slot in enumerate(inputs):
            if slot == PARENT:
                values[n] = parent.fd
            elif slot.name == ".above":
                values[n] = max(values[n], parent.fd + 1)
        return parent, values


def immediate(name: str, *values: int) -> Any:
    """A record by itself: a call of these values."""
    record = ffi.new("struct ck_record *")
    record.kind, record.nr, record.result = lib.CK_CALL, NUMBERS[name], lib.CK_NOWHERE
    record.operand[0 : len(values)] = values
    return record


def refuse_for_clone2(flags: int) -> None:
    """clone(2) has no word for these."""
    for flag, field in NOT_IN_CLONE2:
        if flags & flag:
            msg = (
                f"{field} needs clone3, which is refused here (ENOSYS; a container's old seccomp "
                "profile does that); leave it out, or allow clone3"
            )
            raise DeclarationError(msg)
