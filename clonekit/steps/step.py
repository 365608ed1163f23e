"""What a step is: a small function that yields system calls, known by its name.

From the one block that defines a step come the declaration's field, the command line's option
and its help, the line that `explain` prints and the row in the reference table.
"""

from __future__ import annotations

import struct

from clonekit.errors import DeclarationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, ParamSpec

    from clonekit.records import Records

    P = ParamSpec("P")


def overload(function: Callable[P, Any]) -> Callable[P, Any]:
    """`typing.overload` at run time, without the time that importing typing takes."""
    return function


#: What Python raises where a value is of the wrong kind.
WRONG_TYPES = (TypeError, AttributeError, ArithmeticError, LookupError, ValueError, struct.error)
#: Every step, by name, in the order of definition.
KINDS: dict[str, Kind] = {}


class Option:
    """How the command line writes a field: one text becomes one value.

    `many` says that the option may be repeated: its values make a `list`, or a `dict` from pairs.
    A flag has no text: its presence means True.
    """

    __slots__ = ("many", "metavar", "parse")

    def __init__(
        self,
        metavar: str = "",
        parse: Callable[[str], Any] = str,
        many: type[list[Any] | dict[Any, Any]] | None = None,
    ) -> None:
        self.metavar = metavar
        self.parse = parse
        self.many = many


#: For a field that makes no sense on the command line.
NO_OPTION = Option()


def names_or_number(text: str) -> int | list[str]:
    """`one,two`, or a number."""
    return int(text, 0) if text[:1].isdigit() else text.split(",")


class Kind:
    """One step of the library: its phase, its field in a declaration, its function."""

    __slots__ = (
        "__dict__", "apart", "asks", "each", "field", "function", "lasting", "name", "option",
        "ours", "phase", "raw",
    )  # fmt: skip

    def __init__(
        self,
        function: Callable[..., Records],
        phase: str,
        field: str | None,
        each: Callable[[Any], Iterable[tuple[Any, ...]]] | None,
        option: Option | None,
        *,
        apart: bool,
        asks: bool,
        lasting: bool | Callable[[Any], object],
        ours: bool,
        raw: bool,
    ) -> None:
        self.apart = apart
        self.asks = asks
        self.lasting = lasting
        self.ours = ours
        self.raw = raw
        self.function = function
        self.name = function.__name__
        self.__doc__ = function.__doc__  # these two for help() and inspect
        self.__wrapped__ = function
        self.phase = phase
        self.field = field
        self.each = each
        self.option = option

    def __call__(self, *arguments: Any, **keywords: Any) -> Step:
        """The step with these arguments."""
        return Step(self, arguments, keywords)

    def __repr__(self) -> str:
        return f"<step {self.name}, phase {self.phase}>"

    @property
    def doc(self) -> str:
        """The step's documentation."""
        return self.function.__doc__ or ""

    def of_field(self, value: Any) -> Iterable[Step]:
        """The steps that a declaration's value of this field stands for."""
        if self.each is not None:
            try:
                return [Step(self, arguments, {}) for arguments in self.each(value)]
            except WRONG_TYPES as error:
                what = f"{self.field}={readable(value)}"
                raise not_taken(what, self, error) from error
        if value is False:
            return []
        code = self.function.__code__
        if value is True:
            if code.co_argcount > len(self.function.__defaults__ or ()):
                msg = f"{self.field} is True; give a value: help(clonekit.steps.{self.name})"
                raise DeclarationError(msg)
            return [Step(self, (), {})]
        if not code.co_argcount:
            msg = f"{self.field} is {value!r}; write True or False"
            raise DeclarationError(msg)
        return [Step(self, (value,), {})]


class Step:
    """A step with its arguments: an element of a program."""

    __slots__ = ("arguments", "keywords", "kind")

    def __init__(self, kind: Kind, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.kind = kind
        self.arguments = arguments
        self.keywords = keywords

    @property
    def phase(self) -> str:
        """The phase of the declaration's order that it belongs to."""
        return self.kind.phase

    def records(self) -> Records:
        """The system calls that it stands for.

        Raises: DeclarationError for arguments that they cannot be made of.
        """
        try:
            yield from self.kind.function(*self.arguments, **self.keywords)
        except WRONG_TYPES as error:
            why = text_for_number(self.kind, self.arguments) or error
            raise not_taken(repr(self), self.kind, why) from error

    def __repr__(self) -> str:
        inside = [readable(value) for value in self.arguments]
        for key, value in self.keywords.items():
            hidden = key == "env" and value is not None  # its values may be secrets
            count = f"{len(value)} variables" if hasattr(value, "items") else type(value).__name__
            inside.append(f"{key}={f'<{count}>' if hidden else readable(value)}")
        return f"{self.kind.name}({', '.join(inside)})"


def text_for_number(kind: Kind, arguments: tuple[Any, ...]) -> str:
    """What to say of text where a number is wanted, instead of Python's own words."""
    annotations = kind.function.__annotations__
    for (name, wanted), value in zip(annotations.items(), arguments, strict=False):
        if isinstance(value, str) and wanted in ("int", "float"):
            octal = value[1:] if value[:1] == "0" else ""
            number = f"0o{octal}" if octal.isdigit() else value
            as_that = f", as {number}" if value.isdigit() else ""
            return f"{name} is {value!r}, which is text; give a number{as_that}"
    return ""


def not_taken(what: str, kind: Kind, error: Exception | str) -> DeclarationError:
    """What a value is, and what the step takes instead."""
    if isinstance(error, DeclarationError):
        return error
    import inspect

    takes = str(inspect.signature(kind.function)).partition(" -> ")[0].replace("'", "")
    msg = f"{what}: {error}; write {kind.name}{takes}"
    return DeclarationError(msg)


def readable(value: object) -> str:
    """An argument as a person would write it, shortened where it is long."""
    if isinstance(value, bytes) and len(value) > 32:  # noqa: PLR2004 - the width of a column
        return f"<{len(value)} bytes>"
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004 - likewise


def step(
    *,
    phase: str,
    field: str | None = None,
    each: Callable[[Any], Iterable[tuple[Any, ...]]] | None = None,
    option: Option | None = None,
    apart: bool = False,
    asks: bool = False,
    lasting: bool | Callable[[Any], object] = False,
    ours: bool = False,
    raw: bool = False,
) -> Callable[[Callable[P, Records]], Callable[P, Step]]:
    """Make a generator of records a step.

    `field` is its name in a declaration; `each` turns that field's value into the arguments of
    one or more steps (by default the value is the one argument, and True means "no argument").
    `lasting` promises that the records depend on the field's value alone, never on our own ids,
    files or descriptors: what they compile to may then serve again. Where they depend on more, it
    is a function of the value that gives all that they depend on, or None if that cannot be told.
    `ours` says that they depend on our ids, capabilities and limits too, as `clonekit.lasting.ours`
    has them. `apart` says that it may need a memory of the child's own, `asks` that the parent may
    be asked for something. `raw` says that the caller chooses the call itself, which is then
    checked against what a child must not do.
    """

    def register(function: Callable[P, Records]) -> Callable[P, Step]:
        kind = KINDS[function.__name__] = Kind(
            function, phase, field, each, option, apart=apart, asks=asks, lasting=lasting,
            ours=ours, raw=raw,
        )  # fmt: skip
        return kind

    return register
