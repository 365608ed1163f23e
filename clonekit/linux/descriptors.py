"""Descriptors, many at once."""

from __future__ import annotations

from clonekit.linux.abi import call

LAST = 0xFFFFFFFF


def close_range(first: int, last: int = LAST, flags: int = 0) -> None:
    """Close the descriptors from `first` to `last`, both included: close_range.

    With CLOSE_RANGE_CLOEXEC they are closed at exec instead; with CLOSE_RANGE_UNSHARE this thread
    first gets a descriptor table of its own. Unlike `os.closerange` it includes `last`, and costs
    what is open, not the width of the range.

    Raises: EINVAL for first > last or an unknown flag, EMFILE, ENOMEM.
    Since: Linux 5.9; CLOSE_RANGE_CLOEXEC 5.11. See: close_range(2).
    """
    call("close_range", first, last, flags)
