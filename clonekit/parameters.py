"""What the parameters of `subprocess.Popen` say, as a declaration, and its program."""

from __future__ import annotations

import os

from clonekit.completion import open_stdio
from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib
from clonekit.records import Slot
from clonekit.spec import SAID_ELSEWHERE, Spec, meant
from clonekit.steps.credentials import KEEP
from clonekit.steps.descriptors import INHERIT, inherits, targets_of
from clonekit.steps.execute import in_path
from clonekit.steps.place import MOST_UMASK
from clonekit.steps.signals import PYTHON_IGNORES
from clonekit.untraceable import refuse_debug_dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from clonekit.prepared import Prepared
    from clonekit.program import Program

SHELL = "/bin/sh"
SLOTS = (Slot("stdin"), Slot("stdout"), Slot("stderr"))
NO_STREAMS = (-1, -1, -1)
MOST_ID = (1 << 32) - 2
MOST_INT = (1 << 31) - 1
MOST_SHAPES = 64
#: The parameters that become fields, in this order, and which.
FIELD_OF = {
    "cwd": "cwd",
    "umask": "umask",
    "restore_signals": "sigdefault",
    "group": "gid",
    "extra_groups": "groups",
    "user": "uid",
    "start_new_session": "setsid",
    "process_group": "pgid",
}
#: What was compiled last, by all that it depends on.
_shapes: dict[tuple[object, ...], Prepared] = {}

#: What is said otherwise by a Popen than by a declaration alone, or by `run`.
SAID_OTHERWISE = {
    "capture_output": "stdout=PIPE, stderr=PIPE; run() has it",
    "input": "stdin=PIPE, and communicate(input); run() has it",
    "timeout": "wait(timeout=...), or asyncio.timeout(...); run() has it",
    "check": "check_call() or run(), or spec=Spec(argv, check=True) to ask the kernel beforehand",
    "suspended": "clonekit.spawn(argv, suspended=True); a Popen runs when it is made",
}


def unknown_parameter(name: str, known: Iterable[str]) -> TypeError:
    """What was meant, perhaps."""
    told = meant(name, {**SAID_ELSEWHERE, **SAID_OTHERWISE}, known) or (
        "it takes those of subprocess.Popen, and the fields of a declaration (help(Spec))"
    )
    return TypeError(f"there is no parameter {name!r}; {told}")


