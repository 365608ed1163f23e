"""A process beside one that runs: in its namespaces, its root and its cgroup."""

from __future__ import annotations

import errno
import os
import select
import signal

from clonekit.errors import DeclarationError, SpawnError
from clonekit.linux.block import Owned, here
from clonekit.linux.pidfd import number_in_proc
from clonekit.spec import Spec
from clonekit.steps.namespaces import FLAGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from clonekit.process import Process
    from clonekit.steps.execute import Text

#: Namespaces whose file under /proc has another name for what a process's children get.
OF_CHILDREN = {"pid": "pid_for_children", "time": "time_for_children"}
MOST_CGROUPS = 1 << 16
PF_EXITING = 4


class Entrance(Owned):
    """What it takes to be beside a process that runs, as fields of a declaration.

    It owns descriptors, which `close` or the end of the block closes: they name the process that it
    was made for, never one that got its number since.

    Attributes:
        names: the namespaces in which that process differs from us, by the names of /proc/PID/ns.
        fields: of a declaration: join, root and, if asked for, cgroup.
    """

    __slots__ = ("_own", "_process", "fields", "names")

    def __init__(
        self,
        process: Process | int,
        names: Iterable[str] | None = None,
        *,
        root: bool = True,
        cgroup: bool = False,
    ) -> None:
        self._own: list[int] = []
        self._maker = here()
        self._process = process
        self.fields: dict[str, Any] = {}
        self.names: tuple[str, ...] = ()
        try:
            self._open(process, names, root=root, cgroup=cgroup)
        except BaseException:
            self.close()
            raise

    def _open(
        self, process: Process | int, names: Iterable[str] | None, *, root: bool, cgroup: bool
    ) -> None:
        if isinstance(process, str | bytes | bool) or process is None:
            msg = f"{process!r} is no process; give what spawn gave, or a number"
            raise DeclarationError(msg)
        pid = process if isinstance(process, int) else process.pid
        own = isinstance(process, int)
        pidfd = self._kept(os.pidfd_open(pid)) if own else process.fileno()  # type: ignore[union-attr]
        try:
            self._look(pid, pidfd, names, root=root, cgroup=cgroup)
        except OSError as error:
            refuse_ended(pid, pidfd)
            if isinstance(error, PermissionError) and error.filename:
                told = f"process {pid}: {error.filename}: it takes the right to trace the process"
                raise PermissionError(error.errno, told) from None
            raise

    def _look(
        self, pid: int, pidfd: int, names: Iterable[str] | None, *, root: bool, cgroup: bool
    ) -> None:
        """Find out where it is."""
        path = f"/proc/{number_in_proc(pidfd)}"
        directory = self._kept(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        refuse_ended(pid, pidfd)  # then the directory may be another's
        differing = [name for name in FLAGS if differs(name, directory)]
        wanted = differing if names is None else list(names)
        self.names = tuple(name for name in wanted if name in differing)
        if self.names:
            self.fields["join"] = [(pidfd, self.names)]
        if root:
            # By O_PATH: nothing is opened, for which a file system of its own could make us wait.
            flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            there = self._kept(os.open("root", flags, dir_fd=directory))
            if "mnt" in self.names or not os.path.samestat(os.fstat(there), os.stat("/")):  # noqa: PTH116 - pathlib is slow to import
                self.fields["root"] = there
        if cgroup:
            self.fields["cgroup"] = self._kept(group_of(directory))

    def refuse_ended(self) -> None:
        """See whether it lives, once what a living one allows was refused.

        Raises: ProcessLookupError.
        """
        for pidfd, _ in self.fields.get("join", ()):
            number = self._process if isinstance(self._process, int) else self._process.pid
            refuse_ended(number, pidfd)

    def _kept(self, fd: int) -> int:
        self._own.append(fd)
        return fd

    def close(self) -> None:
        """Close what it holds; processes that have entered go on."""
        while self._own:
            os.close(self._own.pop())


def refuse_ended(pid: int, pidfd: int) -> None:
    """See that a process has not begun to end: it loses its namespaces before its pidfd tells.

    Raises: ProcessLookupError.
    """
    try:
        with open(f"/proc/{number_in_proc(pidfd)}/stat", "rb") as file:  # noqa: PTH123 - pathlib is slow to import
            flags = int(file.read().rpartition(b")")[2].split()[6])
    except (FileNotFoundError, ProcessLookupError):
        flags = PF_EXITING
    if flags & PF_EXITING or select.select([pidfd], [], [], 0)[0]:
        msg = f"process {pid} has ended"
        raise ProcessLookupError(errno.ESRCH, msg)


def differs(name: str, directory: int) -> bool:
    """Whether a process has another namespace of this kind than a child of ours would."""
    try:
        ours = os.readlink(f"/proc/self/ns/{OF_CHILDREN.get(name, name)}")  # noqa: PTH115 - pathlib is slow to import
    except FileNotFoundError:
        return False  # the kernel has none of this kind
    try:
        return os.readlink(f"ns/{name}", dir_fd=directory) != ours
    except FileNotFoundError:  # its first thread has ended: it has none any more, and not ours
        raise ProcessLookupError(errno.ESRCH, "the process to be entered has ended") from None


def group_of(directory: int) -> int:
    """The directory of a process's group in the v2 hierarchy, by its /proc/PID/cgroup.

    Raises: DeclarationError where there is none, or the process is in none that we see.
    """
    from clonekit.linux.cgroup2 import open_group
    from clonekit.linux.cgroup_parent import directory_of

    fd = os.open("cgroup", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        lines = os.read(fd, MOST_CGROUPS).decode("utf-8", "surrogateescape").splitlines()
    finally:
        os.close(fd)
    paths = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
    if paths and f"{paths[0]}/".startswith("/../"):
        msg = f"its cgroup {paths[0]} is outside of our cgroup namespace; leave cgroup out"
        raise DeclarationError(msg)
    path = directory_of(paths[0]) if paths else None
    if path is None:
        msg = "no cgroup2 hierarchy is mounted here that shows its group; leave cgroup out"
        raise DeclarationError(msg)
    return open_group(path)


def refuse_both(fields: Iterable[str], declaration: Iterable[str]) -> None:
    """What is that of the process is not declared."""
    for field in fields:
        if field in declaration:
            msg = f"{field} is that of the process that is entered; leave it out"
            raise DeclarationError(msg)


def enter(
    process: Process | int,
    argv: Sequence[Text],
    /,
    *,
    names: Iterable[str] | None = None,
    root: bool = True,
    cgroup: bool = False,
    **declaration: Any,
) -> Process:
    """Make a process beside one that runs: in its namespaces and root, and with `cgroup` its group.

    `process` is a handle, or the number of a process that is known to live. `names` are the
    namespaces to join, by default all in which it differs from us. The declaration is as for
    `spawn`; its paths are those of the process's root. Only descriptors of the declaration are
    taken along: a process in there could use any other to get out.

    Raises: ProcessLookupError, PermissionError without the right to trace it; as `spawn` otherwise.
    See: setns(2), nsenter(1).
    """
    handle: Any = None
    try:
        with Entrance(process, names, root=root, cgroup=cgroup) as entrance:
            refuse_both(entrance.fields, declaration)
            program = Spec(argv, **entrance.fields, **declaration).program()
            handle = program.handle()
            try:
                program.begin(handle, {})
            except SpawnError as error:
                if error.phase == "join" or error.signal == signal.SIGKILL:
                    entrance.refuse_ended()
                raise
    except BaseException:  # a handler of a signal may raise when there is a child already
        if handle is not None:
            handle.__exit__(None, None, None)
        raise
    return handle  # type: ignore[no-any-return]
