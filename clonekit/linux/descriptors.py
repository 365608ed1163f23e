"""Descriptors, many at once."""

from __future__ import annotations

import os

from clonekit.linux.abi import call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

LAST = 0xFFFFFFFF
#: The calls whose result is a new descriptor; fcntl's may be one.
MAKERS = frozenset(
    {
        "accept", "accept4", "creat", "dup", "dup2", "dup3", "epoll_create", "epoll_create1",
        "eventfd", "eventfd2", "fanotify_init", "fsmount", "fsopen", "fspick", "inotify_init",
        "inotify_init1", "landlock_create_ruleset", "memfd_create", "memfd_secret", "mq_open",
        "open", "openat", "openat2", "open_by_handle_at", "open_tree", "open_tree_attr",
        "perf_event_open", "pidfd_getfd", "pidfd_open", "signalfd", "signalfd4", "socket",
        "timerfd_create", "userfaultfd",
    }
)  # fmt: skip


def close_range(first: int, last: int = LAST, flags: int = 0) -> None:
    """Close the descriptors from `first` to `last`, both included: close_range.

    With CLOSE_RANGE_CLOEXEC they are closed at exec instead; with CLOSE_RANGE_UNSHARE this thread
    first gets a descriptor table of its own. Unlike `os.closerange` it includes `last`, and costs
    what is open, not the width of the range.

    Raises: EINVAL for first > last or an unknown flag, EMFILE, ENOMEM.
    Since: Linux 5.9; CLOSE_RANGE_CLOEXEC 5.11. See: close_range(2).
    """
    call("close_range", first, last, flags)


def close_all(fds: Iterable[int]) -> None:
    """Close these. A handler of a signal that raises something runs before it or after all."""
    closing = map(os.close, fds)
    list(closing)
