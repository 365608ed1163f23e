"""Filters of system calls, as the kernel takes them."""

from __future__ import annotations

import errno
import struct

from clonekit.linux.abi import NUMBERS, call, lib
from clonekit.linux.memory import address

INSTRUCTION_SIZE = 8
#: What a filter sees as the architecture of this machine's own calls (linux/audit.h).
AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64 = 0xC000003E, 0xC00000B7
AUDIT_ARCH = AUDIT_ARCH_X86_64 if "arch_prctl" in NUMBERS else AUDIT_ARCH_AARCH64


def seccomp_set_filter(program: bytes, flags: int = 0) -> int:
    """Put a filter on the calling thread for good: seccomp, SECCOMP_SET_MODE_FILTER.

    `program` is BPF instructions as the kernel's struct sock_filter. The result is 0, or with
    SECCOMP_FILTER_FLAG_NEW_LISTENER the listener, close-on-exec. Without
    SECCOMP_FILTER_FLAG_TSYNC other threads stay as they are.

    Raises: EACCES without no_new_privs or CAP_SYS_ADMIN; EINVAL for a filter that does not check;
        EBUSY for a second listener; ESRCH for a thread that cannot take the filter.
    Since: Linux 3.17; listener 5.0. See: seccomp(2).
    """
    count, rest = divmod(len(program), INSTRUCTION_SIZE)
    if rest:
        msg = f"seccomp: {len(program)} bytes are no filter; an instruction has {INSTRUCTION_SIZE}"
        raise ValueError(msg)
    fprog = struct.pack("@HP", count, address(program))
    result = call("seccomp", lib.SECCOMP_SET_MODE_FILTER, flags, address(fprog))
    if result and not flags & lib.SECCOMP_FILTER_FLAG_NEW_LISTENER:
        raise OSError(errno.ESRCH, f"seccomp: thread {result} cannot take the filter")
    return result


def seccomp_action_available(action: int) -> bool:
    """Whether the kernel knows this SECCOMP_RET action: seccomp, SECCOMP_GET_ACTION_AVAIL.

    Since: Linux 4.14. See: seccomp(2).
    """
    word = struct.pack("=I", action)
    try:
        call("seccomp", lib.SECCOMP_GET_ACTION_AVAIL, 0, address(word))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return False
        raise
    return True


def seccomp_flags_available(flags: int) -> bool:
    """Whether the kernel knows these flags of a filter: seccomp, without a filter.

    Some go with others only: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV with a listener.

    Since: Linux 3.17. See: seccomp(2).
    """
    try:
        call("seccomp", lib.SECCOMP_SET_MODE_FILTER, flags, 0)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        if error.errno != errno.EFAULT:
            raise
    return True


def seccomp_notif_sizes() -> tuple[int, int, int]:
    """The sizes of a notification, of its answer and of seccomp_data: SECCOMP_GET_NOTIF_SIZES.

    In bytes, as this kernel has them; a younger one may have more.

    Since: Linux 5.0. See: seccomp(2), seccomp_unotify(2).
    """
    sizes = bytearray(6)
    call("seccomp", lib.SECCOMP_GET_NOTIF_SIZES, 0, address(sizes))
    notif, answer, data = struct.unpack("=3H", sizes)
    return notif, answer, data
