"""Programs, traces and findings as tables for a terminal, and as JSON for tools."""

from __future__ import annotations

import itertools
import os
import re
import sys

from clonekit.errors import errno_name
from clonekit.linux.abi import LAST_ERRNO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, TextIO

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from clonekit.features import Finding
    from clonekit.program import Program
    from clonekit.vforked import Trace

UNBOUNDED = 4000
LONGEST = 600


def show_program(program: Program, stream: TextIO) -> None:
    """A program as a table: phase, step, system calls."""
    from rich.text import Text

    from clonekit.explain import clone_text, rows

    console = console_for(stream)
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


def traced(program: Program, times: Trace) -> Iterator[dict[str, Any]]:
    """The records that ran, with their times in nanoseconds and their results."""
    from clonekit.explain import rows

    for row, (begin, end, result) in zip(rows(program), times.records, strict=False):
        outcome = {"error": errno_name(-result)} if failed(result) else {"result_value": result}
        yield {**row, "begin_ns": round(begin), "duration_ns": round(end - begin), **outcome}


def failed(result: int) -> bool:
    """Whether a system call's result is an errno below zero."""
    return -LAST_ERRNO <= result < 0


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
