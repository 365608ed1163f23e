"""What we may do that other processes of our uid may not: capabilities."""

from __future__ import annotations

import os
import sys

from clonekit.linux.abi import call, ffi, lib


def capabilities() -> tuple[int, int]:
    """Our effective and our permitted capabilities, as bits: capget.

    See: capget(2), capabilities(7).
    """
    header = ffi.new("uint32_t[2]", [lib._LINUX_CAPABILITY_VERSION_3, 0])  # noqa: SLF001 - the kernel's own name
    data = ffi.new("uint32_t[6]")
    call("capget", int(ffi.cast("uintptr_t", header)), int(ffi.cast("uintptr_t", data)))
    effective, permitted, _, effective_high, permitted_high, _ = data
    return effective | effective_high << 32, permitted | permitted_high << 32


def has_capability(number: int) -> bool:
    """Whether we have this one, in effect, in our own user namespace."""
    return bool(capabilities()[0] >> number & 1)


def is_privileged() -> bool:
    """Whether we have what a process of our uid may lack: capabilities.

    Where our own uid owns our user namespace, each of its processes outside has them all there.
    """
    if os.geteuid() == 0:
        return True
    return bool(capabilities()[1]) and owner_of_namespace() != os.geteuid()


def owner_of_namespace() -> int:
    """The uid that made our user namespace; -1 where that cannot be told."""
    import fcntl

    try:
        with open("/proc/self/ns/user", "rb") as file:  # noqa: PTH123 - pathlib is slow to import
            return int.from_bytes(fcntl.ioctl(file, lib.NS_GET_OWNER_UID, bytes(4)), sys.byteorder)
    except OSError:
        return -1
