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

    What close-on-exec would close is kept open over that exec, and then is as it was. What the
    child has learnt in slots is written into the file that holds the records, as
    `arranged.carried` has it.
    """
    at, lists = arranged.stage, arranged.lists
    moved = arranged.moved if arranged.vector < at else {}
    alive = moved.get(Fd(ALIVE), Fd(ALIVE))
    used = [moved.get(fd, fd) for step, fd in arranged.fds if step > at]
    if arranged.vector > at:
        used += moves.values()
    fds = {fd: Slot(f".flags{n}") for n, fd in enumerate(dict.fromkeys(used))}
    before = [
        call
        for fd, flags in fds.items()
        for call in (
            Call("fcntl", fd, lib.F_GETFD, 0, to=flags),
            Call("fcntl", fd, lib.F_SETFD, 0),
        )
    ]
    after = [Call("fcntl", fd, lib.F_SETFD, flags) for fd, flags in fds.items()]
    lists[at + 1][0:0] = [Call("fcntl", alive, lib.F_SETFD, lib.FD_CLOEXEC), *after]
    later = [record for records in lists[at + 1 :] for record in records]
    arranged.carried = carried(later)
    lists[at][0:0] = [*before, *written(arranged.carried, moved)]


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
