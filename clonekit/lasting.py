"""What a declaration compiles to may serve again: by what that is known.

A key says all that compiling depends on: the values of the fields, what the fields look at when
they are compiled, and what we are and may. What is not surely told so has no key. What cannot
change while we run, as the kernel's version, is in none.
"""

from __future__ import annotations

import os

from clonekit.linux.abi import lib
from clonekit.linux.privilege import capabilities, is_privileged
from clonekit.steps.step import KINDS, WRONG_TYPES
from clonekit.untraceable import suid_dumpable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from clonekit.compiled import Setup

_kinds: dict[str, list[Any]] = {}
for _kind in KINDS.values():
    if _kind.field:
        _kinds.setdefault(_kind.field, []).append(_kind)
#: Fields whose steps all last, and how their steps say so.
LASTING: dict[str, Callable[[Any], object] | bool] = {
    name: kinds[0].lasting
    for name, kinds in _kinds.items()
    if kinds[0].lasting and all(kind.lasting == kinds[0].lasting for kind in kinds)
}
#: Fields whose steps depend on what we are and may, too.
OURS = {name for name, kinds in _kinds.items() if any(kind.ours for kind in kinds)}
OWN = "clonekit."
#: Kinds of value that cannot change.
PLAIN = frozenset({int, str, bytes, bool, float, type(None), type(...)})


def key_of(fields: Mapping[str, Any]) -> tuple[object, ...] | None:
    """All that the setup of these fields depends on, or None where that cannot be told."""
    key: list[object] = [lib.ck_has_clone3(), lib.ck_open_stdio()]
    of_ours = False
    try:
        for name, value in fields.items():
            lasting = True if name == "deadline" else LASTING.get(name)
            if lasting:
                told = value if lasting is True else lasting(value)
                frozen = None if told is None else freeze(told)
                if frozen is None:
                    return None
                key += name, frozen
                of_ours = of_ours or name in OURS
            elif name == "executable":
                if not isinstance(value, str | bytes | tuple):
                    return None
            elif name not in {"env", "check"}:
                return None
        if of_ours:
            key.append(ours())
    except (*WRONG_TYPES, OSError):
        return None  # compiling says what is wrong
    return tuple(key)


def freeze(value: object) -> object:
    """What equals only what compiles the same, or None for a value that could change.

    A class of values of ours has a method `frozen`, which gives all that they are made of, as it is
    now; or None. A subclass may have more, and is not taken for it.
    """
    kind = type(value)
    if kind in PLAIN:
        return kind, value
    if kind is tuple or kind is list:
        parts = tuple([freeze(part) for part in value])  # type: ignore[attr-defined]
        return None if None in parts else (kind, parts)
    if kind is dict:
        parts = tuple([freeze(part) for item in value.items() for part in item])  # type: ignore[attr-defined]
        return None if None in parts else (kind, parts)
    made_of = vars(kind).get("frozen") if kind.__module__.startswith(OWN) else None
    told = None if made_of is None else made_of(value)
    frozen = None if told is None else freeze(told)
    return None if frozen is None else (kind, frozen)


def ours() -> tuple[object, ...]:
    """What steps may depend on of what we are and may: ids, capabilities, limits, sysctls."""
    import resource

    return (
        os.geteuid(), os.getegid(), capabilities(), is_privileged(),
        resource.getrlimit(resource.RLIMIT_NOFILE), suid_dumpable(),
    )  # fmt: skip


def lasts(setup: Setup) -> bool:
    """Whether what it asks of its parent may be done so for others, if it asks."""
    return all(ask.lasting for ask in setup.assembler.asks.values())
