"""Records become bytes for the machine, with the memory that they point at."""

from __future__ import annotations

import struct

from clonekit.errors import DeclarationError
from clonekit.linux.abi import NUMBERS
from clonekit.records import (
    CALL,
    IMAGE,
    IMMEDIATE,
    MOVE,
    NOWHERE,
    RECORD,
    REGISTER,
    SCRATCH,
    SET,
    WAIT,
    WORD,
    WORDS,
    Call,
    ChildFd,
    Data,
    Fd,
    Place,
    Scratch,
    Set,
    Slot,
    Vector,
    Wait,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from clonekit.records import Ask, Move

MOST_REGISTERS = NOWHERE


def within_word(value: int) -> int:
    """An operand's 64 bits, for a number that fits."""
    if not -(1 << 63) <= value <= WORD:
        msg = f"{value} does not fit into the 64 bits of an operand"
        raise DeclarationError(msg)
    return value & WORD


class Assembler:
    """Turns records into bytes: the records, the image, the template of scratch."""

    __slots__ = (
        "_addresses", "_places", "asks", "defined", "image", "pointers", "records",
        "registers", "relocations", "scratch",
    )  # fmt: skip

    def __init__(self, inputs: Iterable[Slot]) -> None:
        self.records = bytearray()
        self.image = bytearray()
        self.scratch = bytearray()
        self.pointers: list[tuple[int, int]] = []
        self.relocations: list[tuple[int, int]] = []
        self.asks: dict[int, Ask] = {}
        self.registers: dict[Slot, int] = {slot: n for n, slot in enumerate(inputs)}
        self.defined = set(self.registers)
        self._addresses: dict[bytes | Data | Vector, int] = {}
        self._places: dict[Scratch, int] = {}

    def copy(self) -> Assembler:
        """Another that goes on from here; records that make slots or scratch go before a copy."""
        other = Assembler.__new__(Assembler)
        other.records = self.records[:]
        other.image = self.image[:]
        other.pointers = self.pointers[:]
        other.scratch = self.scratch
        other.relocations = self.relocations
        other.registers = self.registers
        other.defined = self.defined
        other.asks = self.asks
        other._places = self._places  # noqa: SLF001 - our own
        other._addresses = {}  # noqa: SLF001 - our own
        return other

    def address(self, data: bytes | Data | Vector) -> int:
        """The offset of this data in the image, where equal bytes stand once."""
        at = self._addresses.get(data)
        if at is None:
            at = self._addresses[data] = self._place(data)
        return at

    def _place(self, data: bytes | Data | Vector) -> int:
        image = self.image
        if type(data) is bytes:
            at = len(image)
            image += data
            image += bytes(8 - len(image) % 8)  # a string that nobody has ended ends here
            return at
        if type(data) is Vector:
            return self._place_vector(data)
        content = bytearray(data.content)  # type: ignore[union-attr]
        for offset, target in data.pointers.items():  # type: ignore[union-attr]
            struct.pack_into("<Q", content, offset, self.address(target))
        at = len(image)
        image += content
        image += bytes(-len(image) % 8)
        self.pointers += [(at + offset, 1) for offset in data.pointers]  # type: ignore[union-attr]
        return at

    def _place_vector(self, vector: Vector) -> int:
        image = self.image
        packed = vector.packed_at(len(image))
        image += packed
        count = vector.count
        at = len(image) - 8 * (count + 1)
        if count:
            self.pointers.append((at, count))
        return at

    def place(self, scratch: Scratch) -> int:
        """The offset of this room in scratch, made at its first use."""
        known = self._places.get(scratch)
        if known is not None:
            return known
        content = bytearray(scratch.content)
        targets = []
        for offset, target in scratch.pointers.items():
            inner = isinstance(target, Scratch)
            struct.pack_into(
                "<Q",
                content,
                offset,
                self.place(target) if inner else self.address(target),  # type: ignore[arg-type]
            )
            targets.append((offset, SCRATCH if inner else IMAGE))
        at = len(self.scratch)
        self.scratch += content
        self.scratch += bytes(-len(self.scratch) % 8)
        self._places[scratch] = at
        self.relocations += [(at + offset, kind) for offset, kind in targets]
        return at

    def placed(self, scratch: Scratch) -> int:
        """Where this room is, or -1 if no record uses it."""
        return self._places.get(scratch, -1)

    def register(self, slot: Slot) -> int:
        """The register of a slot, which must have been made by an earlier record."""
        if slot not in self.defined:
            msg = f"{slot} is used before the step that makes it; put that step first"
            raise DeclarationError(msg)
        return self.registers[slot]

    def result(self, slot: Slot) -> int:
        """The register that takes a result."""
        number = self.registers.setdefault(slot, len(self.registers))
        if number >= MOST_REGISTERS:
            msg = f"a program has at most {MOST_REGISTERS} slots"
            raise DeclarationError(msg)
        self.defined.add(slot)
        return number

    def operand(self, value: object) -> tuple[int, int]:
        """What an operand is, and its 64 bits."""
        kind = type(value)
        if kind is Fd:
            value = value.of  # type: ignore[attr-defined]
            kind = type(value)
        if kind is Slot or kind is ChildFd:
            return REGISTER, self.register(value)  # type: ignore[arg-type]
        if kind is bytes or kind is Data or kind is Vector:
            return IMAGE, self.address(value)  # type: ignore[arg-type]
        if kind is Scratch:
            return SCRATCH, self.place(value)  # type: ignore[arg-type]
        if kind is Place:
            return SCRATCH, self.place(value.scratch) + value.offset  # type: ignore[attr-defined]
        if not isinstance(value, int):
            msg = f"{value!r} cannot be an operand of a system call; give an int, bytes or a Slot"
            raise DeclarationError(msg)
        return IMMEDIATE, within_word(value)

    def _emit_ask(self, record: Set | Wait, step: int) -> None:
        """A question, or the wait for its answer; which one it is, is remembered by number."""
        self.asks[len(self.records) // RECORD.size] = record.ask
        head = (SET if type(record) is Set else WAIT) | step << 16
        awake = int(record.ask.meanwhile is not None)
        self.records += WORDS.pack(head, NOWHERE, 0, awake, 0, 0, 0, 0, 0, 0)

    def emit(self, record: Call | Move | Set | Wait, step: int) -> None:
        """Append one record that belongs to this step."""
        kinds = 0
        values = [0, 0, 0, 0, 0, 0]
        if isinstance(record, Set | Wait):
            self._emit_ask(record, step)
            return
        if isinstance(record, Call):
            operands: Sequence[object] = record.operands
            name = record.name
            head = CALL | record.flags << 8 | (NUMBERS[name] if type(name) is str else name) << 32  # type: ignore[operator]
            tolerated = int.from_bytes(bytes(record.tolerate), "little") if record.tolerate else 0
            expected = record.expect or 0
        else:
            operands = (record.place,) if record.to is not None else (record.place, record.value)
            head = MOVE | record.width << 32
            tolerated = expected = 0
        for n, value in enumerate(operands):
            if type(value) is int:
                values[n] = value if 0 <= value <= WORD else within_word(value)
            else:
                kind, values[n] = self.operand(value)
                kinds |= kind << 16 + 8 * n
        result = NOWHERE if record.to is None else self.result(record.to)
        self.records += WORDS.pack(head | step << 16, result | kinds, tolerated, *values, expected)
