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
    from clonekit.nascent import Nascent, nascent
    from clonekit.suspended import Suspended

__all__ = [
    "INHERIT",
    "ChildFd",
    "DeclarationError",
    "Exit",
    "Fd",
    "Nascent",
    "Process",
    "Program",
    "Slot",
    "SpawnError",
    "Spec",
    "Suspended",
    "nascent",
    "spawn",
]


def __getattr__(name: str) -> object:
    """Load what a plain spawn does not need when it is first used (PEP 562)."""
    import importlib

    homes = {"Nascent": "nascent", "nascent": "nascent", "Suspended": "suspended"}
    if name in homes:
        module = importlib.import_module(f"clonekit.{homes[name]}")
        globals().update({key: getattr(module, key) for key, home in homes.items() if home == homes[name]})
        return globals()[name]
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
