"""System calls as data: what a step yields.

A step yields `Call`s (and, rarely, moves between registers and scratch). An operand is

- an int: the value itself;
- bytes: the address of these bytes in the program's image;
- `Data`: the same, for a structure that points at others;
- `Scratch` or a `Place` in one: an address in memory of this spawn alone, which the kernel or a
  move may write;
- `Slot`: a register: what an earlier call returned, or what the caller gives at each spawn;
- `Fd`: a descriptor, given as the parent's number, as a slot or as a `ChildFd`.

What the parent is to do meanwhile is an `Ask`: the child says so, and waits.
"""

from __future__ import annotations

import struct
from weakref import ref

from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any, Protocol, TypeAlias

    Operand: TypeAlias = "int | bytes | Data | Scratch | Place | Slot | Fd"
    Record: TypeAlias = "Call | Move | Clone | Ask | Set | Wait | OwnMemory"
    Records: TypeAlias = Iterator[Record]

    class Asking(Protocol):
        """The child that asks, as its parent sees it."""

        @property
        def pid(self) -> int:
            """Its number, here."""

        @property
        def pidfd(self) -> int:
            """A pidfd, which is not to be closed."""

        def value(self, slot: Slot) -> int:
            """What one of the slots holds that the question names."""

    Act: TypeAlias = Callable[[Asking], Callable[[], object] | None]

WORD = (1 << 64) - 1
MOST_FDS = 1 << 31
#: struct ck_record, field by field.
RECORD = struct.Struct("<BBHIH6B8s6Qq")
#: The same in whole words, which pack in a third of the time.
WORDS = struct.Struct("<9Qq")
#: struct ck_pointers.
POINTERS = struct.Struct("<II")

IMMEDIATE, IMAGE, SCRATCH, REGISTER = 0, 1, 2, 3
EXACT, RETRY, TRY, EXEC = lib.CK_EXACT, lib.CK_RETRY, lib.CK_TRY, lib.CK_EXEC
AGAIN = lib.CK_AGAIN
CALL, MOVE, SET, WAIT = lib.CK_CALL, lib.CK_MOVE, lib.CK_SET, lib.CK_WAIT
NOWHERE = lib.CK_NOWHERE


class Slot:
    """A named register of the program: `$name` where it is shown.

    A name that no step makes is an input: give it at each `program.spawn(name=...)`.
    Two slots with one name are one register; a slot without a name is its step's own.
    """

    __slots__ = ("name",)

    def __init__(self, name: str = "") -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Slot):
            return NotImplemented
        return self is other or (bool(self.name) and self.name == other.name)

    def __hash__(self) -> int:
        return hash(self.name) if self.name else id(self)

    def frozen(self) -> str | None:
        """All that it is made of: its name, if it has one."""
        return self.name or None

    def __repr__(self) -> str:
        return f"${self.name or '_'}"


class ChildFd(Slot):
    """A descriptor of a child that is driven from here: an operand of its steps, and in its vector.

    It does not keep the child's handle alive.

    Attributes:
        number: its number in the child; -1 when it is closed there.
    """

    __slots__ = ("_child", "number")

    def __init__(self, child: Any, number: int) -> None:
        super().__init__()
        self._child = ref(child)
        self.number = number

    def belongs_to(self, child: object) -> bool:
        """Whether it is this child's."""
        return self._child() is child

    def _of(self) -> Any:
        """The child's handle.

        Raises: ValueError when nobody has that any more.
        """
        child = self._child()
        if child is None:
            msg = f"{self!r}: its handle is gone, and so is the child"
            raise ValueError(msg)
        return child

    def fetch(self) -> int:
        """A descriptor of ours for the same open file, close-on-exec: pidfd_getfd.

        Raises: EPERM without the right to trace the child, EBADF. Since: Linux 5.6.
        See: pidfd_getfd(2).
        """
        return int(self._of().getfd(self.number))

    def close(self) -> None:
        """Close it in the child: close."""
        if self.number >= 0:
            self._of().close_descriptor(self)

    def __repr__(self) -> str:
        child = self._child()
        return f"<fd {self.number} of child {child.pid if child else 'that is gone'}>"


class Fd:
    """A descriptor as an operand: the parent's number, or a slot that holds one."""

    __slots__ = ("of",)

    def __init__(self, of: object) -> None:
        if isinstance(of, Fd):
            of = of.of
        elif not isinstance(of, int | Slot):
            fileno = getattr(of, "fileno", None)
            if fileno is None:
                msg = f"{of!r} is not a descriptor; give a number, an open file or a Slot"
                raise DeclarationError(msg)
            try:
                of = fileno()
            except (ValueError, OSError) as error:  # io.UnsupportedOperation is both
                is_file = not isinstance(error, OSError)
                told = "is closed" if is_file else "has no descriptor"
                msg = f"{of!r} {told}; give an open file"
                raise DeclarationError(msg) from None
        if not isinstance(of, Slot) and (type(of) is bool or not 0 <= int(of) < MOST_FDS):  # type: ignore[call-overload]
            msg = f"{of!r} is not a descriptor; give a number from 0 up"
            raise DeclarationError(msg)
        self.of: int | Slot = of if isinstance(of, Slot) else int(of)  # type: ignore[call-overload]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fd) and self.of == other.of

    def __hash__(self) -> int:
        return hash(self.of)

    def __repr__(self) -> str:
        return f"fd {self.of}"


class Data:
    """A structure in the image. `pointers` maps offsets in it to what stands at that address."""

    __slots__ = ("content", "pointers")

    def __init__(self, content: bytes, pointers: Mapping[int, bytes | Data] | None = None) -> None:
        self.content = content
        self.pointers = pointers or {}


