"""Whether what a declaration compiles to serves again, and is the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import containers
import pytest
from step_cases import apart

from clonekit import DeclarationError, Program, Spec
from clonekit.linux.abi import lib
from clonekit.linux.namespaces import unshare

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


def fresh(**fields: Any) -> Program:
    """A declaration compiled, which is checked to be what it would be anew."""
    for _ in range(2):
        program = Spec(["true"], **fields).program()
        assert laid_out(program) == laid_out(Program(Spec(["true"], **fields).steps()))
    return program


def refused(told: str, **fields: Any) -> None:
    """A declaration that cannot be, however often it is tried."""
    for _ in range(2):
        with pytest.raises(DeclarationError, match=told):
            Spec(["true"], **fields).program()


def in_a_child(attempt: Callable[[], object]) -> None:
    """Do it in a process of its own, which must succeed; it knows what we have compiled."""
    assert apart(attempt) == ""


def over(source: str, target: str) -> None:
    """In a mount namespace of this process, a file stands over another."""
    unshare(lib.CLONE_NEWNS)
    containers.mount(None, "/", lib.MS_REC | lib.MS_PRIVATE)
    containers.mount(source, target, lib.MS_BIND)
