"""Attributes of the calling thread or process."""

from __future__ import annotations

from clonekit.linux.abi import call
from clonekit.linux.memory import address


def prctl(option: int, *arguments: int | bytes | bytearray) -> int:
    """Get or set an attribute of the calling thread or process: prctl.

    Of bytes the address is passed; give a bytearray of the right size for what the kernel writes.
    Arguments left out are 0, as most options ask.

    Raises: what the option raises. See: prctl(2).
    """
    values = [value if isinstance(value, int) else address(value) for value in arguments]
    return call("prctl", option, *values)