class Vector:
    """A NULL-terminated array of pointers to strings, packed whole: argv or envp.

    `block` is the strings, each with the NUL that ends it. Packing is remembered: an environment is
    much the same from spawn to spawn.
    """

    __slots__ = ("_known", "block", "count")

    def __init__(self, block: bytes = b"", count: int = 0) -> None:
        self.block = block
        self.count = count
        self._known = -1, b""  # one value: another thread may replace it meanwhile

    def packed_at(self, at: int) -> bytes:
        """The strings, then the array with their offsets, for a place in the image."""
        known = self._known
        if at != known[0]:
            offsets, place, block = [], at, self.block
            for string in block.split(b"\0"):
                offsets.append(place)
                place += len(string) + 1
            offsets[-1] = 0  # after the last one is nothing
            padding, count = bytes(-len(block) % 8), len(offsets)
            known = at, block + padding + struct.pack(f"<{count}Q", *offsets)
            self._known = known
        return known[1]


class Scratch:
    """Memory of one spawn: at its start `content`, with `pointers` to other places filled in."""

    __slots__ = ("content", "pointers")

    def __init__(
        self, content: bytes, pointers: Mapping[int, bytes | Data | Scratch] | None = None
    ) -> None:
        self.content = content
        self.pointers = pointers or {}

    def at(self, offset: int) -> Place:
        """The place `offset` bytes into it."""
        return Place(self, offset)


class Place:
    """An address inside a `Scratch`."""

    __slots__ = ("offset", "scratch")

    def __init__(self, scratch: Scratch, offset: int) -> None:
        self.scratch = scratch
        self.offset = offset


#: Filled by the parent at each spawn: the signal mask of the thread that spawns.
CALLER_MASK = Scratch(bytes(8))
#: Filled by the parent at each spawn: 64 sigactions, each "ignore" or "default" as it is there.
CLEARED_DISPOSITIONS = Scratch(bytes(64 * 32))


class Call:
    """One system call, and what counts as its success.

    `to` takes the result; `expect` is the only result that is success; `tolerate` names errnos
    that are no failure; `retry` makes the call again after EINTR, the flag AGAIN after EAGAIN.
    """

    __slots__ = ("expect", "flags", "name", "operands", "to", "tolerate")

    def __init__(
        self,
        name: str | int,
        *operands: Operand | Vector,
        to: Slot | None = None,
        expect: int | None = None,
        tolerate: tuple[int, ...] = (),
        retry: bool = False,
        flags: int = 0,
    ) -> None:
        self.name = name
        self.operands = operands
        self.to = to
        self.expect = expect
        self.tolerate = tolerate
        self.flags = flags | (RETRY if retry else 0) | (EXACT if expect is not None else 0)

    def replaced(self, *operands: Operand | Vector, to: Slot | None = None) -> Call:
        """The same call with these operands, or with its result in this slot."""
        return Call(
            self.name, *(operands or self.operands), to=to or self.to, expect=self.expect,
            tolerate=self.tolerate, flags=self.flags,
        )  # fmt: skip


class Move:
    """A value between a register and scratch: `to` is loaded from `place`, or `value` stored."""

    __slots__ = ("place", "to", "value", "width")

    def __init__(
        self, place: Place, *, to: Slot | None = None, value: Slot | Fd | int = 0, width: int = 4
    ) -> None:
        self.place = place
        self.to = to
        self.value = value
        self.width = width


class Clone:
    """Not a call of the child's: what the clone that makes it is asked for."""

    __slots__ = ("cgroup", "exit_signal", "flags", "owner")

    def __init__(
        self,
        flags: int = 0,
        *,
        cgroup: Fd | None = None,
        exit_signal: int | None = None,
        owner: object = None,
    ) -> None:
        self.owner = owner
        self.flags = flags
        self.cgroup = cgroup
        self.exit_signal = exit_signal


class Ask:
    """Not a call of the child's: what its parent does for it, at this point of the order.

    `act(child)` is called in the thread that spawns, while the child waits. What it returns, if not
    None, undoes it: called without arguments if the spawn fails later. An OSError that it raises is
    the failure of the step; what else it raises ends the child and passes through.

    `text` says what is done. `slots` are those whose values it asks for. `meanwhile` is a call that
    the child makes between its question and its waiting, which is then awake, without a call: a
    filter may forbid all others. `lasting` promises that `act` depends on the step's arguments and
    the child alone, and may serve again for others.
    """

    __slots__ = ("act", "lasting", "meanwhile", "slots", "text")

    def __init__(
        self,
        text: str,
        act: Act,
        *slots: Slot,
        meanwhile: Call | None = None,
        lasting: bool = False,
    ) -> None:
        self.text = text
        self.act = act
        self.lasting = lasting
        self.slots = slots
        self.meanwhile = meanwhile

    def spread(self) -> list[Record]:
        """The records that it stands for."""
        between = [self.meanwhile] if self.meanwhile else []
        return [Set(self), *between, Wait(self)]


class OwnMemory:
    """Not a call: this step needs a memory of the child's own, that of the first stage."""

    __slots__ = ()


class Set:
    """The child says that its parent is asked."""

    __slots__ = ("ask",)

    def __init__(self, ask: Ask) -> None:
        self.ask = ask


class Wait:
    """The child waits for the answer."""

    __slots__ = ("ask",)

    def __init__(self, ask: Ask) -> None:
        self.ask = ask


def read_by(record: Record) -> Sequence[object]:
    """What a record reads."""
    if type(record) is Call:
        return record.operands
    if type(record) is Wait:
        return record.ask.slots
    return (record.value,) if type(record) is Move and record.to is None else ()


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