def refuse_both(declared: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    """What a spec says is not said by a keyword too: one of them would be lost."""
    for name in declared.keys() & spec.keys():
        msg = f"{name} is in spec, too; give one of them, or spec.replace({name}=...)"
        raise DeclarationError(msg)


def streams_of(
    ours: tuple[int, int, int], pass_fds: Sequence[int], close_fds: Any
) -> tuple[tuple[Any, ...], dict[str, int]]:
    """What descriptors a child shall have, with the streams as slots; and what these stand for."""
    which: tuple[int, ...] = NO_STREAMS
    slots: dict[str, int] = {}
    if ours != NO_STREAMS:
        which = tuple([-1 if fd == -1 else ours.index(fd) for fd in ours])
        slots = {SLOTS[n].name: ours[n] for n in which if n >= 0}
    passed = tuple(map(int, pass_fds)) if pass_fds else ()
    return (which, bool(close_fds), passed, lib.ck_open_stdio()), slots


def vector(streams: tuple[Any, ...], declared: Any) -> Any:
    """The field `fds`: what was declared, and the descriptors of `streams_of` over it."""
    which, closes, passed, open_bits = streams
    fds: dict[Any, Any] = {}
    if declared is not None:
        targets_of({} if declared == INHERIT else declared)  # says what is wrong
        fds = {...: INHERIT} if declared == INHERIT else dict(declared)
    elif closes:
        fds = {**open_stdio(open_bits)}
    if not closes and not inherits(fds):
        fds[...] = INHERIT
    fds |= {to: SLOTS[n] for to, n in enumerate(which) if n >= 0}
    return {**dict(zip(passed, passed, strict=True)), **fds}


def command(args: Any, executable: Any, shell: Any) -> tuple[list[Any], Any]:
    """The argument vector, and the name of the program that is to be begun."""
    if type(args) is list:
        argv = args.copy()
    elif isinstance(args, str | bytes):
        argv = [args]
    elif isinstance(args, os.PathLike):
        if shell:
            msg = "path-like args is not allowed when shell is true"
            raise TypeError(msg)
        argv = [args]
    else:
        argv = list(args)
    if shell:
        argv = [executable or SHELL, "-c", *argv]
    return argv, argv[0] if executable is None else executable


def searched(program: Any, env: Any) -> Any:
    """A program that is not argv[0]: a path, or where PATH says that it may be."""
    name = os.fsencode(program)
    return program if b"/" in name else tuple(in_path(name, env))


def asked(  # noqa: PLR0917 - the standard library's own order
    cwd: Any,
    restore_signals: Any,
    gid: int | None,
    gids: Sequence[int] | None,
    uid: int | None,
    umask: int,
    start_new_session: Any,
    process_group: int,
) -> tuple[Any, ...]:
    """The values of the fields in `FIELD_OF`; None for what the program has as we have it."""
    return (
        cwd if cwd is None or type(cwd) is str else os.fsdecode(cwd),
        None if umask < 0 else fitting(umask, "umask", MOST_INT) & MOST_UMASK,
        None if restore_signals else (),
        gid if gid is None else fitting(gid, "group"),
        None if gids is None else tuple(gids),
        uid if uid is None else fitting(uid, "user"),
        True if start_new_session else None,
        None if process_group < 0 else fitting(process_group, "process_group", MOST_INT),
    )


def fitting(number: int, what: str, most: int = MOST_ID) -> int:
    """A number that the kernel can be told, of which True is one."""
    if number > most:
        msg = f"{what} {number} is too large; give at most {most}"
        raise OverflowError(msg)
    return int(number)


def compiled(  # noqa: PLR0917 - all that a program is made of
    values: tuple[Any, ...], streams: tuple[Any, ...], declared: Mapping[str, Any],
    argv: list[Any], path: Any, env: Any,
) -> Program:  # fmt: skip
    """The program of these values, of `asked`.

    Raises: DeclarationError.
    """
    if declared:
        return Spec(argv, **fields_of(values, streams, declared, path, env)).program()
    _, _, _, gid, gids, uid, _, _ = values
    if not (uid is gid is gids is None):
        refuse_debug_dumps()  # of what we are and may, all that their steps depend on
    shape = (values, streams, lib.ck_has_clone3())
    known = _shapes.get(shape)
    if known is not None:
        return known.program(argv, path, env)
    spec = Spec(argv, **fields_of(values, streams, declared, path, env))
    program = spec.program()
    prepared = spec.prepared()
    if prepared is not None:
        if len(_shapes) >= MOST_SHAPES:
            _shapes.clear()
        _shapes[shape] = prepared
    return program


def fields_of(
    values: tuple[Any, ...],
    streams: tuple[Any, ...],
    declared: Mapping[str, Any],
    path: Any,
    env: Any,
) -> dict[str, Any]:
    """A declaration's fields: what is asked for, over what is declared."""
    said = zip(FIELD_OF.items(), values, strict=True)
    fields = {field: value for (_, field), value in said if value is not None}
    keeps = "uid" in fields or "gid" in fields
    more = declared.get("sigdefault")
    if more is not None:  # beside what restore_signals says
        fields["sigdefault"] = (*fields.get("sigdefault", PYTHON_IGNORES), *more)
    refuse_twice(fields, declared)
    fields = {**declared, **fields, "fds": vector(streams, declared.get("fds"))}
    if keeps:
        fields.setdefault("groups", KEEP)
    if path is not None:
        fields["executable"] = path
    if env is not None:
        if "env" in declared:
            msg = "env is in spec, too; give one of them"
            raise DeclarationError(msg)
        fields["env"] = env
    return fields


def refuse_twice(fields: Mapping[str, Any], declared: Mapping[str, Any]) -> None:
    """What is said by a parameter is not said by a declaration too."""
    if declared.get("suspended"):
        msg = f"suspended: write {SAID_OTHERWISE['suspended']}"
        raise DeclarationError(msg)
    for parameter, field in FIELD_OF.items():
        if field in fields and field != "sigdefault" and declared.get(field) is not None:
            msg = f"{parameter} says what the declaration's {field} says; give one of them"
            raise DeclarationError(msg)
