"""The command line: run, enter, explain, trace, features.

Exit status: the program's; 128 and the signal's number for one that a signal ended; 127 where the
program was not found, 126 where it cannot be executed, 125 for everything that goes wrong before.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys

from clonekit.errors import DeclarationError, SpawnError
from clonekit.job import Job
from clonekit.options import Parser, Refused, add_options, declared, refusal_of_exec
from clonekit.shorthands import SHORTHANDS
from clonekit.spec import FIELDS
from clonekit.steps.namespaces import FLAGS, OCI_NAMES, parse_names
from clonekit.tables import (
    one_line,
    print_json,
    show_features,
    show_json,
    show_program,
    show_trace,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from clonekit.process import Exit
    from clonekit.program import Program
    from clonekit.spec import Spec

BY_SIGNAL = 128
#: What bwrap(1), unshare(1) and container engines call otherwise, and what it is here.
SAID_ELSEWHERE = {
    "--cap-drop": "--capabilities bounding=NAMES, those that are kept",
    "--clearenv": "--clear-env",
    "--dir": "--tmpfs DEST; what is missing above a mount is made",
    "--ro-bind-data": "--file FD DEST",
    "--setenv": "--env NAME=VALUE",
    "--share-net": "--unshare NAMES with all but net",
    "--timeout": "timeout SECONDS before clonekit; --deadline is for the set-up alone",
    "--volume": "--bind SRC DEST or --ro-bind SRC DEST",
    "--workdir": "--chdir DIR",
}

DESCRIPTION = """\
Linux processes made exactly as you say.

  clonekit run [options] -- PROGRAM ARG...        run a program
  clonekit enter PID [options] -- PROGRAM ARG...  run it beside a process
  clonekit explain [options] -- PROGRAM ARG...    show the calls that make it
  clonekit trace [options] -- PROGRAM ARG...      run it, show each call's time
  clonekit features                               what is possible here

The options are those of a declaration: see `clonekit run --help`."""
STATUS = """\
Exit status: the program's; 128+N if signal N ended it; 127 if it was not found, 126 if it cannot
be executed; 125 for anything that goes wrong before it begins."""
COMMANDS = {
    "run": "Run a program in the foreground and exit as it does.",
    "enter": (
        "Run a program in the namespaces and the root of a process that runs, and exit as it does."
    ),
    "explain": "Show the system calls between clone and exec. Nothing is run.",
    "trace": (
        "Run a program and show the result and the time of each system call that made it. The "
        "trace goes to stderr when the program has ended, so that its output stays its own; with "
        "--output it goes to a file, as soon as the program has begun."
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; the result is the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = parsed(words)
        status: int = arguments.command(arguments)
        sys.stdout.flush()
    except Refused as refusal:
        print(f"clonekit: {one_line(str(refusal))}", file=sys.stderr)
        return refusal.status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BY_SIGNAL + signal.SIGPIPE
    except KeyboardInterrupt:
        return BY_SIGNAL + signal.SIGINT
    return status


def parsed(words: list[str]) -> argparse.Namespace:
    """The command line's words, those after `--` as the program."""
    program: list[str] | None = None
    if "--" in words:
        at = words.index("--")
        words, program = words[:at], words[at + 1 :]
    arguments, left = parser().parse_known_args(words)
    if left and not left[0].startswith("-") and program is None:
        msg = f"write `--` before the program: clonekit {arguments.name} [options] -- {left[0]}"
        raise Refused(msg)
    if left:
        raise Refused(unknown_option(left[0], arguments.name))
    arguments.program = program
    return arguments


def unknown_option(word: str, command: str) -> str:
    """What was meant, perhaps."""
    import difflib

    if word in SAID_ELSEWHERE:
        return f"{word} is no option; write {SAID_ELSEWHERE[word]}"
    kind = word.removeprefix("--unshare-").removesuffix("-try")
    if OCI_NAMES.get(kind, kind) in FLAGS:
        return f"{word} is no option; write --unshare {OCI_NAMES.get(kind, kind)}"
    known = [shorthand.flag for shorthand in SHORTHANDS]
    known += ["--" + field.replace("_", "-") for field in FIELDS]
    near = difflib.get_close_matches(word.partition("=")[0], known, 3)
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{word} is no option{meant} (see `clonekit {command} --help`)"


