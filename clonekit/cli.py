"""The command line: run, explain, trace, features.

Its options are made from the steps themselves: a step that has a field in a declaration has an
option of the same name here, and the first line of its documentation is the option's help.

Exit status: the program's; 128 and the signal's number for one that a signal ended; 127 where the
program was not found, 126 where it cannot be executed, 125 for everything that goes wrong before.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import itertools
import os
import re
import select
import signal
import sys

from clonekit.errors import DeclarationError, SpawnError
from clonekit.linux.abi import errno_name
from clonekit.phases import PHASES
from clonekit.spec import FIELDS, Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, NoReturn, TextIO

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from clonekit.features import Finding
    from clonekit.process import Exit, Process
    from clonekit.program import Program
    from clonekit.steps.step import Kind
    from clonekit.vforked import Trace

WRONG = 125
NOT_EXECUTABLE = 126
NOT_FOUND = 127
BY_SIGNAL = 128
#: Signals that the terminal itself sends to our whole process group.
FROM_KEYS = (signal.SIGINT, signal.SIGQUIT)
#: Signals that a program which is stopped shall see at once.
CONTINUED_AFTER = (signal.SIGCONT, signal.SIGHUP, signal.SIGTERM, *FROM_KEYS)

DESCRIPTION = """\
Linux processes made exactly as you say.

  clonekit run [options] -- PROGRAM ARG...      run a program
  clonekit explain [options] -- PROGRAM ARG...  show the calls that make it
  clonekit trace [options] -- PROGRAM ARG...    run it, show each call's time
  clonekit features                             what kernel and user may do here

The options are those of a declaration: see `clonekit run --help`."""
STATUS = """\
Exit status: the program's; 128+N if signal N ended it; 127 if it was not found, 126 if it cannot
be executed; 125 for anything that goes wrong before it begins."""
COMMANDS = {
    "run": "Run a program in the foreground and exit as it does.",
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


class Refused(Exception):  # noqa: N818 - it is an answer to the user, not a fault
    """What was asked cannot be done: a message, and the exit status that says so."""

    def __init__(self, message: str, status: int = WRONG) -> None:
        super().__init__(message)
        self.status = status


# ---- options ---------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and where help is."""
        msg = f"{message.removeprefix('argument ')} (see `{self.prog} --help`)"
        raise Refused(msg)


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
        msg = f"{left[0]} is no option (see `clonekit {arguments.name} --help`)"
        raise Refused(msg)
    arguments.program = program
    return arguments


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
        command = commands.add_parser(
            name, usage=f"clonekit {name} [options] -- PROGRAM [ARG...]", description=told,
            epilog=STATUS, allow_abbrev=False,
        )  # fmt: skip
        command.set_defaults(command=globals()[name])
        if name != "run":
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


def add_options(command: argparse.ArgumentParser) -> None:
    """An option for each field of a declaration, grouped by phase."""
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


def kind_of_option(field: str) -> Kind | None:
    """The step that says how a field is written on the command line, if it can be."""
    kinds = FIELDS[field]
    for kind in kinds:
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
    if option is None:
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


def declared(arguments: argparse.Namespace) -> Spec:
    """The declaration that the options make."""
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
    if arguments.clear_env or variables:
        fields["env"] = env
    return Spec(argv, **fields)


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


def refusal_of_exec(error: OSError, program: object) -> Refused:
    """Why the program could not begin."""
    name = os.fsdecode(program)  # type: ignore[arg-type]
    hint = getattr(error, "hint", "")
    message = f"{name}: {error.strerror} ({errno_name(error.errno or 0)}){hint and f'; {hint}'}"
    return Refused(message, NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE)


# ---- run -------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> int:
    """`clonekit run`."""
    spec = declared(arguments)
    program = compiled(spec)
    job = Job()
    try:
        process = program.spawn()
    except SpawnError as error:
        raise refusal(error, spec.argv[0]) from None
    except DeclarationError as error:
        raise Refused(str(error)) from None
    return status_of(job.attend(process))


