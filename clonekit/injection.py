"""Records as they are run in a process that is held by ptrace, and what differs by processor."""

from __future__ import annotations

import struct
import time

from clonekit.linux.abi import ffi
from clonekit.manners import SLICE
from clonekit.records import IMAGE, POINTERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from clonekit.compiled import Compiled
    from clonekit.orders import Order


class Machine:
    """What differs between processors: registers in the kernel's order, and the gate's bytes."""

    __slots__ = ("gate", "names", "stack")

    def __init__(self, names: str, stack: str, gate: bytes) -> None:
        self.names = names.split()
        self.stack = stack
        self.gate = gate


MACHINES = {
    "x86_64": Machine(
        "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss "
        "fs_base gs_base ds es fs gs",
        "rsp",
        b"\x0f\x05",  # syscall
    ),
    "aarch64": Machine(
        f"{' '.join(f'x{n}' for n in range(31))} sp pc pstate",
        "sp",
        b"\x01\x00\x00\xd4",  # svc #0
    ),
}
#: Names of what the kernel tells a program at its start: getauxval(3).
AUXILIARY = {
    3: "phdr", 4: "phent", 5: "phnum", 6: "pagesz", 7: "base", 9: "entry", 11: "uid", 12: "euid",
    13: "gid", 14: "egid", 16: "hwcap", 23: "secure", 25: "random", 31: "execfn",
    33: "sysinfo_ehdr",
}  # fmt: skip


class Run:
    """One order on its way: which, and how long it may take."""

    __slots__ = ("limit", "order", "until")

    def __init__(self, order: Compiled, limit: float) -> None:
        self.order = order
        self.limit = limit
        self.until = time.monotonic() + limit

    def slice(self) -> int:
        """How many nanoseconds to wait before Python looks for signals; 0 when time is up."""
        return int(max(min((self.until - time.monotonic()) * 1e9, SLICE), 0))


def injected(order: Order, image: int, scratch: int) -> tuple[Any, Any]:
    """An order as it is run in a process whose addresses of image and scratch these are."""
    registers = ffi.new("int64_t[]", [-1] * max(order.struct.register_count, 1))
    for n, value in enumerate(order.values):
        registers[n] = value
    injection = ffi.new("struct ck_injection *")
    frame = injection.frame
    frame.records, frame.count = order.struct.records, order.struct.count
    frame.image = ffi.cast("uint8_t *", image)
    frame.scratch = ffi.cast("uint8_t *", scratch)
    frame.registers = registers
    return injection, registers


def placed(order: Compiled, image: bytes, scratch: bytes, room: int) -> bytes:
    """Image and scratch as they stand at an address of the process."""
    content = bytearray(image + scratch)
    ours = int(ffi.cast("uintptr_t", order.image))

    def add(at: int, base: int) -> None:
        value = struct.unpack_from("<Q", content, at)[0] + base
        struct.pack_into("<Q", content, at, value & (1 << 64) - 1)

    for start, count in POINTERS.iter_unpack(order.pointers):
        for at in range(start, start + 8 * count, 8):
            add(at, room - ours)
    for at, kind in order.setup.assembler.relocations:
        add(len(image) + at, room if kind == IMAGE else room + len(image))
    return bytes(content)
