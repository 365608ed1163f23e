"""Whether what a declaration compiles to serves again, and is the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clonekit import Program, Spec

ALL = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
OWN: dict[str, Any] = {"namespaces": ALL, "uid_map": 0, "gid_map": 0}


def again(argv: list[str], fields: Mapping[str, Any]) -> tuple[Program, Program]:
    """What a declaration compiles to the second time and the third, with another argv."""
    for other in (["first"], argv):
        Spec(other, **fields).program()
    return Spec(argv, **fields).program(), Spec([*argv, "x"], **fields).program()


def lasts(fields: Mapping[str, Any]) -> bool:
    """Whether the setup serves again."""
    one, other = again(["true"], fields)
    return one.setup is other.setup


def laid_out(program: Any) -> tuple[object, ...]:
    """All that the machine reads of a program, but its exec."""
    setup = program.setup
    struct = setup.struct
    return (
        setup.records, setup.image, setup.pointers, setup.scratch, setup.clone_flags, setup.manner,
        setup.inputs, setup.fd_slots, setup.floor, setup.deadline, struct.guard, struct.asleep,
        struct.kept_count, struct.exit_signal, struct.cgroup, struct.mask_at, program.argv,
        [ask.text for ask in setup.assembler.asks.values()], program.explain(),
        list(map(str, program.steps)),
        None if program.rest is None else laid_out_rest(program.rest),
    )  # fmt: skip


def laid_out_rest(rest: Any) -> tuple[object, ...]:
    """The same of what the first stage carries out."""
    setup = rest.setup
    return setup.records, setup.image, setup.scratch, len(rest), rest.steps[-1].kind