def status_of(ended: Exit) -> int:
    """The exit status that a shell would give."""
    return BY_SIGNAL + ended.signal if ended.signal is not None else ended.status or 0


class Job:
    """A program in the foreground, with signals and the terminal as a shell's job has them.

    Where the program is in our process group, the terminal tells it and us alike: we live through
    INT and QUIT to report its end, and stop and go on with it. Where it has a group of its own,
    what we are told is passed on; its stop is ours too, and the terminal, if it took that from
    us, is ours again while it is stopped and after its end.
    """

    __slots__ = ("_borrower", "_early", "_had", "_lent", "_process", "_terminal", "_woken")

    def __init__(self) -> None:
        self._process: Process | None = None
        self._early: list[int] = []
        self._borrower = 0  # the group that took the terminal from us
        self._lent = False  # whether it has it now
        self._terminal = -1
        with contextlib.suppress(OSError):
            self._terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        self._had = self._foreground() == os.getpgrp()
        for number in (
            signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1,
            signal.SIGUSR2, signal.SIGCONT, signal.SIGCHLD,
        ):  # fmt: skip
            # What is ignored here is ignored by the program too, which a handler would undo.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._told)
        # A handler of Python's runs between two calls: without this, a signal that comes just
        # before a wait would be seen after it.
        self._woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)

    def attend(self, process: Process) -> Exit:
        """Wait for the program's end, and for its stops meanwhile."""
        self._process = process
        group = self._foreground()
        if self._had and group != os.getpgrp():
            self._borrower, self._lent = group, True
        for number in self._early:
            self._told(number, None)
        try:
            while not self._has_ended(process):
                if self._is_apart(process):
                    self._take_back()
                    os.kill(os.getpid(), signal.SIGTSTP)
            self._process = None  # nothing is passed on to a number that is free again
            return process.wait()
        finally:
            self._take_back()

    def _has_ended(self, process: Process) -> bool:
        """Wait until the program ends (True) or stops (False)."""
        poller = select.poll()
        poller.register(process.fileno(), select.POLLIN)
        poller.register(self._woken, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poller.poll()]
            if process.fileno() in ready:
                return True
            os.read(self._woken, 4096)
            with contextlib.suppress(ChildProcessError):  # of one that sends no SIGCHLD
                stop = os.WSTOPPED | os.WNOHANG
                if os.waitid(os.P_PIDFD, process.fileno(), stop) is not None:
                    return False

    def _told(self, number: int, _frame: object) -> None:
        """A signal has reached us: pass it on, unless the program was told the same."""
        process = self._process
        if number == signal.SIGCHLD:
            return
        if process is None:
            self._early.append(number)
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if not self._is_apart(process):
                if number not in FROM_KEYS:
                    process.send_signal(number)
                return
            group = os.getpgid(process.pid)
            if number == signal.SIGCONT:
                self._lend_again()
            elif number in FROM_KEYS:
                os.killpg(group, number)
            else:
                process.send_signal(number)
            if number in CONTINUED_AFTER:
                os.killpg(group, signal.SIGCONT)

    def _is_apart(self, process: Process) -> bool:
        """Whether the program is in a process group of its own."""
        try:
            return os.getpgid(process.pid) != os.getpgrp()
        except ProcessLookupError:
            return False

    def _foreground(self) -> int:
        """The group that has our terminal; -1 without one."""
        try:
            return os.tcgetpgrp(self._terminal)
        except OSError:
            return -1

    def _take_back(self) -> None:
        """The terminal is ours again, if it was and the program took it."""
        if self._lent:
            self._lent = False
            self._give(os.getpgrp())

    def _lend_again(self) -> None:
        """We go on: in the foreground, the program has the terminal as before."""
        if self._borrower and self._foreground() == os.getpgrp():
            self._lent = True
            self._give(self._borrower)

    def _give(self, group: int) -> None:
        """Make a group the terminal's foreground group."""
        # In the background this very call would stop us, were SIGTTOU not blocked.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
        with contextlib.suppress(OSError):
            os.tcsetpgrp(self._terminal, group)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- explain ---------------------------------------------------------------------------------


