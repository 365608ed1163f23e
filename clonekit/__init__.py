"""Linux processes made exactly as you say."""

from __future__ import annotations

from clonekit.errors import DeclarationError, SpawnError
from clonekit.process import Exit, Process
from clonekit.program import Program
from clonekit.records import Fd, Slot
from clonekit.spec import Spec, spawn
from clonekit.steps.descriptors import INHERIT

__all__ = [
    "INHERIT",
    "DeclarationError",
    "Exit",
    "Fd",
    "Process",
    "Program",
    "Slot",
    "SpawnError",
    "Spec",
    "spawn",
]
