"""Options that stand for several fields of a declaration, by the names that people know.

They are those of unshare(1), bwrap(1) and of container engines. Each is one entry of a table: the
parser, the help and what becomes of it come from there, and `explain` shows what it comes to.
"""

from __future__ import annotations

import os

from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib
from clonekit.linux.privilege import has_capability
from clonekit.steps.namespaces import OCI_NAMES, parse_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from clonekit.mounts import Mount

    Fields = dict[str, Any]

#: What `--unshare-all` makes anew. The clocks stay: a new time namespace takes its offsets.
ALL = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
CPU_PERIOD = 100_000  # µs


class Shorthand:
    """One of them: its flag, what it takes, its help, and what it does to the fields."""

    __slots__ = ("apply", "flag", "help", "takes")

    def __init__(self, flag: str, takes: str, told: str, apply: Callable[..., None]) -> None:
        self.flag = flag
        self.takes = tuple(takes.split())
        self.help = told
        self.apply = apply


def unshare(fields: Fields, *names: str) -> None:
    """New namespaces, beside those that are there already."""
    given = fields.get("namespaces", [])
    known = [given] if isinstance(given, str) else list(given)
    wanted = (OCI_NAMES.get(name, name) for name in names)
    fields["namespaces"] = list(dict.fromkeys([*known, *wanted]))


def map_root(fields: Fields) -> None:
    """Uid and gid 0 inside for our own."""
    unshare(fields, "user")
    fields["uid_map"] = fields["gid_map"] = 0


def map_auto(fields: Fields) -> None:
    """All the ids that are ours to give."""
    from clonekit.linux.id_map import IdMap

    unshare(fields, "user")
    fields["uid_map"], fields["gid_map"] = IdMap.subordinate("uid"), IdMap.subordinate("gid")
    fields.setdefault("uid", 0)
    fields.setdefault("gid", 0)


def mounting(make: Callable[..., Mount]) -> Callable[..., None]:
    """What adds a mount, made of the option's texts, to those before it."""

    def apply(fields: Fields, *texts: str) -> None:
        unshare(fields, "mnt")
        made = make(*texts)
        if made.parts:
            fields["mounts"] = [*fields.get("mounts", ()), made]
            return
        if "rootfs" in fields or "mounts" in fields:
            msg = "what is on / is the root: give it first, and without --rootfs and --empty-root"
            raise DeclarationError(msg)
        fields["rootfs"] = made

    return apply


def binding(**flags: bool) -> Callable[..., None]:
    """What adds a bind with these flags."""

    def make(source: str, target: str) -> Mount:
        from clonekit.mounts import bind

        return bind(source, target, nosuid=True, **flags)

    return mounting(make)


def size(text: str) -> int:
    """`64m` as bytes.

    Raises: DeclarationError.
    """
    number, unit = (text, "") if text[-1:].isdigit() else (text[:-1], text[-1:].lower())
    if not number.isdecimal() or unit not in UNITS:
        msg = f"{text!r} is no size; write a number of bytes, or one with k, m, g or t, as 64m"
        raise DeclarationError(msg)
    return int(number) * UNITS[unit]


def tmpfs(text: str) -> Mount:
    """`/tmp`, or `/tmp,size=64m,mode=755`."""
    from clonekit.mounts import tmpfs as made

    target, *options = text.split(",")
    details: dict[str, Any] = {}
    for option in options:
        name, _, value = option.partition("=")
        if name not in {"size", "mode"} or not value:
            msg = f"{option!r} is no option of a tmpfs; write size=BYTES or mode=OCTAL"
            raise DeclarationError(msg)
        details[name] = size(value) if name == "size" else int(value, 8)
    return made(target, **details)


def plain(name: str) -> Callable[[str], Mount]:
    """The mount of this name, at a target."""

    def make(target: str) -> Mount:
        from clonekit import mounts

        made: Mount = getattr(mounts, name)(target)
        return made

    return make


def overlay(layers: str, target: str) -> Mount:
    """Layers with a colon between, the uppermost first; what is written goes with the program."""
    from clonekit.mounts import overlay as made

    return made(target, layers.split(":"), in_memory=True)


def contents(fd: str, target: str) -> Mount:
    """What a descriptor holds, as a file."""
    from clonekit.mounts import file

    return file(target, int(fd))


def empty_root(fields: Fields) -> None:
    """A root in which there is nothing but the mounts."""
    from clonekit.mounts import tmpfs as made

    unshare(fields, "mnt")
    if "rootfs" in fields:
        msg = "there is a root already; give one of --empty-root, --rootfs and a mount on /"
        raise DeclarationError(msg)
    fields["rootfs"] = made("/")


def read_only(fields: Fields) -> None:
    """The root as it is, or will be, but for writing."""
    from clonekit.mounts import bind

    unshare(fields, "mnt")
    root = fields.get("rootfs", "/")
    if isinstance(root, str | bytes | os.PathLike):
        fields["rootfs"] = bind(root, "/", read_only=True)
    else:  # made for these fields alone
        root.flags |= lib.MOUNT_ATTR_RDONLY


def network(fields: Fields) -> None:
    """A network of its own."""
    unshare(fields, "net")
    fields["loopback"] = True


