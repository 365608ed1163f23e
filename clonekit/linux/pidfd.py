"""Processes by descriptor: a pidfd cannot come to mean another process."""

from __future__ import annotations

import errno
import os
import struct

from clonekit.linux.abi import call, lib
from clonekit.linux.memory import address

# struct pidfd_info up to exit_code: its first published size, which every later kernel takes.
_INFO = struct.Struct("=QQ11Ii")
_PIDFD_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11  # _IOWR(0xFF, 11, struct pidfd_info)
_FIELDS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (lib.PIDFD_INFO_CGROUPID, ("cgroupid",)),
    (lib.PIDFD_INFO_PID, ("pid", "tgid", "ppid")),
    (
        lib.PIDFD_INFO_CREDS,
        ("ruid", "rgid", "euid", "egid", "suid", "sgid", "fsuid", "fsgid"),
    ),
    (lib.PIDFD_INFO_EXIT, ("exit_code",)),
)
_NO_IOCTL = (errno.ENOTTY, errno.EINVAL)


def pidfd_open(pid: int, flags: int = 0) -> int:
    """A descriptor of a process, or with PIDFD_THREAD of a thread: pidfd_open.

    It is close-on-exec, and readable when the process has ended. The number must be known to be
    the process's own still, as that of an unreaped child is.

    Raises: ESRCH; EINVAL for a thread without PIDFD_THREAD.
    Since: Linux 5.3; PIDFD_THREAD 6.9. See: pidfd_open(2).
    """
    return call("pidfd_open", pid, flags)


def number_in_proc(pidfd: int) -> int:
    """A process's number where /proc has it: the PID namespace that this shows may not be ours.

    Raises: ProcessLookupError for one that has been reaped, or that /proc does not show.
    See: pidfd_open(2).
    """
    with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:  # noqa: PTH123 - pathlib is slow to import
        number = next(int(line[4:]) for line in file if line.startswith(b"Pid:"))
    if number <= 0:
        raise ProcessLookupError(errno.ESRCH, "/proc does not show the process")
    return number


def pidfd_send_signal(pidfd: int, number: int, flags: int = 0) -> None:
    """Send a signal to this process and never to another: pidfd_send_signal. 0 only asks.

    Raises: ESRCH once it has been reaped, EPERM, EINVAL.
    Since: Linux 5.1; flags 6.9. See: pidfd_send_signal(2).
    """
    call("pidfd_send_signal", pidfd, number, 0, flags)


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A descriptor of ours for the open file behind descriptor `fd` of the process: pidfd_getfd.

    It is close-on-exec, and shares offset and flags with the other's.

    Raises: EPERM without the right to trace the process, EBADF, ESRCH, EMFILE.
    Since: Linux 5.6. See: pidfd_getfd(2).
    """
    return call("pidfd_getfd", pidfd, fd, 0)


def pidfd_info(pidfd: int) -> dict[str, int]:
    """What the kernel tells of a process: PIDFD_GET_INFO.

    Only fields that it filled are there: `pid`, `tgid`, `ppid` in our PID namespace (0 for a
    parent outside); `ruid`, `rgid`, `euid`, `egid`, `suid`, `sgid`, `fsuid`, `fsgid` in our user
    namespace; `cgroupid`; once the process has been reaped `exit_code`, as wait(2) gives it, and
    of the others at most `cgroupid`.

    Raises: ENOTTY or EINVAL before Linux 6.13; ESRCH for a reaped process before 6.15; EREMOTE
        for one outside our PID namespace.
    Since: Linux 6.13; exit_code 6.15. See: ioctl_pidfd(2).
    """
    wanted = 0
    for bit, _ in _FIELDS:
        wanted |= bit
    info = bytearray(_INFO.pack(wanted, *(0,) * 13))
    try:
        try:
            call("ioctl", pidfd, _PIDFD_GET_INFO, address(info))
        except ProcessLookupError:  # of one that is being reaped just now, too
            call("ioctl", pidfd, _PIDFD_GET_INFO, address(info))
    except OSError as error:
        number = error.errno or 0
        hint = " (it takes a pidfd and Linux 6.13)" if number in _NO_IOCTL else ""
        raise OSError(number, f"PIDFD_GET_INFO: {os.strerror(number)}{hint}") from None
    filled, *values = _INFO.unpack(info)
    value = iter(values)
    return {
        name: number
        for bit, names in _FIELDS
        for name, number in zip(names, value, strict=False)
        if filled & bit
    }


def exit_code(pidfd: int, *, wait: bool = False) -> int | None:
    """The status of a process that has been reaped, by whomever, if the kernel has kept it.

    As wait(2) gives it: see `os.waitstatus_to_exitcode`. None for a process that has not been
    reaped yet (with `wait`, it sleeps until then), and always before Linux 6.15.

    See: PIDFD_GET_INFO in ioctl_pidfd(2).
    """
    try:
        code = pidfd_info(pidfd).get("exit_code")
        if code is None and wait:
            _until_reaped(pidfd)
            code = pidfd_info(pidfd).get("exit_code")
    except OSError as error:
        if error.errno in (*_NO_IOCTL, errno.ESRCH, errno.EREMOTE):
            return None
        raise
    return code


def _until_reaped(pidfd: int) -> None:
    """POLLHUP, which needs no asking for, is when the process has been reaped (Linux 6.9)."""
    import select

    poller = select.poll()
    poller.register(pidfd, 0)
    poller.poll()
