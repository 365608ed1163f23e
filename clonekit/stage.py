"""The records of the first stage, in the file that it maps: what follows when it is loaded."""

from __future__ import annotations

import copy
import os
import signal
import struct

from clonekit.bridge import REGISTERS_AT
from clonekit.compiled import Compiled
from clonekit.injection import placed
from clonekit.linux.abi import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Self

    from clonekit.arrange import Arranged
    from clonekit.compiled import Setup
    from clonekit.records import Slot
    from clonekit.steps.step import Step

#: Offsets in struct ck_frame, which is all that its parent reads again.
REPORT_AT = ffi.offsetof("struct ck_frame", "report")
ANSWER_AT = ffi.offsetof("struct ck_frame", "answer")
TRACE_AT = ffi.offsetof("struct ck_frame", "trace")
REPORT = struct.Struct("<IIIxxxxq")


class Rest(Compiled):
    """The second part of a program, laid out for the address at which the first stage has it."""

    __slots__ = ("_image", "_mask_at")

    def __init__(self, arranged: Arranged, steps: Sequence[Step], *, has_clone3: bool) -> None:
        later = copy.copy(arranged)
        later.lists = [[] if n <= arranged.stage else own for n, own in enumerate(arranged.lists)]
        later.inputs = dict.fromkeys(arranged.carried)
        later.clone = []
        self._compile(later, steps, has_clone3=has_clone3)
        self._lay_out()

    @classmethod
    def after(
        cls, setup: Setup, last: tuple[Any, ...], records: bytes, image: bytes, pointers: bytes
    ) -> Self:
        """The same of a setup, and these with an exec after it."""
        rest = cls.__new__(cls)
        rest._last = last  # noqa: SLF001 - our own
        rest._link(setup, records, image, pointers)  # noqa: SLF001 - our own
        rest._lay_out()  # noqa: SLF001 - our own
        return rest

    def _lay_out(self) -> None:
        """Place all of it in the file."""
        registers = 8 * self.struct.register_count
        image_at = REGISTERS_AT + registers
        image, scratch = ffi.buffer(self.image)[:], self.setup.scratch
        image += bytes(-len(image) % 8)
        room = lib.CK_PLAN_AT + image_at
        content = placed(self, image, scratch, room)
        scratch_at = image_at + len(image)
        records_at = image_at + len(content) + -len(content) % 8
        frame = ffi.new("struct ck_frame *", {"count": len(self)})
        for name, at in (
            ("registers", REGISTERS_AT),
            ("image", image_at),
            ("scratch", scratch_at),
            ("records", records_at),
        ):
            setattr(frame, name, ffi.cast("void *", lib.CK_PLAN_AT + at))
        head = ffi.buffer(frame)[:]
        self._image = bytearray(
            head + bytes(REGISTERS_AT - len(head)) + b"\xff" * registers + content
            + bytes(-len(content) % 8) + self.records
        )  # fmt: skip
        self._mask_at = scratch_at + self.struct.mask_at

    def plan(self, given: Mapping[Slot, int], *, traced: bool = False) -> bytes:
        """The file's content for one spawn, with these inputs and the mask of this thread.

        With room for the stamps of a trace, if there is to be one.
        """
        mask = sum(1 << number - 1 for number in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        plan = self._image[:]
        if self.struct.mask_at >= 0:
            struct.pack_into("<Q", plan, self._mask_at, mask)
        for number, slot in enumerate(self.setup.inputs):
            if slot in given:
                struct.pack_into("<q", plan, REGISTERS_AT + 8 * number, given[slot])
        if traced:
            struct.pack_into("<Q", plan, TRACE_AT, lib.CK_PLAN_AT + len(plan))
            plan += bytes(ffi.sizeof("struct ck_stamp") * len(self))
        return bytes(plan)

    def stamps(self, plan: int) -> Any:
        """What a trace has left at the end of the file."""
        size = ffi.sizeof("struct ck_stamp") * len(self)
        return ffi.from_buffer("struct ck_stamp[]", os.pread(plan, size, len(self._image)))


def first_part(arranged: Arranged) -> Arranged:
    """What comes before, its last step the one that loads the first stage."""
    first = copy.copy(arranged)
    first.lists = [own if n <= arranged.stage else [] for n, own in enumerate(arranged.lists)]
    return first
