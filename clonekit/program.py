"""A list of steps becomes a flat program of system calls.

`Program` is immutable once made and may be spawned from many threads at once; what differs from
spawn to spawn is given as slots.
"""

from __future__ import annotations

import os
import signal

from clonekit.arrange import ABOVE, CGROUP, OWN_TABLE, Arranged, cgroup_slot, completed
from clonekit.errors import DeclarationError
from clonekit.linux.abi import ffi, lib
from clonekit.records import (
    CALLER_MASK,
    CLEARED_DISPOSITIONS,
    POINTERS,
    RECORD,
    Assembler,
    Clone,
    Fd,
)
from clonekit.steps.execute import execute, packed
from clonekit.steps.step import WRONG_TYPES
from clonekit.vforked import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, Self

    from clonekit.process import Process
    from clonekit.steps.execute import Text
    from clonekit.steps.step import Step
    from clonekit.vforked import Trace

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
    """

    __slots__ = (
        "assembler", "clone_flags", "fd_slots", "floor", "held", "image", "inputs", "owners",
        "pointers", "records", "scratch", "slots", "steps", "struct",
    )  # fmt: skip

    def __init__(self, arranged: Arranged, steps: Sequence[Step], *, has_clone3: bool) -> None:
        self.steps = tuple(steps)
        self.owners = [entry.owner for entry in arranged.clone if entry.owner is not None]
        self.inputs = tuple(arranged.inputs)
        self.slots = tuple(slot.name for slot in self.inputs if not slot.name.startswith("."))
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

    def _hold(self, memory: Any) -> Any:
        """Keep memory that the struct points at."""
        self.held.append(memory)
        return memory

    def _ask_of_clone(self, clone: Sequence[Clone], *, has_clone3: bool) -> None:
        """What the clone is told."""
        program = self.struct
        flags = lib.CLONE_VM | lib.CLONE_VFORK | lib.CLONE_PIDFD
        if self.steps[0].kind is OWN_TABLE:
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


class Program:
    """Steps compiled to system calls, ready to be spawned any number of times.

    `steps` run in the order given and end with `execute(...)`. Three steps are added where they
    are not named: the child's own descriptor table comes first; the descriptors 0, 1 and 2 are
    placed before anything of the sandbox closes; the caller's signal mask is set just before exec.

    Attributes:
        argv: what the program is started with.
        setup: all of it but the exec.

    Raises: DeclarationError, before any child is made.
    """

    __slots__ = ("_last", "argv", "image", "pointers", "records", "setup", "struct")

    def __init__(self, steps: Iterable[Step]) -> None:
        has_clone3 = bool(lib.ck_has_clone3())
        steps = completed(list(steps), has_clone3=has_clone3)
        arranged = Arranged(steps)
        setup = Setup(arranged, steps[:-1], has_clone3=has_clone3)
        assembler = setup.assembler.copy()
        for record in arranged.lists[-1]:
            assembler.emit(record, len(setup.steps))  # type: ignore[arg-type]
        pointers = b"".join([POINTERS.pack(*pair) for pair in assembler.pointers])
        self._last: Step | tuple[Any, ...] = steps[-1]
        self.argv: tuple[Any, ...] = tuple(steps[-1].arguments[0])
        self._link(setup, bytes(assembler.records), bytes(assembler.image), pointers)

    @classmethod
    def after(
        cls,
        setup: Setup,
        argv: Sequence[Text],
        executable: Text | None,
        env: Mapping[Text, Text] | None,
    ) -> Self:
        """The program of a setup and an exec by path: what `__init__` makes, by a shorter way."""
        program = cls.__new__(cls)
        program._last = (argv, executable, env)  # noqa: SLF001 - our own
        try:
            records, image, pointers = packed(
                setup.records, setup.image, setup.pointers, len(setup.steps), argv, executable, env
            )
        except WRONG_TYPES:
            list(execute(argv, executable=executable, env=env).records())  # says what is wrong
            raise
        program.argv = tuple(argv)
        program._link(setup, records, image, pointers)  # noqa: SLF001 - our own
        return program

    def _link(self, setup: Setup, records: bytes, image: bytes, pointers: bytes) -> None:
        """Give the image its addresses, and check that every record stays inside."""
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

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of the inputs that `spawn` must be given."""
        return self.setup.slots

    def spawn(self, **slots: object) -> Process:
        """Run the program in a new child, and come back when it has begun.

        `slots` gives each input of the program: descriptors (ours) or numbers. The calling thread
        waits, and signals wait with it, until exec; the GIL is released.

        Raises: SpawnError naming the step that failed; DeclarationError for slots.
        """
        return run(self, self._values(slots) if slots or self.setup.inputs else None, None)[0]

    def trace(self, **slots: object) -> tuple[Process, Trace]:
        """As `spawn`, with each call's result and time, which are taken without a system call."""
        process, trace = run(self, self._values(slots), [])
        return process, trace  # type: ignore[return-value]

    def explain(self) -> list[dict[str, object]]:
        """The program, one entry a system call in order: phase, step, syscall, args, text.

        `args` are the call's arguments: numbers, strings, lists of strings, `"$name"` for a
        register and `"&..."` for other memory. See `clonekit.explain`.
        """
        from clonekit.explain import entries

        return entries(self)

    def __repr__(self) -> str:
        return (
            f"<Program {list(self.argv)!r}: {len(self.setup.steps) + 1} steps, {len(self)} records>"
        )

    def _values(self, slots: dict[str, object]) -> list[int]:
        """The input registers of one spawn."""
        setup = self.setup
        if slots.keys() != set(setup.slots):
            missing = ", ".join(sorted(set(setup.slots) - slots.keys()))
            unknown = ", ".join(sorted(slots.keys() - set(setup.slots)))
            msg = "; ".join(
                [f"give the slot {missing}"] * bool(missing)
                + [f"the program has no slot {unknown}"] * bool(unknown)
            )
            raise DeclarationError(msg)
        values: dict[str, int] = {}
        for name, value in slots.items():
            values[name] = value if isinstance(value, int) else Fd(value).of  # type: ignore[assignment]
        for name in setup.fd_slots:
            if name in values:
                check_open(name, values[name])
        if ABOVE in setup.inputs:
            highest = [values.get(name, -1) + 1 for name in setup.fd_slots]
            values[ABOVE.name] = max([setup.floor, *highest])
        for slot in setup.inputs:
            if slot.name.startswith(CGROUP):
                values[slot.name] = int(slot.name.removeprefix(CGROUP))
        return [values.get(slot.name, -1) for slot in setup.inputs]


def check_open(name: str, fd: int) -> None:
    """Refuse a slot whose descriptor is not open."""
    try:
        os.get_inheritable(fd)
    except OSError:
        msg = f"slot {name}: descriptor {fd} is not open"
        raise DeclarationError(msg) from None


def refuse_for_clone2(flags: int) -> None:
    """clone(2) has no word for these."""
    for flag, field in NOT_IN_CLONE2:
        if flags & flag:
            msg = (
                f"{field} needs clone3, which is refused here (ENOSYS; a container's old seccomp "
                "profile does that); leave it out, or allow clone3"
            )
            raise DeclarationError(msg)
