"""Mounts with something in them: a minimal /dev, and files from data."""

from __future__ import annotations

import os
import stat

from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib, refuse_nul
from clonekit.mounts.filesystems import pts_options
from clonekit.mounts.value import Mount, flags_of, look, octal, path_here, yes
from clonekit.records import Call, Fd, Scratch, Slot
from clonekit.trees import (
    DETACHED,
    HERE,
    MASK_MEANWHILE,
    MODE_OF_FILES,
    attached_at,
    cloned,
    cloned_file,
    kernel_has,
    made,
    set_attributes,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from clonekit.records import Records
    from clonekit.trees import Path

#: The devices that every program may expect, with their numbers.
DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
MOST_AT_ONCE = 0x7FFFF000  # what the kernel moves with one call
