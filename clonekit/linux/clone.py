"""clone3, as a fork that can do more."""

from __future__ import annotations

import errno
import os
import signal

from clonekit.linux.abi import ffi, lib

_SHARED = "the copy would share what it must have for itself"
_OURS = "clonekit gives the kernel this address itself"
_REFUSED: dict[str, str] = {
    "CLONE_VM": _SHARED,
    "CLONE_VFORK": _SHARED,
    "CLONE_SIGHAND": _SHARED,
    "CLONE_THREAD": _SHARED,
    "CLONE_SETTLS": _SHARED,
    "CLONE_PARENT_SETTID": _OURS,
    "CLONE_CHILD_SETTID": _OURS,
    "CLONE_CHILD_CLEARTID": _OURS,
}


def clone3(
    flags: int = 0, *, exit_signal: int = signal.SIGCHLD, cgroup: int | None = None
) -> tuple[int, int]:
    """Make a copy of this process, as `os.fork` does, with clone3's flags: it returns twice.

    The parent gets the child's pid and a pidfd, which it closes; the child gets `(0, -1)`, and
    does well to end with `os._exit`. CLONE_PIDFD is always added. `cgroup` is a descriptor of a
    directory of the v2 hierarchy, where the child begins. `exit_signal` must be 0 with
    CLONE_PARENT and CLONE_AUTOREAP. Hooks of `os.register_at_fork` run; those that C libraries
    gave to pthread_atfork(3) do not.

    Raises: ValueError for a flag that a copy cannot have; EDEADLK if the process has another
        thread, and has it 0.1 s later still; EOPNOTSUPP where libc is not glibc; EPERM, EINVAL,
        ENOSPC, EAGAIN.
    Since: Linux 5.3; cgroup 5.7. See: clone3(2).
    """
    for name, reason in _REFUSED.items():
        if flags & getattr(lib, name):
            msg = f"clone3: {name} is refused: {reason}"
            raise ValueError(msg)
    if cgroup is not None:
        flags |= lib.CLONE_INTO_CGROUP
    elif flags & lib.CLONE_INTO_CGROUP:
        msg = "clone3: CLONE_INTO_CGROUP needs a group; give cgroup="
        raise ValueError(msg)
    pidfd = ffi.new("int32_t *", -1)
    pid = lib.ck_fork_like(flags, exit_signal, -1 if cgroup is None else cgroup, pidfd)
    if pid >= 0:
        return pid, pidfd[0] if pid else -1
    reason = os.strerror(-pid)
    if pid == -errno.EDEADLK:
        reason = "the process has other threads, whose locks the copy could wait for for ever"
    elif pid == -errno.EOPNOTSUPP and cgroup is None:
        reason = "the thread id that this libc keeps cannot be set right in a copy"
    raise OSError(-pid, f"clone3: {reason}")
