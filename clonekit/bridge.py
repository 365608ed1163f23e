"""What a child takes along when it goes on in the first stage: descriptors, and slots by value."""

from __future__ import annotations

from clonekit.linux.abi import lib
from clonekit.records import Call, Fd, Move, Scratch, Slot, read_by, redirected
from clonekit.steps.memory import ALIVE, PLAN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from clonekit.records import Record

#: Where the registers begin in the file that the first stage maps, behind the frame: bytes.
REGISTERS_AT = 256


def bridge(arranged: Any, moves: Mapping[int, Fd]) -> None:
    """Let what the steps of the first stage use survive the exec that loads it.

    What close-on-exec would close is kept open over that exec. What the child has learnt in slots
    is written into the file that holds the records, as `arranged.carried` has it.
    """
    at, lists, moved = arranged.stage, arranged.lists, arranged.moved
    later = [record for records in lists[at + 1 :] for record in records]
    arranged.carried = carried(later)
    known = {Fd(slot) for slot in arranged.carried} | moved.keys()
    read = (fd for step, fd in arranged.fds if step > at)
    fds = dict.fromkeys(moved.get(fd, fd) for fd in read if type(fd.of) is int or fd in known)
    if arranged.vector > at:
        fds |= dict.fromkeys(moves.values())
    else:
        again = [*fds, moved[Fd(ALIVE)]] if moved else list(fds)
        lists[at + 1][0:0] = [Call("fcntl", fd, lib.F_SETFD, lib.FD_CLOEXEC) for fd in again]
    taken = [Call("fcntl", fd, lib.F_SETFD, 0) for fd in fds]
    lists[at][0:0] = [*taken, *written(arranged.carried, moved)]


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


def written(slots: Sequence[Slot], moved: Mapping[Fd, int]) -> list[Record]:
    """The records that write these slots into the first stage's registers."""
    if not slots:
        return []
    values = Scratch(bytes(8 * len(slots)))
    size = 8 * len(slots)
    write = Call("pwrite64", Fd(PLAN), values, size, REGISTERS_AT, expect=size)
    moves = [Move(values.at(8 * n), value=slot, width=8) for n, slot in enumerate(slots)]
    return [*moves, redirected(write, moved)]
