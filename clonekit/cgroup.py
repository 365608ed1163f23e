"""A group of processes: made for a child, limited, looked at, frozen, killed and removed."""

from __future__ import annotations

import contextlib
import errno
import os
import time

from clonekit.linux import cgroup2, cgroup_parent, cgroup_tree
from clonekit.linux.block import Owned, here
from clonekit.linux.cgroup2 import name_of, parsed, unused_name
from clonekit.linux.cgroup_limits import controllers_of, lines_of, set_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Self, TypeAlias

    Path: TypeAlias = str | bytes | os.PathLike[str]

PATIENCE = 10.0  # seconds
MOST_TRIES = 16  # against a process of our own uid that takes our rights to the group away


class Cgroup(Owned):
    """A cgroup of version 2, made here: `with Cgroup(limits=...) as it: spawn(..., cgroup=it)`.

    At the block's end all that is in it is killed and it is removed, whatever the child left behind
    and however deep. A handle that is dropped without that removes the group if it is empty.

    - `name`: of its directory; by default one that nobody has.
    - `parent`: the group it is made in, as a directory or a `Cgroup`; by default our own.
    - `limits`: by the names of the kernel's files, as {"memory.max": 64 << 20, "pids.max": 20,
      "cpu.max": (50_000, 100_000), "cpuset.cpus": "0-1", "io.max": {"8:0": {"wbps": 1 << 20}}}.
    - `controllers`: those that it shall have besides what its limits need.
    - `owner`: a uid, or (uid, gid), to delegate it to: whoever has it may make groups below, not
      change the limits.
    - `leaf`: a group that has processes cannot give controllers to those below. With a name here,
      our own process is moved into a group of that name below the parent first, and stays there.

    What it needs is enabled in the parent's cgroup.subtree_control, and stays so. A handle holds a
    descriptor, acts by that alone, and may be used from many threads. In a copy of our process
    (fork), the end of the block only closes it.

    A child that does not hold us (with a deadline, suspended, or waiting) is in the group while it
    runs on our memory: what its set-up allocates counts there, and where that exceeds memory.max,
    the kernel kills us too. Leave it room, or `set` that limit once the program has begun.

    Raises: DeclarationError for a limit that is none, and for one whose controller is not there,
        saying why; PermissionError where the parent is not ours; FileExistsError.
    Since: Linux 5.7 to begin in it. See: cgroups(7).
    """

    __slots__ = ("__weakref__", "_fd", "_made", "name")

    def __init__(
        self,
        name: str | None = None,
        *,
        parent: Path | Cgroup | None = None,
        limits: Mapping[str, Any] | None = None,
        controllers: Iterable[str] = (),
        owner: int | tuple[int, int] | None = None,
        leaf: str | None = None,
    ) -> None:
        self._fd, self._made, self._maker = -1, True, here()
        self.name = name_of(name) if name is not None else unused_name()
        lines = lines_of(limits or {})
        ids = cgroup_parent.owner_of(owner)
        if leaf is not None:
            name_of(leaf)
        if isinstance(controllers, str):
            controllers = [controllers]
        needed = controllers_of(limits or {}) | set(controllers)
        own = parent is None
        above = cgroup_parent.own_parent(leaf) if parent is None else opened(parent)
        try:
            cgroup_parent.enable(above, needed, limits or {}, leaf, own=own)
            made = name is None  # a name of ours is nobody else's
            try:
                with cgroup_parent.told_who_may(own=own):
                    os.mkdir(self.name, 0o755, dir_fd=above)
                made = True
                self._fd = os.open(self.name, cgroup2.WITHIN, dir_fd=above)
                set_lines(self._fd, lines)
                if ids is not None:
                    cgroup_parent.give_to(self._fd, *ids)
            except BaseException:
                if made:
                    with contextlib.suppress(OSError):
                        os.rmdir(self.name, dir_fd=above)
                self.close()
                raise
        finally:
            os.close(above)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Hold a group that is there. The end of its block only closes the handle.

        Raises: DeclarationError for what is no group of version 2.
        """
        self = cls.__new__(cls)
        self._fd, self._made, self._maker = -1, False, here()
        self._fd = cgroup2.open_group(path)
        self.name = cgroup_tree.name_in_parent(self._fd)
        return self

    @classmethod
    def own(cls) -> Self:
        """Hold the group that our process is in. See: /proc/self/cgroup."""
        return cls.open(cgroup_parent.own_path())

    def fileno(self) -> int:
        """The descriptor of its directory.

        Raises: ValueError when the handle is closed.
        """
        if self._fd < 0:
            msg = "the handle is closed"
            raise ValueError(msg)
        return self._fd

    @property
    def path(self) -> str:
        """Where its directory is, as we see it."""
        return cgroup2.path_of(self.fileno())

    # ---- what it says ----

    def read(self, name: str) -> str:
        """The text of one of its files, as "cpuset.cpus.effective".

        Raises: FileNotFoundError for a file that it has not, as its controller is not enabled.
        """
        return cgroup2.read(self.fileno(), name_of(name))

    def number(self, name: str) -> int | None:
        """The number in one of its files, as "memory.current" or "pids.peak"; None for `max`."""
        text = self.read(name).strip()
        return None if text == "max" else int(text)

    def stat(self, of: str = "cgroup") -> dict[str, Any]:
        """What "cpu.stat", "memory.stat", "io.stat" and their kin count, by key.

        Where a line has keys of its own, as for each device of "io", it is a mapping.
        """
        return parsed(self.read(f"{of}.stat"))

    def events(self, of: str = "cgroup") -> dict[str, Any]:
        """What has happened: populated and frozen, of "memory" oom_kill, of "pids" max."""
        return parsed(self.read(f"{of}.events"))

    def pressure(self, of: str) -> dict[str, Any]:
        """How long some or all of it waited for "cpu", "memory", "io" or "irq".

        `pressure("cpu")["some"]` has avg10, avg60, avg300 in percent and total in microseconds.

        Raises: EOPNOTSUPP where the kernel does not count that. Since: Linux 4.20.
        """
        return parsed(self.read(f"{of}.pressure"))

    def pids(self, *, below: bool = False) -> list[int]:
        """Its processes, and with `below` those of the groups below it, by our numbers.

        0 is one that our PID namespace does not show.
        """
        return (cgroup_tree.all_pids if below else cgroup_tree.pids_in)(self.fileno())

    @property
    def populated(self) -> bool:
        """Whether any process is in it or below."""
        return bool(self.events()["populated"])

    # ---- what is done to it ----

    def set(self, limits: Mapping[str, Any]) -> None:
        """Change limits. All are checked first; of those that the kernel refuses, it says which."""
        set_lines(self.fileno(), lines_of(limits))

    def write(self, name: str, value: str | int) -> None:
        """Write one of its files as it is, for what is not said otherwise.

        Raises: what the kernel answers.
        """
        cgroup2.write(self.fileno(), name_of(name), str(value))

    def freeze(self, timeout: float | None = PATIENCE) -> None:
        """Stop all that is in it and below, and wait until it is: cgroup.freeze.

        Raises: TimeoutError; it goes on being frozen. Since: Linux 5.2.
        """
        self._freeze("1", timeout)

    def thaw(self, timeout: float | None = PATIENCE) -> None:
        """Let it go on, and wait until it does: cgroup.freeze.

        Raises: TimeoutError, as while a group above is frozen. Since: Linux 5.2.
        """
        self._freeze("0", timeout)

    def _freeze(self, value: str, timeout: float | None) -> None:
        self.write("cgroup.freeze", value)
        if not cgroup2.wait_for(self.fileno(), "frozen", value, timeout):
            msg = f"{self!r} is not {'frozen' if value == '1' else 'thawed'} after {timeout} s"
            raise TimeoutError(msg)

    def kill(self) -> None:
        """Send SIGKILL to all that is in it and below, and is forked meanwhile: cgroup.kill.

        Before Linux 5.14 it is frozen and its processes are killed one by one by their pidfds.

        Raises: RuntimeError if we are in it ourselves; there PermissionError for a process that our
            PID namespace does not show.
        """
        if cgroup_parent.contains_us(self.fileno()):
            msg = f"our own process is in {self!r}, or below; move it out first"
            raise RuntimeError(msg)
        try:
            self.write("cgroup.kill", "1")
        except FileNotFoundError:
            cgroup_tree.kill_each(self.fileno())

    def wait_empty(self, timeout: float | None = None) -> None:
        """Wait until no process is in it nor below: poll of cgroup.events. Seconds.

        A zombie is in no group: its parent may still have to reap it.

        Raises: TimeoutError.
        """
        if not cgroup2.wait_for(self.fileno(), "populated", "0", timeout):
            msg = f"{self!r} still has processes after {timeout} s: {self.pids(below=True)}"
            raise TimeoutError(msg)

    def remove(self, timeout: float = PATIENCE) -> None:
        """Kill all that is in it, remove it with all groups below, and close the handle: rmdir.

        Raises: TimeoutError where a process does not end (it is in an uninterruptible sleep);
            RuntimeError as for `kill`.
        """
        group = self.fileno()
        deadline = time.monotonic() + timeout
        for left in reversed(range(MOST_TRIES)):
            try:
                self._remove(group, deadline)
                break
            except PermissionError:
                if not left:
                    raise
                cgroup_tree.take_back(group)
        self.close()

    def _remove(self, group: int, deadline: float) -> None:
        """Remove it as far as its modes allow."""
        with contextlib.suppress(OSError):  # else whoever it is delegated to could go on making
            self.write("cgroup.max.descendants", 0)
        while not self._is_removed(group):
            if time.monotonic() > deadline:
                msg = f"{self!r} cannot be removed in time: {self.pids(below=True)}"
                raise TimeoutError(msg)
            with contextlib.suppress(FileNotFoundError):
                self.kill()
                cgroup2.wait_for(group, "populated", "0", max(0, deadline - time.monotonic()))
                cgroup_tree.remove_below(group)

    def _is_removed(self, group: int) -> bool:
        """Whether it is gone: by us now, or by somebody before, who may have made another."""
        above = os.open("..", cgroup2.DIRECTORY, dir_fd=group)
        try:
            there = os.stat(self.name, dir_fd=above, follow_symlinks=False)
            if os.path.samestat(there, os.fstat(group)):
                os.rmdir(self.name, dir_fd=above)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        finally:
            os.close(above)
        return True

    def close(self) -> None:
        """Close the handle's descriptor; the group stays as it is."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _leave(self) -> None:
        if self._fd >= 0 and self._made and self.is_own():
            self.remove()
        self.close()

    def __del__(self) -> None:
        if not hasattr(self, "_maker") or not self.is_own():
            return
        if self._fd >= 0 and self._made:
            with contextlib.suppress(OSError):
                self._is_removed(self._fd)
        self.close()

    def __repr__(self) -> str:
        return f"<Cgroup {self.name}{', closed' * (self._fd < 0)}>"


def opened(parent: Path | Cgroup) -> int:
    """A descriptor of the group that a new one shall be in."""
    if isinstance(parent, Cgroup):
        return os.open(".", cgroup2.DIRECTORY, dir_fd=parent.fileno())
    return cgroup2.open_group(parent)