def setting(field: str, value: object) -> Callable[..., None]:
    """What sets a field."""

    def apply(fields: Fields) -> None:
        fields[field] = value

    return apply


def directory(fields: Fields, path: str) -> None:
    """The current directory."""
    fields["cwd"] = path


def limiting(name: str, parse: Callable[[str], object]) -> Callable[..., None]:
    """What limits the group that is made for the program."""

    def apply(fields: Fields, text: str) -> None:
        fields["limits"] = {**fields.get("limits", {}), name: parse(text)}

    return apply


def processors(text: str) -> tuple[int, int]:
    """`1.5` of them, as cpu.max has it."""
    try:
        share = float(text)
    except ValueError:
        share = 0
    if not share > 0:
        msg = f"{text!r} is no number of processors; write 1.5, for example"
        raise DeclarationError(msg)
    return round(share * CPU_PERIOD), CPU_PERIOD


SHORTHANDS = (
    Shorthand("--unshare", "NAMES", "New namespaces, as --namespaces; may be repeated.",
              lambda fields, names: unshare(fields, *parse_names(names))),
    Shorthand("--unshare-all", "", f"New namespaces of these kinds: {', '.join(ALL)}.",
              lambda fields: unshare(fields, *ALL)),
    Shorthand("--map-root", "", "A user namespace in which our uid and gid are 0.", map_root),
    Shorthand("--map-auto", "", "A user namespace with our subordinate ids, as root.", map_auto),
    Shorthand("--empty-root", "", "The root is an empty tmpfs with the mounts in it.", empty_root),
    Shorthand("--read-only", "", "Nobody may write to the root, --rootfs or the present one.",
              read_only),
    Shorthand("--bind", "SRC DEST",
              "A file or directory of ours, with all below it. On / it is the root; give it first.",
              binding(nodev=True)),
    Shorthand("--ro-bind", "SRC DEST", "The same, read-only throughout.",
              binding(nodev=True, read_only=True)),
    Shorthand("--dev-bind", "SRC DEST", "The same as --bind, with its devices.", binding()),
    Shorthand("--bind-try", "SRC DEST", "As --bind, where SRC exists.",
              binding(nodev=True, optional=True)),
    Shorthand("--ro-bind-try", "SRC DEST", "As --ro-bind, where SRC exists.",
              binding(nodev=True, read_only=True, optional=True)),
    Shorthand("--overlay", "SRC[:SRC...] DEST",
              "Directories of ours as one; what is written is gone with the program.",
              mounting(overlay)),
    Shorthand("--tmpfs", "DEST[,size=N][,mode=N]", "An empty file system in memory.",
              mounting(tmpfs)),
    Shorthand("--proc", "DEST", "The processes of the PID namespace.", mounting(plain("proc"))),
    Shorthand("--dev", "DEST", "A minimal /dev.", mounting(plain("dev"))),
    Shorthand("--sys", "DEST", "sysfs, read-only.", mounting(plain("sysfs"))),
    Shorthand("--mqueue", "DEST", "The message queues of the IPC namespace.",
              mounting(plain("mqueue"))),
    Shorthand("--file", "FD DEST", "A file with what a descriptor of ours holds.",
              mounting(contents)),
    Shorthand("--net", "", "A network of its own, with loopback.", network),
    Shorthand("--memory", "SIZE", "At most so much memory, for all in it: memory.max.",
              limiting("memory.max", size)),
    Shorthand("--pids", "N", "At most so many processes and threads: pids.max.",
              limiting("pids.max", size)),
    Shorthand("--cpus", "N", "At most so many processors' time: cpu.max.",
              limiting("cpu.max", processors)),
    Shorthand("--die-with-parent", "", "SIGKILL when we end, as --pdeathsig KILL.",
              setting("pdeathsig", "KILL")),
    Shorthand("--new-session", "",
              "A session without our terminal, into which it could otherwise type commands"
              " (TIOCSTI); as --setsid.",
              setting("setsid", value=True)),
    Shorthand("--chdir", "DIR", "Begin in this directory, as --cwd.", directory),
)  # fmt: skip
#: What is applied when all others were: it changes what they say.
LAST = ("--read-only",)


def applied(fields: Fields, given: Iterable[tuple[Shorthand, list[str]]]) -> None:
    """Work shorthands into the fields of a declaration, in the order given.

    Who may not make namespaces gets a user namespace, in which the ids are what they are.

    Raises: DeclarationError.
    """
    words = sorted(given, key=lambda entry: entry[0].flag in LAST)
    for shorthand, values in words:
        try:
            shorthand.apply(fields, *values)
        except ValueError as error:
            msg = f"{shorthand.flag}: {error}"
            raise DeclarationError(msg) from None
    if not words or not fields.get("namespaces"):
        return
    unshare(fields)
    names = fields["namespaces"]
    if "user" not in names and "join" not in fields and not has_capability(lib.CAP_SYS_ADMIN):
        fields["namespaces"] = names = ["user", *names]
    if "user" in names:
        fields.setdefault("uid_map", os.geteuid())
        fields.setdefault("gid_map", os.getegid())
