"""Three ways in which the same steps make a program."""

from __future__ import annotations

import re
from collections.abc import Callable

from step_cases import (
    with_output,
)

from clonekit import ChildFd, Process, Program, Slot, Suspended, nascent
from clonekit.steps import (
    execute,
    place_descriptors,
    stop_at_exec,
)
from clonekit.steps.step import Step

Run = Callable[[list[Step], tuple[str, ...], int], Process]
#: What a child that waits leaves to its start.
OF_START = {"ids", "capabilities", "parent", "seccomp", "mask", "vector", "exec"}
#: What is asked of the clone, or must be known by the exec, for one that is suspended after it.
BEFORE_EXEC = {"clone", "maps", "parent", "mask"}
NUMBERS = re.compile(r"\d{4,}")


def joins_users(step: Step) -> bool:
    """A join of a user namespace, which a child that waits leaves to its start too."""
    return step.kind.name == "join_namespaces" and "user" in step.arguments[-1]


def compiled(steps: list[Step], argv: tuple[str, ...], output: int) -> Process:
    """All at once."""
    return Program([*with_output(steps, output), execute(argv)]).spawn()


def one_by_one(steps: list[Step], argv: tuple[str, ...], output: int) -> Process:
    """Each step alone in a child that waits, as long as it may; then what is left."""
    steps = with_output(steps, output)
    clone = [step for step in steps if step.phase == "clone"]
    steps = [step for step in steps if step.phase != "clone"]
    with nascent(steps=clone) as child:
        while steps and steps[0].phase not in OF_START and not joins_users(steps[0]):
            child.do(steps.pop(0))
        return child.start([*steps, execute(argv)])


def after_exec(steps: list[Step], argv: tuple[str, ...], output: int) -> Process:
    """What can be done when the program is loaded."""
    first = [step for step in steps if step.phase in BEFORE_EXEC]
    last = [first.pop()] if first and first[-1].phase == "mask" else []
    vector = place_descriptors({0: 0, 1: output, 2: output})
    program = Program([*first, vector, stop_at_exec(), *last, execute(argv)])
    held = program.spawn()
    assert isinstance(held, Suspended)
    with held:
        for step in steps:
            if step.kind is place_descriptors:
                place(held, step.arguments[0])
            elif step.phase not in BEFORE_EXEC:
                held.do(step)
        return held.resume()


def place(held: Suspended, vector: dict[int, object]) -> None:
    """Give a program the descriptors of a vector, but for its output, and take what it had."""
    aside = {}
    for at, (to, of) in enumerate(vector.items(), 300):
        known = held.names[of.name] if isinstance(of, Slot) else held.give(of)
        aside[to] = held.syscall("dup3", known, at, 0)
        if not isinstance(of, Slot):
            known.close()
    for to, fd in aside.items():
        held.syscall("dup3", fd, to, 0)
    for fd in aside.values():
        fd.close()
    for fd in list(held.names.values()):
        if isinstance(fd, ChildFd) and fd.number not in vector:
            fd.close()


RUNS: dict[str, Run] = {
    "compiled": compiled,
    "one by one": one_by_one,
    "after exec": after_exec,
}
