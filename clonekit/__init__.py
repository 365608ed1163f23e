"""Linux processes made exactly as you say."""

from __future__ import annotations

from clonekit.errors import DeclarationError, SpawnError
from clonekit.process import Exit, Process
from clonekit.program import Program
from clonekit.records import ChildFd, Fd, Slot
from clonekit.spec import Spec, spawn
from clonekit.steps.descriptors import INHERIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from subprocess import (
        DEVNULL,
        PIPE,
        STDOUT,
        CalledProcessError,
        CompletedProcess,
        SubprocessError,
        TimeoutExpired,
        getoutput,
        getstatusoutput,
    )

    from clonekit import aio
    from clonekit.cgroup import Cgroup
    from clonekit.entering import Entrance, enter
    from clonekit.filters import Filter
    from clonekit.installed import install
    from clonekit.landlock import Landlock
    from clonekit.rules import Arg
    from clonekit.signatures import Popen, call, check_call, check_output, run
    from clonekit.suspended import Suspended
    from clonekit.waiting import Nascent, nascent

__all__ = [
    "DEVNULL",
    "INHERIT",
    "PIPE",
    "STDOUT",
    "Arg",
    "CalledProcessError",
    "Cgroup",
    "ChildFd",
    "CompletedProcess",
    "DeclarationError",
    "Entrance",
    "Exit",
    "Fd",
    "Filter",
    "Landlock",
    "Nascent",
    "Popen",
    "Process",
    "Program",
    "Slot",
    "SpawnError",
    "Spec",
    "SubprocessError",
    "Suspended",
    "TimeoutExpired",
    "aio",
    "call",
    "check_call",
    "check_output",
    "enter",
    "getoutput",
    "getstatusoutput",
    "install",
    "nascent",
    "run",
    "spawn",
]


_HOMES = {
    "Arg": "rules",
    "Cgroup": "cgroup",
    "Entrance": "entering",
    "Filter": "filters",
    "Landlock": "landlock",
    "Nascent": "waiting",
    "Suspended": "suspended",
    "aio": "aio",
    "enter": "entering",
    "install": "installed",
    "nascent": "waiting",
    **dict.fromkeys(
        (
            "DEVNULL", "PIPE", "STDOUT", "CalledProcessError", "CompletedProcess", "Popen",
            "SubprocessError", "TimeoutExpired", "call", "check_call", "check_output", "getoutput",
            "getstatusoutput", "run",
        ),
        "popen",
    ),
}  # fmt: skip


def __getattr__(name: str) -> object:
    """Load what a plain spawn does not need when it is first used (PEP 562)."""
    if name in _HOMES:
        import importlib

        home = importlib.import_module(f"clonekit.{_HOMES[name]}")
        value = home if name == "aio" else getattr(home, name)
        globals()[name] = value
        return value
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
