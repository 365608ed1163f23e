"""What each Python of a venv begins with: `clonekit.install()`, and its counts noted at the end.

A line in a .pth file imports it, so that the children of tests have it too, whatever they are told.
A process that ends by os._exit() or a signal notes nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import os

import clonekit

COUNTS = f"{__file__}.counts"

installation = clonekit.install()
beginner = os.getpid()


@atexit.register
def note() -> None:
    """Add a line, unless this is a fork of the process that began."""
    if os.getpid() == beginner:
        with contextlib.suppress(OSError), open(COUNTS, "a") as counts:
            counts.write(f"{installation.spawned} {installation.stock}\n")
