"""A list of steps becomes a flat program of system calls.

`Program` is immutable once made and may be spawned from many threads at once; what differs from
spawn to spawn is given as slots.
"""

from __future__ import annotations

import os

from clonekit.arrange import ABOVE, Arranged
from clonekit.compiled import Compiled, Setup
from clonekit.completion import completed, needs_stage, suspension
from clonekit.driven import handle_of
from clonekit.driven import run as run_driven
from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib
from clonekit.manners import DRIVEN, VFORKED, deadline_of
from clonekit.records import Ask, Fd
from clonekit.steps.execute import execute, packed
from clonekit.steps.memory import ALIVE
from clonekit.steps.step import WRONG_TYPES, Step
from clonekit.vforked import run as run_vforked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, Self

    from clonekit.process import Process
    from clonekit.steps.execute import Text
    from clonekit.vforked import Trace


NO_VALUES: Mapping[str, int] = {}


class Program(Compiled):
    """Steps compiled to system calls, ready to be spawned any number of times.

    `steps` run in the order given and end with `execute(...)`. Three steps are added where they
    are not named: the child's own descriptor table comes first; the descriptors 0, 1 and 2 are
    placed before anything of the sandbox closes; the caller's signal mask is set just before exec.

    With a `deadline`, in seconds, the child does not hold the thread that spawns, and is killed
    when its set-up is not done by then.

    Attributes:
        argv: what the program is started with.
        setup: all of it but the exec.

    Raises: DeclarationError, before any child is made.
    """

    __slots__ = ("argv",)

    def __init__(self, steps: Iterable[Step], *, deadline: float | None = None) -> None:
        has_clone3 = bool(lib.ck_has_clone3())
        steps = list(steps)
        suspended = suspension(steps)
        holds = deadline is None and suspended is None and not any(map(asks, steps))
        manner = VFORKED if holds else DRIVEN
        steps = completed(steps, manner, has_clone3=has_clone3)
        arranged = Arranged(steps, manner, (ALIVE,) if needs_stage(steps) >= 0 else ())
        self.argv: tuple[Any, ...] = tuple(steps[-1].arguments[0])
        if arranged.stage < 0:
            self._compile(arranged, steps, has_clone3=has_clone3)
        else:
            from clonekit.stage import Rest, first_part

            self._compile(first_part(arranged), steps, has_clone3=has_clone3)
            self.rest = Rest(arranged, steps, has_clone3=has_clone3)
            self.setup.rest = self.rest.setup
        self.setup.deadline = None if deadline is None else deadline_of(deadline)
        self.setup.suspension = suspended

    @classmethod
    def after(
        cls,
        setup: Setup,
        argv: Sequence[Text],
        executable: Text | None,
        env: Mapping[Text, Text] | None,
    ) -> Self:
        """The program of a setup and an exec by path: what `__init__` makes, by a shorter way."""
        program = cls.__new__(cls)
        program._last = (argv, executable, env)  # noqa: SLF001 - our own
        last = setup.rest or setup
        try:
            records, image, pointers = packed(
                last.records, last.image, last.pointers, len(last.steps), argv, executable, env
            )
        except WRONG_TYPES:
            list(execute(argv, executable=executable, env=env).records())  # says what is wrong
            raise
        program.argv = tuple(argv)
        if setup.rest is None:
            program._link(setup, records, image, pointers)  # noqa: SLF001 - our own
            return program
        from clonekit.stage import Rest

        program._link(setup, setup.records, setup.image, setup.pointers)  # noqa: SLF001 - our own
        program.rest = Rest.after(setup.rest, program._last, records, image, pointers)  # noqa: SLF001 - our own
        return program

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of the inputs that `spawn` must be given."""
        return tuple(name for name in self.setup.names if name in self.setup.slots)

    def spawn(self, **slots: object) -> Process:
        """Run the program in a new child, and come back when it has begun.

        `slots` gives each input of the program: descriptors (ours) or numbers. The calling thread
        waits, and signals wait with it, until exec; the GIL is released. With a deadline, or where
        the program is to be suspended, signals do not wait.

        Raises: SpawnError naming the step that failed, TimeoutError too for one that was not done
            by the deadline; DeclarationError for slots.
        """
        return self.spawned(slots)

    def spawned(self, slots: Mapping[str, object]) -> Process:
        """As `spawn`, of a mapping: Python does not look for signals when this has come back."""
        handle: Process = self.handle()
        self.begin(handle, slots)
        return handle

    def trace(self, **slots: object) -> tuple[Process, Trace]:
        """As `spawn`, with each call's result and time, which are taken without a system call."""
        handle = self.handle()
        trace = self.begin(handle, slots, [])
        return handle, trace  # type: ignore[return-value]

    def handle(self) -> Any:
        """The handle of a child that is yet to be made: a Process, or a Suspended."""
        return handle_of(self)

    def begin(
        self, handle: Any, slots: Mapping[str, object], trace: list[object] | None = None
    ) -> Trace | None:
        """Begin it in a new child, which belongs to the handle from the moment when there is one.

        Whatever is raised, by the handler of a signal too, there is no child then.
        """
        try:
            if self.rest is not None:
                from clonekit.staged import run as run_staged

                return run_staged(self, slots, trace, handle)
            values = self.values(slots) if slots or self.setup.inputs else None
            drive = run_vforked if self.setup.manner.holds else run_driven
            return drive(self, values, trace, handle)
        except BaseException:
            handle.__exit__(None, None, None)
            raise

    def __repr__(self) -> str:
        return (
            f"<Program {list(self.argv)!r}: {len(self.setup.steps) + 1} steps, {len(self)} records>"
        )

    def values(self, slots: Mapping[str, object], own: Mapping[str, int] = NO_VALUES) -> list[int]:
        """The input registers of one spawn, of them our own."""
        setup = self.setup
        if slots.keys() != setup.slots:
            raise wrong_slots(setup.slots, frozenset(slots))
        values = {**setup.known, **own}
        for name, value in slots.items():
            values[name] = value if isinstance(value, int) else Fd(value).of  # type: ignore[assignment]
        above = setup.floor
        for name in setup.fd_slots:
            fd = values.get(name)
            if fd is not None:
                check_open(name, fd)
                above = max(above, fd + 1)
        values[ABOVE.name] = above
        return [values.get(name, -1) for name in setup.names]


def asks(step: object) -> bool:
    """Whether a step asks its parent for something."""
    return (
        isinstance(step, Step)
        and step.kind.asks
        and any(type(record) is Ask for record in step.records())
    )


def wrong_slots(wanted: frozenset[str], given: frozenset[str]) -> DeclarationError:
    """Which are missing, and which are not known."""
    missing, unknown = (", ".join(sorted(names)) for names in (wanted - given, given - wanted))
    msg = "; ".join(
        [f"give the slot {missing}"] * bool(missing)
        + [f"the program has no slot {unknown}"] * bool(unknown)
    )
    return DeclarationError(msg)


def check_open(name: str, fd: int) -> None:
    """Refuse a slot whose descriptor is not open."""
    try:
        os.get_inheritable(fd)
    except OSError:
        msg = f"slot {name}: descriptor {fd} is not open"
        raise DeclarationError(msg) from None
