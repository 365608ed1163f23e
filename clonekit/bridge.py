"""What a child takes along when it goes on in the first stage: descriptors, and slots by value."""

from __future__ import annotations

from clonekit.linux.abi import lib
from clonekit.records import Call, Fd, Move, Scratch, Slot, read_by, redirected
from clonekit.steps.memory import ALIVE, PLAN
from clonekit.steps.signals import PARENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from clonekit.records import Record

#: Where the registers begin in the file that the first stage maps, behind the frame: bytes.
REGISTERS_AT = 256


def bridge(arranged: Any, moves: Mapping[int, Fd]) -> None:
    """Let what the steps of the first stage use survive the exec that loads it.

    What close-on-exec would close is kept open over that exec, and then is as it was. What the
    child has learnt in slots is written into the file that holds the records; what it was given,
    its parent has written there.
    """
    at, lists = arranged.stage, arranged.lists
    moved = arranged.moved if arranged.vector < at else {}
    alive = moved.get(Fd(ALIVE), Fd(ALIVE))
    made = {getattr(record, "to", None) for records in lists[at + 1 :] for record in records}
    used = [fd for step, fd in arranged.fds if step > at and fd.of not in made]
    if arranged.vector > at:
        used += moves.values()
    before: list[Record] = []
    after = [Call("fcntl", alive, lib.F_SETFD, lib.FD_CLOEXEC)]
    for n, fd in enumerate(dict.fromkeys(used)):
        flags: Slot | int = lib.FD_CLOEXEC  # as the vector has moved it
        if fd not in moved:
            flags = Slot(f".flags{n}")
            before.append(Call("fcntl", fd, lib.F_GETFD, 0, to=flags))
        before.append(Call("fcntl", moved.get(fd, fd), lib.F_SETFD, 0))
        after.append(Call("fcntl", moved.get(fd, fd), lib.F_SETFD, flags))
    lists[at + 1][0:0] = after
    later = [record for records in lists[at + 1 :] for record in records]
    arranged.carried = carried(later)
    learnt = {
        n: slot
        for n, slot in enumerate(arranged.carried)
        if slot not in arranged.inputs or slot == PARENT
    }
    lists[at][0:0] = [*before, *written(learnt, moved)]


def carried(records: Iterable[Record]) -> list[Slot]:
    """The slots that these records read and do not make."""
    made: set[Slot] = set()
    slots: dict[Slot, None] = {}
    for record in records:
        for value in read_by(record):
            of = value.of if isinstance(value, Fd) else value
            if isinstance(of, Slot) and of not in made:
                slots[of] = None
        to = getattr(record, "to", None)
        if to is not None:
            made.add(to)
    return list(slots)


def written(slots: Mapping[int, Slot], moved: Mapping[Fd, int]) -> list[Record]:
    """The records that write these slots into the first stage's registers of these numbers."""
    records: list[Record] = []
    for number, slot in slots.items():
        value = Scratch(bytes(8))
        records.append(Move(value.at(0), value=slot, width=8))
        write = Call("pwrite64", Fd(PLAN), value, 8, REGISTERS_AT + 8 * number, expect=8)
        records.append(redirected(write, moved))
    return records
