"""Makes pages here and the order in README.md from the source: python docs/generate.py."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING

import clonekit
from clonekit import (
    Cgroup,
    ChildFd,
    Filter,
    Landlock,
    Nascent,
    Process,
    Suspended,
    enter,
    mounts,
    netns,
)
from clonekit.behalf import Opening
from clonekit.linux.id_map import IdMap
from clonekit.network import Macvlan, Move, Network, Veth, networks
from clonekit.notify import Listener, Request
from clonekit.options import kind_of_option
from clonekit.phases import PHASES
from clonekit.preexec import USES
from clonekit.spec import OTHER_FIELDS
from clonekit.steps.step import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonekit.steps.step import Kind

REFERENCE = Path(__file__).with_name("reference.md")
PREEXEC = Path(__file__).with_name("preexec_fn.md")
README = Path(__file__).parent.parent / "README.md"
OPENING = f"""\
# Reference: every field and every step

`docs/generate.py` makes this page from the steps' own documentation, and a test holds it up to
date.

A **field** is a keyword of `Spec` and `spawn`; an **option** is the same on the command line. A
**step** is a function of `clonekit.steps`, for a `Program` in an order of your own. A declaration's
steps run in the order of the phases below. Numbers of descriptors and processes are those of the
caller, unless it is said otherwise. `own_table` and `clear_handlers` are put first by the library
where they are needed. The fields
{", ".join(f"`{name}`" for name in OTHER_FIELDS)} belong to no one step: see `help(clonekit.Spec)`.
"""
HEADER = """\
| step | field | option | effect | raises | since | see |
|---|---|---|---|---|---|---|
"""
MOUNTS_OPENING = """
## What is mounted

The functions of `clonekit.mounts`: values of the fields `mounts` and, where the target is "/",
`rootfs`. `help(...)` of each says more.

| value | effect | raises | since | see |
|---|---|---|---|---|
"""
HANDLES_OPENING = """
## Handles

What `spawn`, `nascent` and `suspended=True` give, and what a declaration takes.
`clonekit.aio.nascent()` gives the second with `do`, `syscall`, `give` and `start` to be awaited;
`clonekit.aio.wait(process)` awaits an end. An order may take 10 s where nobody says otherwise.
`help(...)` of each says more.
"""
HANDLES = {
    Process: "wait poll exit send_signal terminate kill getfd info pidfd fileno close",
    Nascent: "do syscall give getfd start kill pidfd fileno",
    Suspended: (
        "do syscall give getfd map read write registers set_registers auxv resume kill pidfd fileno"
    ),
    ChildFd: "fetch close",
    Cgroup: (
        "path read number stat events pressure pids populated set write freeze thaw kill "
        "wait_empty remove fileno close"
    ),
    Landlock: "enforced",
    Filter: "allow errno kill trap log notify answer from_oci told explain",
    Listener: "serve receive stop events fileno close",
    Request: "call errno result continue_ add_fd read read_string write check is_valid",
    Opening: "open answer",
    Network: "join add fileno close",
    IdMap: "subordinate",
}
NETWORKS_OPENING = """
## Beside and between

`clonekit.enter`, the values of the field `network` and the functions of `clonekit.network`, and
those of `clonekit.netns`. `help(...)` of each says more.

| | effect | raises | since | see |
|---|---|---|---|---|
"""
NETWORKS = (
    enter,
    Veth,
    Macvlan,
    Move,
    networks,
    netns.create,
    netns.find,
    netns.names,
    netns.remove,
)
LABELS = ("Raises", "Since", "See")


class Octal(int):
    """A mode, which reads better so."""

    def __repr__(self) -> str:
        return f"0o{self:o}"


def parts(doc: str) -> dict[str, str]:
    """A docstring's first line as "Effect", and what stands behind each label."""
    effect, _, rest = inspect.cleandoc(doc).partition("\n")
    _, *labelled = re.split(rf"\b({'|'.join(LABELS)}): ", " ".join(rest.split()))
    texts = (text.strip().removesuffix(".") for text in labelled[1::2])
    return {"Effect": effect.removesuffix("."), **dict(zip(labelled[::2], texts, strict=True))}


