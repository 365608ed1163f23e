"""The command line's options, made from the steps themselves, and the declaration that they make.

A step that has a field in a declaration has an option of the same name, and the first line of its
documentation is the option's help.
"""

from __future__ import annotations

import argparse
import errno
import os

from clonekit.errors import DeclarationError, errno_name
from clonekit.phases import PHASES
from clonekit.shorthands import SHORTHANDS, applied
from clonekit.spec import FIELDS, Spec
from clonekit.steps.step import NO_OPTION

TYPE_CHECKING = False
if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable
    from typing import Any, NoReturn

    from clonekit.steps.step import Kind

WRONG = 125
NOT_EXECUTABLE = 126
NOT_FOUND = 127


class Refused(Exception):  # noqa: N818 - it is an answer to the user, not a fault
    """What was asked cannot be done: a message, and the exit status that says so."""

    def __init__(self, message: str, status: int = WRONG) -> None:
        super().__init__(message)
        self.status = status


def refusal_of_exec(error: OSError, program: object) -> Refused:
    """Why the program could not begin."""
    name = os.fsdecode(program)  # type: ignore[arg-type]
    hint = getattr(error, "hint", "")
    message = f"{name}: {error.strerror} ({errno_name(error.errno or 0)}){hint and f'; {hint}'}"
    return Refused(message, NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE)


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and where help is."""
        msg = f"{message.removeprefix('argument ')} (see `{self.prog} --help`)"
        raise Refused(msg)


def add_options(command: argparse.ArgumentParser) -> None:
    """An option for each field of a declaration, grouped by phase."""
    add_shorthands(command.add_argument_group("shorthands", "for several of what follows"))
    fields: dict[str, list[tuple[str, Kind]]] = {}
    for field in FIELDS:
        kind = kind_of_option(field)
        if kind is not None:
            fields.setdefault(kind.phase, []).append((field, kind))
    for phase, reason in PHASES.items():
        if phase not in fields and phase != "exec":
            continue
        group = command.add_argument_group(phase, reason.replace("%", "%%"))
        for field, kind in fields.get(phase, ()):
            add_option(group, field, kind)
        if phase == "exec":
            add_options_of_exec(group)


def add_shorthands(group: Any) -> None:
    """An option for each shorthand, remembered in their order."""
    for shorthand in SHORTHANDS:
        group.add_argument(
            shorthand.flag, dest="shorthands", action=Ordered, const=shorthand,
            nargs=len(shorthand.takes), metavar=shorthand.takes or None,
            help=shorthand.help.replace("%", "%%"),
        )  # fmt: skip


class Ordered(argparse.Action):
    """Options of which the order counts."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - argparse's signature
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002 - likewise
    ) -> None:
        """Add one to those before it."""
        before = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, [*before, (self.const, values)])


def kind_of_option(field: str) -> Kind | None:
    """The step that says how a field is written on the command line, if it can be."""
    kinds = FIELDS[field]
    for kind in kinds:
        if kind.option is NO_OPTION:
            return None
        if kind.option is not None:
            return kind  # type: ignore[no-any-return]
    kind = kinds[0]
    code = kind.function.__code__
    return kind if code.co_argcount + code.co_kwonlyargcount == 0 else None


def add_option(group: Any, field: str, kind: Kind) -> None:
    """The option of one field."""
    told = " ".join(first_line(other) for other in FIELDS[field]).replace("%", "%%")
    flag, dest = f"--{field.replace('_', '-')}", f"field {field}"
    option = kind.option
    if option is None or not option.metavar:
        group.add_argument(flag, dest=dest, action="store_true", default=None, help=told)
        return
    code, defaults = kind.function.__code__, kind.function.__defaults__ or ()
    details: dict[str, Any] = {"type": value_of(option.parse, option.metavar)}
    if option.many is not None:
        details["action"] = Several
        details["const"] = option.many
        told += " May be repeated."
    elif kind.each is None and code.co_argcount == len(defaults):
        details |= {"nargs": "?", "const": True}
    group.add_argument(flag, dest=dest, metavar=option.metavar, help=told, **details)


def first_line(kind: Kind) -> str:
    """What a step does, in one line."""
    return kind.doc.partition("\n")[0]


def value_of(parse: Callable[[str], Any], metavar: str) -> Callable[[str], Any]:
    """The option's own function, with errors that say what to write."""

    def value(text: str) -> Any:
        try:
            return parse(text)
        except OSError as error:
            msg = f"{text}: {error.strerror}"
        except ValueError as error:
            msg = str(error)
            if "literal" in msg or "could not convert" in msg:
                msg = f"{text!r} is no {metavar}"
        raise argparse.ArgumentTypeError(msg)

    return value