def parser() -> Parser:
    """The parser of the whole command line."""
    layout = argparse.RawDescriptionHelpFormatter
    whole = Parser(
        prog="clonekit", description=DESCRIPTION, usage="clonekit COMMAND [options]",
        formatter_class=layout, allow_abbrev=False,
    )  # fmt: skip
    commands = whole.add_subparsers(
        metavar="COMMAND", dest="name", required=True, prog="clonekit", help=argparse.SUPPRESS
    )
    for name, told in COMMANDS.items():
        process = "PID " * (name == "enter")
        command = commands.add_parser(
            name, usage=f"clonekit {name} {process}[options] -- PROGRAM [ARG...]", description=told,
            epilog=STATUS, allow_abbrev=False,
        )  # fmt: skip
        command.set_defaults(command=globals()[name] if name != "enter" else run)
        if name == "enter":
            add_entrance(command)
        elif name != "run":
            command.add_argument(
                "--json", action="store_true", help="print a list of objects, for tools"
            )
        if name == "trace":
            command.add_argument("-o", "--output", metavar="FILE", help="write the trace here")
        add_options(command)
    listing = commands.add_parser(
        "features", usage="clonekit features [--json]", allow_abbrev=False,
        description="Try what this kernel lets this user do, and show why where it does not.",
    )  # fmt: skip
    listing.add_argument("--json", action="store_true", help="print a list of objects, for tools")
    listing.set_defaults(command=features)
    return whole


def add_entrance(command: argparse.ArgumentParser) -> None:
    """Which process is entered, and how far."""
    command.add_argument("entered", metavar="PID", type=int, help="the process")
    command.add_argument(
        "--only", metavar="NAMES", type=parse_names,
        help="Join these namespaces; by default all in which the process differs from us.",
    )  # fmt: skip
    command.add_argument(
        "--own-root", action="store_true", help="Keep our root, not the process's."
    )
    command.add_argument(
        "--its-cgroup", action="store_true", help="Begin in the process's cgroup (cgroup2)."
    )


def compiled(spec: Spec) -> Program:
    """The declaration as a program, or what is wrong with it."""
    try:
        return spec.program()
    except DeclarationError as error:
        raise Refused(str(error)) from None
    except OSError as error:
        raise refusal_of_exec(error, spec.argv[0]) from None


def refusal(error: SpawnError, program: object) -> Refused:
    """Why there is no program, with the status that a shell would give."""
    if error.phase == "exec" and error.signal is None:
        return refusal_of_exec(error, program)
    return Refused(str(error))


def run(arguments: argparse.Namespace) -> int:
    """`clonekit run`, and `clonekit enter`."""
    with contextlib.ExitStack() as held:
        spec = declared(arguments, held)
        program = compiled(spec)
        job = Job()
        try:
            process = program.spawn()
        except SpawnError as error:
            refuse_ended(arguments)
            raise refusal(error, spec.argv[0]) from None
        except DeclarationError as error:
            raise Refused(str(error)) from None
        return status_of(job.attend(process))


def refuse_ended(arguments: argparse.Namespace) -> None:
    """A process that was to be entered has ended meanwhile: that is why it failed."""
    if "entrance" in arguments:
        try:
            arguments.entrance.refuse_ended()
        except ProcessLookupError as error:
            raise Refused(str(error.strerror)) from None


def status_of(ended: Exit) -> int:
    """The exit status that a shell would give."""
    return BY_SIGNAL + ended.signal if ended.signal is not None else ended.status or 0


def explain(arguments: argparse.Namespace) -> int:
    """`clonekit explain`."""
    with contextlib.ExitStack() as held:
        program = compiled(declared(arguments, held))
        if arguments.json:
            print_json(program.explain(), sys.stdout)
        else:
            show_program(program, sys.stdout)
    return 0


def trace(arguments: argparse.Namespace) -> int:
    """`clonekit trace`."""
    with contextlib.ExitStack() as held:
        spec = declared(arguments, held)
        return shown(arguments, spec, compiled(spec))


def shown(arguments: argparse.Namespace, spec: Spec, program: Program) -> int:
    """Run it, and show its trace."""
    output = None
    if arguments.output is not None:
        try:
            output = open(arguments.output, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - closed below
        except OSError as error:
            msg = f"--output: {arguments.output}: {error.strerror}"
            raise Refused(msg) from None
    job = Job()
    try:
        process, times = program.trace()
    except SpawnError as error:
        raise refusal(error, spec.argv[0]) from None
    except DeclarationError as error:
        raise Refused(str(error)) from None
    show = show_json if arguments.json else show_trace
    if output is not None:
        with output:
            show(program, times, output)
    ended = job.attend(process)
    if output is None:
        show(program, times, sys.stderr)
    return status_of(ended)


def features(arguments: argparse.Namespace) -> int:
    """`clonekit features`."""
    if arguments.program is not None:
        msg = "features takes no program"
        raise Refused(msg)
    from clonekit.features import findings

    found_ = findings()
    if arguments.json:
        print_json([finding.as_dict() for finding in found_], sys.stdout)
    else:
        show_features(list(found_))
    return 0