def call(kind: Kind) -> str:
    """The step as it is called: `set_nice(nice)`."""
    plain = []
    for parameter in inspect.signature(kind.function).parameters.values():
        known = parameter.replace(annotation=inspect.Parameter.empty)
        if known.name == "mode" and isinstance(known.default, int):
            known = known.replace(default=Octal(known.default))
        plain.append(known)
    return f"{kind.name}{inspect.Signature(plain)}"


def option(kind: Kind) -> str:
    """The command line's option for the step's field: `--nice N`."""
    if kind.field is None or kind_of_option(kind.field) is None:
        return ""
    metavar = f" {kind.option.metavar}" if kind.option and kind.option.metavar else ""
    return f"`--{kind.field.replace('_', '-')}{metavar}`"


def row(kind: Kind) -> str:
    """The step's line in its phase's table."""
    told = parts(kind.doc)
    field = f"`{kind.field}`" if kind.field else ""
    cells = [f"`{call(kind)}`", field, option(kind), told["Effect"]]
    cells += [told.get(label, "") for label in LABELS]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def reference() -> str:
    """The whole page."""
    text = OPENING
    for phase, reason in PHASES.items():
        rows = [row(kind) for kind in KINDS.values() if kind.phase == phase]
        text += f"\n## {phase}\n\n{reason[0].upper()}{reason[1:]}.\n\n{HEADER}{''.join(rows)}"
    return text


def method(owner: type, name: str) -> str:
    """A handle's method or attribute, in one line."""
    member = getattr(owner, name)
    told = inspect.cleandoc(member.__doc__ or "")
    parameters = ""
    if not isinstance(member, property):
        known = list(inspect.signature(member).parameters.values())
        known = known if inspect.ismethod(member) else known[1:]
        plain = [each.replace(annotation=inspect.Parameter.empty) for each in known]
        parameters = str(inspect.Signature(plain))
    return f"| `{name}{parameters}` | {told.partition(chr(10))[0].removesuffix('.')} |\n"


def value(function: Callable[..., object]) -> str:
    """A function that makes a mount, in one line."""
    told = parts(function.__doc__ or "")
    known = inspect.signature(function)
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty)
        if not isinstance(parameter.default, int) or "mode" not in parameter.name
        else parameter.replace(annotation=inspect.Parameter.empty, default=Octal(parameter.default))
        for parameter in known.parameters.values()
    ]
    place = "netns." if function.__module__ == netns.__name__ else ""
    call = f"{place}{function.__name__}{inspect.Signature(plain)}"
    cells = [f"`{call}`", told["Effect"], *(told.get(label, "") for label in LABELS)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def mounted() -> str:
    """What can be mounted."""
    functions = [getattr(mounts, name) for name in mounts.__all__]
    rows = "".join(value(each) for each in functions if inspect.isfunction(each))
    return f"{MOUNTS_OPENING}{rows}"


def handles() -> str:
    """What can be done with a child."""
    text = HANDLES_OPENING
    for owner, names in HANDLES.items():
        told = inspect.cleandoc(owner.__doc__ or "").partition("\n")[0]
        rows = "".join(method(owner, name) for name in names.split())
        place = "" if hasattr(clonekit, owner.__name__) else f"{owner.__module__}."
        text += f"\n### {place}{owner.__name__}\n\n{told}\n\n| | effect |\n|---|---|\n{rows}"
    return text


def beside() -> str:
    """What makes networks, and processes in others' namespaces."""
    return NETWORKS_OPENING + "".join(value(each) for each in NETWORKS)


def uses() -> str:
    """What replaces each use of preexec_fn."""
    rows = ""
    for use in USES:
        instead = use.instead if " in the parent" in use.instead else f"`{use.instead}`"
        cells = (f"`{use.does}`", instead, use.note)
        rows += "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    return f"| `preexec_fn` does | write | |\n|---|---|---|\n{rows}"


def order() -> str:
    """The phases with their reasons, as a list."""
    lines = (f"{n}. **{phase}**: {reason}\n" for n, (phase, reason) in enumerate(PHASES.items(), 1))
    return "".join(lines)


def filled(page: Path, mark: str, text: str) -> str:
    """A page with this text between its marks."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->\n"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    return before + begin + text + end + rest.partition(end)[2]


def pages() -> dict[Path, str]:
    """Each page that is made here, whole or in part."""
    return {
        REFERENCE: reference() + mounted() + beside() + handles(),
        PREEXEC: filled(PREEXEC, "uses", uses()),
        README: filled(README, "phases", order()),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