class Several(argparse.Action):
    """An option that may be repeated: its values as a list, or its pairs as a dict.

    Where pairs are due, a value that is none (`--fds inherit`) stands for the whole.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - argparse's signature
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002 - likewise
    ) -> None:
        """Add one value to those before it."""
        before = getattr(namespace, self.dest)
        if self.const is list:
            together: Any = [*(before or ()), values]
        elif isinstance(values, tuple):
            if before is not None and not isinstance(before, dict):
                raise argparse.ArgumentError(self, f"{before!r} leaves no room for another value")
            if before and values[0] in before:
                raise argparse.ArgumentError(self, f"{values[0]} is given twice")
            together = {**(before or {}), values[0]: values[1]}
        else:
            if before is not None:
                raise argparse.ArgumentError(self, f"{values!r} leaves no room for another value")
            together = values
        setattr(namespace, self.dest, together)


def add_options_of_exec(group: Any) -> None:
    """What the step that begins the program takes."""
    group.add_argument(
        "--executable", metavar="PATH",
        help="The file to begin; PROGRAM is then only a name, argv[0].",
    )  # fmt: skip
    group.add_argument(
        "--argv0", metavar="NAME",
        help="The program's argv[0]. PROGRAM without a slash is then looked for in PATH here, not"
        " in the child's root.",
    )  # fmt: skip
    group.add_argument(
        "--env", metavar="NAME=VALUE", action=Variables,
        type=value_of(parse_variable, "NAME=VALUE"),
        help="Set a variable of the environment. May be repeated.",
    )  # fmt: skip
    group.add_argument("--clear-env", action="store_true", help="Begin with an empty environment.")
    group.add_argument(
        "--deadline", metavar="SECONDS", type=value_of(float, "number of seconds"),
        help="Kill the child if its set-up is not done by then. Without it, set-up may block.",
    )  # fmt: skip
    group.add_argument(
        "--check", action="store_true", default=None,
        help="Ask the kernel before the spawn whether the file may be executed (Linux 6.14).",
    )  # fmt: skip


def parse_variable(text: str) -> tuple[str, str]:
    """`NAME=VALUE`."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        msg = f"{text!r} is no variable; write NAME=VALUE"
        raise ValueError(msg)
    return name, value


class Variables(argparse.Action):
    """Variables by name; the last of a name counts."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - argparse's signature
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002 - likewise
    ) -> None:
        """Add one variable."""
        before = getattr(namespace, self.dest) or {}
        setattr(namespace, self.dest, {**before, values[0]: values[1]})


def declared(arguments: argparse.Namespace, held: contextlib.ExitStack) -> Spec:
    """The declaration that the options make; what is made for it alone is held meanwhile."""
    if not arguments.program:
        msg = f"no program is given: clonekit {arguments.name} [options] -- PROGRAM [ARG...]"
        raise Refused(msg)
    fields = {
        name.removeprefix("field "): value
        for name, value in vars(arguments).items()
        if name.startswith("field ") and value is not None
    }
    for name, value in fields.items():
        check_field(name, value)
    argv, executable = list(arguments.program), arguments.executable
    variables = arguments.env or {}
    env = variables if arguments.clear_env else {**os.environ, **variables}
    if arguments.argv0 is not None:
        executable = executable or found(argv[0], env)
        argv[0] = arguments.argv0
    fields |= {"executable": executable, "check": arguments.check}
    fields["deadline"] = arguments.deadline
    try:
        applied(fields, arguments.shorthands or ())
        hold(fields, arguments, held)
    except DeclarationError as error:
        raise Refused(str(error)) from None
    except OSError as error:
        msg = f"{error.filename or arguments.name}: {error.strerror or error}"
        raise Refused(msg) from None
    if arguments.clear_env or variables:
        fields["env"] = env
    return Spec(argv, **fields)


def hold(fields: dict[str, Any], arguments: argparse.Namespace, held: contextlib.ExitStack) -> None:
    """Make a group for limits, and open the process that is entered."""
    limits = fields.pop("limits", None)
    if limits:
        from clonekit.cgroup import Cgroup

        if "cgroup" in fields:
            msg = (
                "limits are those of a group that is made; leave --cgroup out, or write them there"
            )
            raise DeclarationError(msg)
        fields["cgroup"] = held.enter_context(Cgroup(limits=limits))
    if "entered" in arguments:
        from clonekit.entering import Entrance

        arguments.entrance = entrance = held.enter_context(
            Entrance(
                arguments.entered, arguments.only, root=not arguments.own_root,
                cgroup=arguments.its_cgroup,
            )
        )  # fmt: skip
        for field, value in entrance.fields.items():
            if field in fields:
                msg = f"{field} is that of the process that is entered; leave it out"
                raise DeclarationError(msg)
            fields[field] = value


def check_field(name: str, value: object) -> None:
    """Compile one field by itself, so that an error can name its option."""
    try:
        for kind in FIELDS[name]:
            for step in kind.of_field(value):
                for _ in step.records():
                    pass
    except (ValueError, TypeError) as error:
        msg = f"--{name.replace('_', '-')}: {str(error).removeprefix(f'{name}: ')}"
        raise Refused(msg) from None


def found(program: str, env: dict[str, str]) -> str:
    """Where a program is, by the PATH that it will have."""
    import shutil

    path = shutil.which(program, path=env.get("PATH", os.defpath))
    if path is None:
        raise refusal_of_exec(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)), program)
    return path