def explain(arguments: argparse.Namespace) -> int:
    """`clonekit explain`."""
    program = compiled(declared(arguments))
    if arguments.json:
        print_json(program.explain(), sys.stdout)
        return 0
    from rich.text import Text

    from clonekit.explain import clone_text, rows

    console = console_for(sys.stdout)
    told = rows(program)
    phase_width = max(len(row["phase"]) for row in told)
    natural = max(len(row["step"]) for row in told)
    step_width = min(natural, max(24, console.width * 3 // 10))
    call_width = max(24, console.width - phase_width - step_width - 4)
    console.print(Text(wrapped(clone_text(program), console.width), "bold"), soft_wrap=True)
    table = columns(
        ("phase", phase_width, "left"), ("step", step_width, "left"), ("system call", None, "left")
    )
    phase = ""
    for _, group in itertools.groupby(told, key=lambda row: row["step_number"]):
        calls = list(group)
        same, phase = phase == calls[0]["phase"], calls[0]["phase"]
        table.add_row(
            Text("" if same else phase, "cyan"),
            Text(wrapped(calls[0]["step"], step_width), "dim"),
            Text("\n").join(call_cell(row, call_width) for row in calls),
        )
    console.print()
    console.print(table)
    return 0


def call_cell(row: dict[str, Any], width: int) -> Text:
    """A system call, its name set off; what it gives a name to, after it."""
    from rich.text import Text

    named = f" = {row['result']}" if "result" in row else ""
    cell = Text(wrapped(row["text"] + named, width))
    if "syscall" not in row:
        cell.stylize("dim")
        return cell
    cell.stylize("bold", 0, cell.plain.find("("))
    cell.highlight_regex(r"\$[\w.]+", "magenta")
    return cell


# ---- trace -----------------------------------------------------------------------------------


def trace(arguments: argparse.Namespace) -> int:
    """`clonekit trace`."""
    spec = declared(arguments)
    program = compiled(spec)
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


def traced(program: Program, times: Trace) -> Iterator[dict[str, Any]]:
    """The records that ran, with their times in nanoseconds and their results."""
    from clonekit.explain import rows

    for row, (begin, end, result) in zip(rows(program), times.records, strict=False):
        outcome = {"error": errno_name(-result)} if failed(result) else {"result_value": result}
        yield {**row, "begin_ns": round(begin), "duration_ns": round(end - begin), **outcome}


def failed(result: int) -> bool:
    """Whether a system call's result is an errno below zero."""
    return -4095 <= result < 0  # noqa: PLR2004 - the kernel's MAX_ERRNO


def show_json(program: Program, times: Trace, stream: TextIO) -> None:
    """The trace for tools."""
    print_json([row for row in traced(program, times) if "syscall" in row], stream)


def show_trace(program: Program, times: Trace, stream: TextIO) -> None:
    """The trace as a table, with a bar for each system call, all to one scale."""
    from rich.text import Text

    from clonekit.explain import clone_text

    console = console_for(stream)
    told = [row for row in traced(program, times) if "syscall" in row]
    until = told[0]["begin_ns"] if told else round(times.total)
    clone = clone_text(program)
    told.insert(
        0,
        {
            "text": clone, "syscall": clone.partition("(")[0], "begin_ns": 0, "duration_ns": until,
            "result_value": "", "phase": "clone",
        },
    )  # fmt: skip
    outcomes = [str(row.get("error", row.get("result_value"))) for row in told]
    outcome_width = max(6, *map(len, outcomes))
    bar_width = 24 if console.width >= 100 else 14  # noqa: PLR2004 - where a bar has more room
    call_width = max(24, console.width - outcome_width - 8 - bar_width - 6)
    table = columns(
        ("system call", None, "left"), ("result", outcome_width, "right"), ("time", 8, "right"),
        ("", bar_width, "left"),
    )  # fmt: skip
    for row, outcome in zip(told, outcomes, strict=True):
        colour = (
            "red" if "error" in row else "green" if row["phase"] in ("clone", "exec") else "blue"
        )
        table.add_row(
            call_cell(row, call_width),
            Text(outcome, "red" if "error" in row else ""),
            duration(row["duration_ns"]),
            Text(bar(row["begin_ns"], row["duration_ns"], times.total, bar_width), colour),
        )
    console.print(table)
    console.print(Text(f"{duration(times.total)} from the clone until the program had begun"))


def duration(nanoseconds: float) -> str:
    """Three digits and a unit."""
    value, units = nanoseconds, iter(("ns", "µs", "ms", "s"))
    unit = next(units)
    while value >= 999.5 and unit != "s":  # noqa: PLR2004 - what three digits can say
        value, unit = value / 1000, next(units)
    digits = 0 if unit == "ns" or value >= 99.95 else 1 if value >= 9.995 else 2  # noqa: PLR2004 - as above
    return f"{value:.{digits}f} {unit}"


def bar(begin: float, length: float, total: float, width: int) -> str:
    """A bar to scale, in eighths of a column, and never without a trace."""
    first = min(int(begin / total * width), width - 1)
    eighths = min(max(1, round(length / total * width * 8)), 8 * (width - first))
    return " " * first + "█" * (eighths // 8) + "▏▎▍▌▋▊▉"[eighths % 8 - 1] * (eighths % 8 > 0)


# ---- features --------------------------------------------------------------------------------


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


def show_features(found_: list[Finding]) -> None:
    """What was found, as a table."""
    from rich.text import Text

    console = console_for(sys.stdout)
    kernel = os.uname()
    console.print(
        Text(f"{kernel.sysname} {kernel.release}, {kernel.machine}, uid {os.geteuid()}", "bold")
    )
    name_width = max(len(finding.name) for finding in found_)
    table = columns(
        ("feature", name_width, "left"),
        ("since", 5, "left"),
        ("here", 4, "left"),
        ("", None, "left"),
    )
    detail_width = max(24, console.width - name_width - 9 - 6)
    for finding in found_:
        table.add_row(
            Text(finding.name),
            Text(finding.since, "dim"),
            Text("yes", "green") if finding.available else Text("no", "red"),
            Text(wrapped(finding.detail, detail_width), "" if finding.available else "yellow"),
        )
    console.print(table)


# ---- what is printed -------------------------------------------------------------------------

UNBOUNDED = 4000
LONGEST = 600


def console_for(stream: TextIO) -> Console:
    """Where tables go: as wide as the terminal, or unbroken where there is none."""
    from rich.console import Console

    stream.reconfigure(errors="replace")  # type: ignore[attr-defined] # a table is better than an exception
    width = None if stream.isatty() or "COLUMNS" in os.environ else UNBOUNDED
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def columns(*described: tuple[str, int | None, str]) -> Table:
    """A plain table of columns: title, width, side."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for title, width, side in described:
        table.add_column(title, width=width, justify=side, no_wrap=True, overflow="crop")  # type: ignore[arg-type]
    return table


def wrapped(text: str, width: int) -> str:
    """The text in lines of this width, broken between arguments and flags."""
    text = one_line(text)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - 100]} ... {text[-95:]}"
    lines = [""]
    for word in re.findall(r"(?:[^,|;]|[,;](?! ))+(?:[,;] |\|)?|.", text):
        if len(lines[-1]) + len(word.rstrip()) > width and lines[-1].strip():
            lines[-1] = lines[-1].rstrip()
            lines.append("  ")
        lines[-1] += word
        while len(lines[-1].rstrip()) > width:
            cut = lines[-1].rfind(" ", width // 2, width) + 1 or width
            lines[-1], rest = lines[-1][:cut].rstrip(), "  " + lines[-1][cut:]
            lines.append(rest)
    return "\n".join(lines)


def one_line(text: str) -> str:
    """The text with what would move the cursor, or cannot be encoded, written out."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def print_json(entries: list[dict[str, Any]], stream: TextIO) -> None:
    """A list of objects, one a line."""
    import json

    lines = ",\n".join(json.dumps(entry) for entry in entries)
    stream.write(f"[\n{lines}\n]\n")
