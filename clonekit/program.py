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
from clonekit.records import CALLER_MASK, CLEARED_DISPOSITIONS, Assembler, Clone, Fd, Slot
from clonekit.vforked import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from clonekit.process import Process
    from clonekit.records import Record
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


class Program:
    """Steps compiled to system calls, ready to be spawned any number of times.

    `steps` run in the order given and end with `execute(...)`. Three steps are added where they
    are not named: the child's own descriptor table comes first; the descriptors 0, 1 and 2 are
    placed before anything of the sandbox closes; the caller's signal mask is set just before exec.

    Raises: DeclarationError, before any child is made.
    """

    __slots__ = (
        "_fd_slots", "_floor", "_held", "_inputs", "_struct", "argv", "clone_flags", "image", "image_base",
        "inputs", "owners", "records", "registers", "scratch", "step_of", "steps",
    )  # fmt: skip

    def __init__(self, steps: Iterable[Step]) -> None:
        has_clone3 = bool(lib.ck_has_clone3())
        steps = completed(list(steps), has_clone3=has_clone3)
        arranged = Arranged(steps)
        self.steps: tuple[Step, ...] = tuple(steps)
        self.argv: tuple[Any, ...] = tuple(steps[-1].arguments[0])
        self.owners = [entry.owner for entry in arranged.clone if entry.owner is not None]
        self._inputs = tuple(arranged.inputs)
        self.inputs: tuple[str, ...] = tuple(
            slot.name for slot in arranged.inputs if not slot.name.startswith(".")
        )
        self._fd_slots = tuple(slot.name for slot in arranged.fd_slots)
        self._floor = arranged.kept[-1] + 1 if arranged.kept else 0
        assembler = Assembler(arranged.inputs)
        self.step_of: list[int] = []
        for number, records in enumerate(arranged.lists):
            for record in records:
                assembler.emit(record, number)  # type: ignore[arg-type]
                self.step_of.append(number)
        self.registers: list[Slot] = list(assembler.registers)
        self._build(
            assembler, arranged.clone, arranged.guard, arranged.kept, without_clone3=not has_clone3
        )

    def _build(
        self,
        assembler: Assembler,
        clone: Sequence[Clone],
        guard: int,
        kept: Sequence[int],
        *,
        without_clone3: bool,
    ) -> None:
        """Lay the program out as the machine reads it."""
        flags, exit_signal = lib.CLONE_VM | lib.CLONE_VFORK | lib.CLONE_PIDFD, SIGNAL_OF_END
        if self.steps[0].kind is OWN_TABLE:
            flags |= lib.CLONE_FILES
        if not without_clone3:
            flags |= lib.CLONE_CLEAR_SIGHAND
        cgroup = -1
        for entry in clone:
            flags |= entry.flags
            if entry.exit_signal is not None:
                exit_signal = entry.exit_signal
            if entry.cgroup is not None:
                cgroup = self._inputs.index(cgroup_slot(entry.cgroup))
        if without_clone3:
            refuse_for_clone2(flags)
        self.clone_flags = flags
        self.records = bytes(assembler.records)
        self.scratch = bytes(assembler.scratch)
        self.image = assembler.image or bytearray(8)
        image = ffi.from_buffer(self.image)
        self.image_base = int(ffi.cast("uintptr_t", image))
        if assembler.pointers:
            pointers = ffi.new("struct ck_pointers[]", assembler.pointers)
            lib.ck_link(image, pointers, len(assembler.pointers))
        struct = self._struct = ffi.new("struct ck_program *")
        held = [ffi.from_buffer("struct ck_record[]", self.records), image]
        struct.records, struct.image = held
        struct.count = len(self.step_of)
        struct.image_size = len(self.image)
        struct.clone_flags = flags
        struct.exit_signal = exit_signal
        if self.scratch:
            held.append(ffi.from_buffer("uint8_t[]", self.scratch))
            struct.scratch = held[-1]
            struct.scratch_size = len(self.scratch)
        if assembler.relocations:
            held.append(ffi.new("struct ck_relocation[]", assembler.relocations))
            struct.relocations = held[-1]
            struct.relocation_count = len(assembler.relocations)
        if kept:
            held.append(ffi.new("int32_t[]", kept))
            struct.kept = held[-1]
            struct.kept_count = len(kept)
        struct.register_count = len(self.registers)
        struct.input_count = len(self._inputs)
        struct.cgroup = cgroup
        struct.mask_at = assembler.placed(CALLER_MASK)
        struct.dispositions_at = assembler.placed(CLEARED_DISPOSITIONS)
        struct.without_clone3 = without_clone3
        struct.guard = guard
        self._held = held
        wrong = lib.ck_check(struct)
        if wrong >= 0:
            msg = f"record {wrong} of {self.steps[self.step_of[wrong]]} reaches outside its program"
            raise DeclarationError(msg)

    def spawn(self, **slots: object) -> Process:
        """Run the program in a new child, and come back when it has begun.

        `slots` gives each input of the program: descriptors (ours) or numbers. The calling thread
        waits, and signals wait with it, until exec; the GIL is released.

        Raises: SpawnError naming the step that failed; DeclarationError for slots.
        """
        return run(self, self._values(slots) if slots or self._inputs else None, None)[0]

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
        return f"<Program {list(self.argv)!r}: {len(self.steps)} steps, {len(self.step_of)} records>"

    def _values(self, slots: dict[str, object]) -> list[int]:
        """The input registers of one spawn."""
        if slots.keys() != set(self.inputs):
            missing = ", ".join(sorted(set(self.inputs) - slots.keys()))
            unknown = ", ".join(sorted(slots.keys() - set(self.inputs)))
            msg = "; ".join(
                [f"give the slot {missing}"] * bool(missing)
                + [f"the program has no slot {unknown}"] * bool(unknown)
            )
            raise DeclarationError(msg)
        values: dict[str, int] = {}
        for name, value in slots.items():
            values[name] = value if isinstance(value, int) else Fd(value).of  # type: ignore[assignment]
        for name in self._fd_slots:
            if name in values:
                check_open(name, values[name])
        if ABOVE in self._inputs:
            values[ABOVE.name] = max([self._floor, *(values.get(name, -1) + 1 for name in self._fd_slots)])
        for slot in self._inputs:
            if slot.name.startswith(CGROUP):
                values[slot.name] = int(slot.name.removeprefix(CGROUP))
        return [values.get(slot.name, -1) for slot in self._inputs]


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
