"""What comes after a filter must pass it: seen before the spawn, where that can be told."""

from __future__ import annotations

from clonekit.errors import DeclarationError
from clonekit.linux.abi import NUMBERS, lib
from clonekit.linux.seccomp import AUDIT_ARCH
from clonekit.records import Call, Data

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from clonekit.records import Record
    from clonekit.steps.step import Step

LAST_PHASES = ("mask", "exec")
PASSED = (lib.SECCOMP_RET_ALLOW, lib.SECCOMP_RET_LOG)
ACTION = lib.SECCOMP_RET_ACTION_FULL
FPROG_FILTER = 8  # the offset of struct sock_fprog's pointer


def refuse_closed(lists: Sequence[Sequence[Record]], steps: Sequence[Step]) -> None:
    """Refuse a filter that forbids what every program still does: set the mask, and exec."""
    for number, records in enumerate(lists):
        for at, record in enumerate(records):
            program = filter_of(record)
            if program is None:
                continue
            later = [*records[at + 1 :]]
            for step, following in zip(steps[number + 1 :], lists[number + 1 :], strict=True):
                later += following if step.phase in LAST_PHASES else ()
            closed = list(dict.fromkeys(filter(None, (closes(program, call) for call in later))))
            if closed:
                names = ", ".join(repr(name) for name in closed)
                msg = (
                    f"{steps[number]}: the filter refuses {' and '.join(closed)}, which must come "
                    f"after it for the program to begin; add allow({names})"
                )
                raise DeclarationError(msg)


def filter_of(record: Record) -> bytes | None:
    """The filter that a record installs, if it does."""
    if type(record) is not Call or record.name != "seccomp" or len(record.operands) < 3:  # noqa: PLR2004 - its three
        return None
    data = record.operands[2]
    program = data.pointers.get(FPROG_FILTER) if type(data) is Data else None
    return program if type(program) is bytes else None


def closes(program: bytes, record: Record) -> str | None:
    """The name of the call, if the filter would refuse it whatever its unknown arguments are."""
    if type(record) is not Call or type(record.name) is not str:
        return None
    from clonekit.linux.bpf import answers

    known = [value if type(value) is int else None for value in record.operands]
    told = answers(program, AUDIT_ARCH, NUMBERS[record.name], known)
    asked = lib.SECCOMP_RET_USER_NOTIF
    refused = told and not any(answer & ACTION in (*PASSED, asked) for answer in told)
    return record.name if refused else None
