"""What a filter would answer, found by running its instructions here."""

from __future__ import annotations

import struct
from operator import add, and_, eq, floordiv, ge, gt, lshift, mul, or_, rshift, sub, xor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    #: A register's 32 bits, or None where they depend on what is not known.
    Word: TypeAlias = int | None
    #: Where the filter is, A, X and the sixteen words of memory.
    State: TypeAlias = tuple[int, Word, Word, tuple[Word, ...]]

INSTRUCTION = struct.Struct("=HBBI")
INT = 0xFFFFFFFF
MOST_STATES = 1 << 16
# The classes of linux/bpf_common.h, and the codes of seccomp's loads.
LD, LDX, ST, STX, ALU, JMP, RET, MISC = range(8)
OF_DATA, OF_MEMORY, LENGTH, BY_X, TXA = 0x20, 0x60, 0x80, 0x08, 0x80
NEGATE, DIVIDE, ALWAYS = 0x80, 0x30, 0x00
ARITHMETIC = {
    0x00: add, 0x10: sub, 0x20: mul, 0x30: floordiv, 0x40: or_, 0x50: and_, 0x60: lshift,
    0x70: rshift, 0xA0: xor,
}  # fmt: skip
JUMPS = {0x10: eq, 0x20: gt, 0x30: ge, 0x40: and_}
DATA_SIZE = 64  # struct seccomp_data


def answers(
    program: bytes, architecture: int, number: int, arguments: Sequence[int | None] = ()
) -> set[int]:
    """What a filter may answer to a call: SECCOMP_RET values.

    `arguments` that are None or missing may be anything, and so may be the address from which the
    call is made; more than one answer means that it depends on these. None at all means that it
    cannot be told, as for a filter that the kernel would not take.

    See: seccomp(2), struct seccomp_data.
    """
    words: list[Word] = [number & INT, architecture, None, None]
    for value in (*arguments, *(None,) * (6 - len(arguments))):
        words += (None, None) if value is None else (value & INT, value >> 32 & INT)
    try:
        return _Run(list(INSTRUCTION.iter_unpack(program)), words).answers
    except (LookupError, ValueError, struct.error):
        return set()


class _Run:
    """All ways through a filter: where a jump depends on what is not known, both are taken."""

    def __init__(self, code: list[tuple[int, int, int, int]], words: list[Word]) -> None:
        self.code = code
        self.words = words
        self.answers: set[int] = set()
        seen: set[State] = set()
        left: list[State] = [(0, 0, 0, (0,) * 16)]
        while left:
            state = left.pop()
            if state in seen:
                continue
            if len(seen) > MOST_STATES:
                raise ValueError
            seen.add(state)
            left += self.after(*state)

    def after(self, at: int, a: Word, x: Word, memory: tuple[Word, ...]) -> list[State]:
        """The states that may follow."""
        code, true, false, k = self.code[at]
        kind, operation = code & 7, code & 0xF0
        source = x if code & BY_X else k
        if kind in (LD, LDX):
            value = self.loaded(code & 0xE0, k, memory)
            return [(at + 1, value, x, memory) if kind == LD else (at + 1, a, value, memory)]
        if kind in (ST, STX):
            memory = (*memory[:k], a if kind == ST else x, *memory[k + 1 :])
            return [(at + 1, a, x, memory)]
        if kind == ALU:
            return [(at + 1, computed(operation, a, source), x, memory)]
        if kind == JMP:
            ways = {k} if operation == ALWAYS else {
                true if way else false for way in ways_of(operation, a, source)
            }  # fmt: skip
            return [(at + 1 + way, a, x, memory) for way in ways]
        if kind == MISC:
            return [(at + 1, x, x, memory) if code & TXA else (at + 1, a, a, memory)]
        answer = a if code & 0x18 else k
        if answer is None:
            raise ValueError
        self.answers.add(answer)
        return []

    def loaded(self, mode: int, k: int, memory: tuple[Word, ...]) -> Word:
        """What a load brings."""
        if mode == OF_DATA:
            return self.words[k // 4]
        if mode == OF_MEMORY:
            return memory[k]
        return DATA_SIZE if mode == LENGTH else k


def computed(operation: int, a: Word, source: Word) -> Word:
    """The result of arithmetic, in 32 bits."""
    if a is None or (source is None and operation != NEGATE):
        return None
    if operation == NEGATE:
        return -a & INT
    if operation == DIVIDE and not source:
        raise ValueError
    return int(ARITHMETIC[operation](a, source)) & INT


def ways_of(operation: int, a: Word, source: Word) -> tuple[bool, ...]:
    """The ways that a jump may go."""
    if a is None or source is None:
        return (True, False)
    return (bool(JUMPS[operation](a, source)),)
