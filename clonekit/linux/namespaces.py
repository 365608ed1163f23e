"""Namespaces of the calling thread."""

from __future__ import annotations

from clonekit.linux.abi import call


def setns(fd: int, nstype: int = 0) -> None:
    """Move the calling thread into a namespace, or into those of a process: setns.

    `fd` is a file of /proc/PID/ns, and `nstype` 0 or the CLONE_NEW flag that it must be; or a
    pidfd, and `nstype` one or more such flags. A PID or time namespace is entered by children.

    Raises: EPERM, EINVAL, ESRCH; EUSERS for a time namespace in a process with threads.
    Since: Linux 3.0; by pidfd 5.8. See: setns(2).
    """
    call("setns", fd, nstype)


def unshare(flags: int) -> None:
    """Give the calling thread namespaces, or other parts of its context, of its own: unshare.

    A new PID or time namespace is entered by children.

    Raises: EPERM, ENOSPC; EINVAL for CLONE_NEWUSER in a process with threads.
    Since: Linux 2.6.16. See: unshare(2).
    """
    call("unshare", flags)
