"""New file systems, by type and options."""

from __future__ import annotations

from clonekit.errors import DeclarationError
from clonekit.mounts.value import Mount, flags_of, number, octal
from clonekit.trees import made, parts_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from clonekit.records import Records, Slot
    from clonekit.trees import Path

HIDEPID = ("off", "noaccess", "invisible", "ptraceable")  # by number, but for the last, which is 4


class FileSystem(Mount):
    """A new file system of some type."""

    __slots__ = ("kind", "options")

    def __init__(self, kind: str, target: Path, options: Mapping[str, object], flags: int) -> None:
        super().__init__(target, flags)
        self.kind = kind
        self.options = dict(options)

    def tree(self, tree: Slot, flags: int) -> Records:
        """The file system, mounted nowhere yet."""
        yield from made(self.kind, self.options, flags, tree)

    def frozen(self) -> object:
        """What its calls depend on."""
        return self.known()

    def source(self) -> str:
        """Its type."""
        return self.kind


def file_system(
    kind: str,
    target: Path,
    options: Mapping[str, object] | None = None,
    *,
    read_only: bool = False,
    nosuid: bool = True,
    nodev: bool = True,
    noexec: bool = True,
) -> FileSystem:
    """A new file system of any type, with its own options: fsopen, fsconfig, fsmount, move_mount.

    An option's value is a text or a number; True is for an option that has none.

    Raises: ENODEV for a type that the kernel does not know, EINVAL for an option, EPERM.
    See: fsopen(2), fsconfig(2).
    """
    flags = flags_of(read_only=read_only, nosuid=nosuid, nodev=nodev, noexec=noexec)
    return FileSystem(kind, target, options or {}, flags)


def tmpfs(
    target: Path,
    *,
    size: int | None = None,
    mode: int | None = None,
    read_only: bool = False,
    nosuid: bool = True,
    nodev: bool = True,
    noexec: bool = False,
) -> FileSystem:
    """An empty file system in memory, of at most `size` bytes: tmpfs.

    Without a size it may take half of the machine's memory. `mode` is that of its directory: if
    nothing is said, 0o755 for a root and 0o1777 elsewhere.

    See: tmpfs(5).
    """
    if mode is None:
        mode = 0o1777 if parts_of(target) else 0o755
    options: dict[str, object] = {"mode": octal(mode, "mode")}
    if size is not None:
        options["size"] = number(size, "size (in bytes)", 1)
    flags = flags_of(read_only=read_only, nosuid=nosuid, nodev=nodev, noexec=noexec)
    return FileSystem("tmpfs", target, options, flags)


def proc(
    target: Path = "/proc",
    *,
    hidepid: str | None = None,
    subset: str | None = None,
    read_only: bool = False,
) -> FileSystem:
    """The processes of the program's PID namespace: proc.

    `hidepid` hides those of other users: "off", "noaccess", "invisible" or "ptraceable".
    `subset="pid"` leaves out all that is not of processes.

    Raises: EPERM in a user namespace without a PID namespace of its own, or where the caller's
        /proc is not wholly visible.
    Since: both Linux 5.8. See: proc(5).
    """
    if hidepid not in (None, *HIDEPID):
        msg = f"hidepid is {hidepid!r}; write {', '.join(map(repr, HIDEPID))}"
        raise DeclarationError(msg)
    if subset not in (None, "pid"):
        msg = f"subset is {subset!r}; write 'pid', or leave it out"
        raise DeclarationError(msg)
    flags = flags_of(read_only=read_only, nosuid=True, nodev=True, noexec=True)
    return FileSystem("proc", target, {"hidepid": hidepid, "subset": subset}, flags)


def sysfs(target: Path = "/sys", *, read_only: bool = True) -> FileSystem:
    """The machine's devices, and those of the program's network namespace: sysfs.

    Raises: EPERM in a user namespace without a network namespace of its own, or where the caller's
        /sys is not wholly visible.
    See: sysfs(5).
    """
    flags = flags_of(read_only=read_only, nosuid=True, nodev=True, noexec=True)
    return FileSystem("sysfs", target, {}, flags)


def cgroup2(target: Path = "/sys/fs/cgroup", *, read_only: bool = True) -> FileSystem:
    """The unified hierarchy of control groups, from the program's cgroup namespace on: cgroup2.

    Raises: EPERM in a user namespace without a cgroup namespace of its own. See: cgroups(7).
    """
    flags = flags_of(read_only=read_only, nosuid=True, nodev=True, noexec=True)
    return FileSystem("cgroup2", target, {}, flags)


def pts_options(
    mode: int = 0o620, ptmxmode: int = 0o666, gid: int | None = None
) -> dict[str, object]:
    """The options of devpts."""
    return {
        "newinstance": True,
        "mode": octal(mode, "mode"),
        "ptmxmode": octal(ptmxmode, "ptmxmode"),
        "gid": None if gid is None else number(gid, "gid"),
    }


def devpts(
    target: Path = "/dev/pts", *, mode: int = 0o620, ptmxmode: int = 0o666, gid: int | None = None
) -> FileSystem:
    """Pseudo-terminals of its own: devpts.

    `gid` is the group of new ones, by its number in the program's user namespace.

    Raises: EINVAL for a `gid` that has no meaning there. See: pts(4).
    """
    options = pts_options(mode, ptmxmode, gid)
    return FileSystem("devpts", target, options, flags_of(nosuid=True, noexec=True))


def mqueue(target: Path = "/dev/mqueue") -> FileSystem:
    """The message queues of the program's IPC namespace: mqueue.

    Raises: EPERM in a user namespace without an IPC namespace of its own. See: mq_overview(7).
    """
    return FileSystem("mqueue", target, {}, flags_of(nosuid=True, nodev=True, noexec=True))
