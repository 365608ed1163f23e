"""Where data stands, for system calls that take a pointer."""

from __future__ import annotations

from clonekit.linux.abi import ffi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def address(data: Any) -> int:
    """The address of a cdata array or pointer, of bytes or of a bytearray.

    It is good while the object lives and, for a bytearray, keeps its size.
    """
    if isinstance(data, bytes | bytearray):
        data = ffi.from_buffer(data)
    return int(ffi.cast("uintptr_t", data))
