"""Where a group can be made: in our own or another's, with the controllers that it needs."""

from __future__ import annotations

import contextlib
import os
import re

from clonekit.errors import DeclarationError
from clonekit.linux.cgroup2 import WITHIN, open_group, path_of, read, write
from clonekit.linux.cgroup_tree import moved, pids_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: What may be given away, where the kernel does not list it.
DELEGATED = ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control")
#: What version 1 calls otherwise.
OLD_NAMES = {"io": "blkio"}
#: The controller that every group has, and none lists.
ALWAYS = "perf_event"
NOT_OURS = (
    "our own group is not ours to divide: run where it is delegated, as by "
    "`systemd-run --user --scope -p Delegate=yes -- PROGRAM`, or name a parent"
)


def memberships() -> dict[str, str]:
    """Our group in each hierarchy, by its controllers; that of version 2 by an empty name."""
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123 - pathlib is slow to import
        lines = [line.rstrip("\n").split(":", 2) for line in file]
    return {name: path for _, names, path in lines for name in names.split(",")}


def version_1() -> set[str]:
    """The controllers that hierarchies of version 1 have, which version 2 then has not."""
    return {name for name in memberships() if name and not name.startswith("name=")}


def unescaped(text: str) -> str:
    """A path of /proc/self/mountinfo, where spaces and the like are octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)


def own_path() -> str:
    """The directory of our own group.

    Raises: DeclarationError where no hierarchy of version 2 is mounted, or we are not in its part.
    """
    own = memberships().get("")
    path = None if own is None else directory_of(own)
    if path is None:
        msg = "cgroup: no hierarchy of version 2 is mounted that shows our group; name a parent"
        raise DeclarationError(msg)
    return path


def directory_of(group: str) -> str | None:
    """Where a group of version 2 is mounted, by its path as /proc/PID/cgroup has it."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123 - as in memberships
        mounts = [line.split() for line in file]
    for words in mounts:
        root, mount = map(unescaped, words[3:5])
        if words[words.index("-") + 1] != "cgroup2":
            continue
        if group == root or group.startswith(root.rstrip("/") + "/"):
            return mount + group.removeprefix(root.rstrip("/")).rstrip("/")
    return None


def contains_us(group: int) -> bool:
    """Whether our own process is in a group or below it."""
    wanted = os.fstat(group)
    try:
        at = open_group(own_path())
    except DeclarationError:
        return False
    try:
        while not os.path.samestat(os.fstat(at), wanted):
            if is_root(at):
                return False
            at = moved(at, "..")
        return True
    finally:
        os.close(at)


def unavailable(controller: str, parent: int) -> str:
    """Why the groups below this one cannot have a controller."""
    old = OLD_NAMES.get(controller, controller)
    if old in version_1():
        return f"{controller} is a v1 controller here"
    try:
        above = read(parent, "../cgroup.controllers").split()
    except OSError:
        above = []
    shown = path_of(parent)
    if controller in above:
        return f"{controller} is not enabled in the cgroup.subtree_control above {shown}"
    return f"{shown} has no {controller} controller: not built in, switched off, or kept from it"


def own_parent(leaf: str | None) -> int:
    """A descriptor of our own group, or of the one above where we are its leaf of this name."""
    own = own_path()
    above, _, name = own.rpartition("/")
    return open_group(above if name == leaf else own)


def enable(
    parent: int, needed: set[str], limits: Iterable[str], leaf: str | None, *, own: bool
) -> None:
    """See to it that groups below the parent have these controllers.

    Raises: DeclarationError for one that cannot be had, and where processes are in the way.
    """
    there = {ALWAYS, *read(parent, "cgroup.controllers").split()}
    for controller in sorted(needed - there):
        files = [name for name in limits if name.startswith(f"{controller}.")]
        msg = f"cgroup: {unavailable(controller, parent)}"
        if files:
            msg += f": {' and '.join(files)} cannot be set"
        raise DeclarationError(msg)
    lacking = needed - {ALWAYS} - set(read(parent, "cgroup.subtree_control").split())
    if not lacking:
        return
    if not is_root(parent) and pids_in(parent):
        make_room(parent, leaf)
    text = " ".join(f"+{controller}" for controller in sorted(lacking))
    with told_who_may(own=own):
        write(parent, "cgroup.subtree_control", text)


def is_root(group: int) -> bool:
    """Whether it is the hierarchy's own: that alone may have processes and give controllers."""
    return not os.access("cgroup.type", os.F_OK, dir_fd=group)


def make_room(parent: int, leaf: str | None) -> None:
    """Move our own process out of the parent, if that is asked for.

    Raises: DeclarationError if it is not, or others are there too.
    """
    others = [pid for pid in pids_in(parent) if pid != os.getpid()]
    if leaf is not None and not others:
        with contextlib.suppress(FileExistsError):
            os.mkdir(leaf, 0o755, dir_fd=parent)
        inner = os.open(leaf, WITHIN, dir_fd=parent)
        try:
            write(inner, "cgroup.procs", "0")
        finally:
            os.close(inner)
        return
    who = f"processes {others[:8]}" if others else "our own process"
    instead = "name a parent without processes"
    if not others:
        instead = f'leaf="main" moves it into a group of that name below, or {instead}'
    msg = (
        f"cgroup: {path_of(parent)} has {who}, and such a group gives no controllers to "
        f"those below; {instead}"
    )
    raise DeclarationError(msg)


@contextlib.contextmanager
def told_who_may(*, own: bool) -> Iterator[None]:
    """Say what an unprivileged user can do where a group is not theirs."""
    try:
        yield
    except PermissionError as error:
        told = NOT_OURS if own else "it must be delegated to us"
        number = error.errno or 0
        raise PermissionError(number, f"{os.strerror(number)}; {told}", error.filename) from None


def owner_of(owner: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """The ids to delegate to; -1 leaves the gid as it is."""
    if owner is None:
        return None
    ids = owner if isinstance(owner, tuple) else (owner, -1)
    if len(ids) != 2 or not all(type(each) is int and each >= -1 for each in ids):  # noqa: PLR2004 - a pair
        msg = f"owner is {owner!r}; write a uid, or (uid, gid)"
        raise DeclarationError(msg)
    return ids


def give_to(group: int, uid: int, gid: int) -> None:
    """Delegate a group: its directory and the files that the kernel says may be given away."""
    try:
        with open("/sys/kernel/cgroup/delegate", encoding="ascii") as file:  # noqa: PTH123 - as in memberships
            names = [name for name in file.read().split() if "/" not in name]
    except OSError:
        names = list(DELEGATED)
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.chown(name, uid, gid, dir_fd=group, follow_symlinks=False)
    os.chown(".", uid, gid, dir_fd=group, follow_symlinks=False)
