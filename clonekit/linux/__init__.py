"""Thin wrappers of Linux's calls, one module a subject, for whoever builds their own.

Each function makes one system call from the calling thread, and raises `OSError(errno,
"name: reason")`. Names can be had from here too, and are loaded when first used; but for
`clonekit.linux.prctl.prctl` and the calls of `clonekit.linux.landlock`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clonekit.linux.clone import clone3
    from clonekit.linux.descriptors import close_range
    from clonekit.linux.execution import SealedProgram, check_executable, execveat
    from clonekit.linux.flags import (
        CloneFlag,
        CloseRangeFlag,
        ExecFlag,
        FsAccess,
        MemfdFlag,
        NetAccess,
        PidfdFlag,
        PidfdSignalFlag,
        Prctl,
        RestrictFlag,
        Scope,
        Seal,
        SeccompAction,
        SeccompFilterFlag,
    )
    from clonekit.linux.landlock import Restrictions, Ruleset
    from clonekit.linux.namespaces import setns, unshare
    from clonekit.linux.pidfd import (
        exit_code,
        pidfd_getfd,
        pidfd_info,
        pidfd_open,
        pidfd_send_signal,
    )
    from clonekit.linux.seccomp import (
        seccomp_action_available,
        seccomp_flags_available,
        seccomp_notif_sizes,
        seccomp_set_filter,
    )

__all__ = [
    "CloneFlag",
    "CloseRangeFlag",
    "ExecFlag",
    "FsAccess",
    "MemfdFlag",
    "NetAccess",
    "PidfdFlag",
    "PidfdSignalFlag",
    "Prctl",
    "RestrictFlag",
    "Restrictions",
    "Ruleset",
    "Scope",
    "Seal",
    "SealedProgram",
    "SeccompAction",
    "SeccompFilterFlag",
    "check_executable",
    "clone3",
    "close_range",
    "execveat",
    "exit_code",
    "pidfd_getfd",
    "pidfd_info",
    "pidfd_open",
    "pidfd_send_signal",
    "seccomp_action_available",
    "seccomp_flags_available",
    "seccomp_notif_sizes",
    "seccomp_set_filter",
    "setns",
    "unshare",
]

_HOMES = {
    "clone": "clone3",
    "descriptors": "close_range",
    "execution": "SealedProgram check_executable execveat",
    "flags": (
        "CloneFlag CloseRangeFlag ExecFlag FsAccess MemfdFlag NetAccess PidfdFlag PidfdSignalFlag "
        "Prctl RestrictFlag Scope Seal SeccompAction SeccompFilterFlag"
    ),
    "landlock": "Restrictions Ruleset",
    "namespaces": "setns unshare",
    "pidfd": "exit_code pidfd_getfd pidfd_info pidfd_open pidfd_send_signal",
    "seccomp": (
        "seccomp_action_available seccomp_flags_available seccomp_notif_sizes seccomp_set_filter"
    ),
}


def __getattr__(name: str) -> object:
    """Load the module that has the name (PEP 562): importing all would slow every start."""
    import importlib

    for home, names in _HOMES.items():
        if name in names.split():
            value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
            globals()[name] = value
            return value
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
