"""Read a program's records back: each system call with its arguments, as strace would write them.

What is shown comes from the bytes that the machine runs, not from the steps that made them.
"""

from __future__ import annotations

import os
import struct

from clonekit.linux.abi import ffi, lib, name_of
from clonekit.records import (
    IMAGE,
    IMMEDIATE,
    MOVE,
    NOWHERE,
    POINTERS,
    RECORD,
    REGISTER,
    SCRATCH,
    SET,
    TRY,
    WAIT,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from clonekit.compiled import Compiled

    Operands = tuple[tuple[int, int], ...]

# How each call's arguments read: n a number, o octal, fd, at (a directory), s a string, t@K text
# as long as argument K, v a vector of strings, e the environment, pN memory of N bytes, p@K*M
# memory of argument K times M bytes, A_ one of the constants A_..., A_| an or of them. A call
# that is not here is shown as numbers.
SIGNATURES: dict[str, str] = {
    "bind": "fd p@2 n",
    "capset": "p8 p24",
    "chdir": "s",
    "chroot": "s",
    "clone": "CLONE_| n n n n",
    "close": "fd",
    "close_range": "n n CLOSE_RANGE_|",
    "connect": "fd p@2 n",
    "dup3": "fd n O_|",
    "execve": "s v e",
    "execveat": "fd s v e AT_|",
    "fchdir": "fd",
    "fchmodat": "at s o",
    "fchownat": "at s n n n",
    "fcntl": "fd F_ n",
    "fsconfig": "fd FSCONFIG_ s s fd",
    "fsmount": "fd FSMOUNT_| MOUNT_ATTR_|",
    "fsopen": "s FSOPEN_|",
    "getpgid": "n",
    "ioctl": "fd IOC p",
    "ioprio_set": "n n n",
    "keyctl": "KEYCTL_ s",
    "landlock_add_rule": "fd n p12 n",
    "landlock_create_ruleset": "p@1 n n",
    "landlock_restrict_self": "fd n",
    "linkat": "at s at s n",
    "listen": "fd n",
    "memfd_create": "s MFD_|",
    "mkdirat": "at s o",
    "mknodat": "at s o n",
    "mount": "s s s MS_| s",
    "mount_setattr": "at s TREE_| p32 n",
    "move_mount": "at s at s MOVE_MOUNT_|",
    "open_tree": "at s TREE_|",
    "openat": "at s O_| o",
    "openat2": "at s p24 n",
    "personality": "n",
    "pipe2": "p8 O_|",
    "pivot_root": "s s",
    "ppoll": "p8 n p16 p8 n",
    "pwrite64": "fd p@2 n n",
    "prctl": "PR_ n n n n",
    "prlimit64": "n RLIMIT_ p16 p16",
    "ptrace": "PTRACE_ n n n",
    "recvmsg": "fd p56 MSG_|",
    "renameat2": "at s at s n",
    "rt_sigaction": "SIG p32 p32 n",
    "rt_sigprocmask": "SIG_ p8 p8 n",
    "sched_setaffinity": "n n p@1",
    "sched_setattr": "n p56 n",
    "seccomp": "SECCOMP_SET_ SECCOMP_FILTER_FLAG_| p16",
    "set_mempolicy": "MPOL_ p8 n",
    "sendfile": "fd fd p8 n",
    "setdomainname": "t@1 n",
    "setgroups": "n p@0*4",
    "sethostname": "t@1 n",
    "setitimer": "n p32 p32",
    "setns": "fd CLONE_NEW|",
    "setpgid": "n n",
    "setpriority": "PRIO_ n n",
    "setresgid": "n n n",
    "setresuid": "n n n",
    "setsid": "",
    "setsockopt": "fd n n p@4 n",
    "socket": "AF_ n n",
    "symlinkat": "s at s",
    "umask": "o",
    "umount2": "s MNT_|",
    "unlinkat": "at s n",
    "unshare": "CLONE_NEW|",
    "write": "fd t@2 n",
}
#: Constants that belong together without a prefix of their own.
FAMILIES = {
    "PR_": ("PR_SET_", "PR_GET_", "PR_CAPBSET_", "PR_CAP_AMBIENT", "PR_SCHED_CORE"),
    "IOC": ("TIOC", "SIOC"),
    "TREE_": ("OPEN_TREE_", "AT_EMPTY_PATH", "AT_RECURSIVE", "AT_SYMLINK_NOFOLLOW"),
}
#: What nobody says any more.
OLD_NAMES = ("AF_ROUTE",)
SHORT = 16
SHOWN = 4
LONGEST = 200

_constants: dict[str, dict[int, str]] = {}


def constants(prefix: str) -> dict[int, str]:
    """The constants of a prefix by value; the shortest name where several agree."""
    if prefix not in _constants:
        starts = FAMILIES.get(prefix, (prefix,))
        table: dict[int, str] = {}
        for name in sorted(dir(lib), key=lambda name: (len(name), name)):
            if name in OLD_NAMES or not name.startswith(starts):
                continue
            if prefix != "SIG" or "_" not in name:
                table.setdefault(getattr(lib, name), name)
        _constants[prefix] = table
    return _constants[prefix]


def flags_of(value: int, prefix: str) -> str:
    """`O_WRONLY|O_CLOEXEC`."""
    names = []
    for bit, name in constants(prefix).items():
        if bit > 0 and bit & (bit - 1) == 0 and value & bit:
            names.append(name)
            value &= ~bit
    return "|".join([*names, hex(value)] if value else names) or "0"


class Reader:
    """Reads the arguments of a program's records.

    Addresses in the image are shown as offsets, as they were before it was linked: they say the
    same at each compile, and nothing of our memory's layout.
    """

    __slots__ = ("counts", "memory", "program")

    def __init__(self, program: Compiled) -> None:
        self.program = program
        image = bytearray(ffi.buffer(program.image))
        base = int(ffi.cast("uintptr_t", program.image))
        self.counts = dict(POINTERS.iter_unpack(program.pointers))
        for start, count in self.counts.items():
            for at in range(start, start + 8 * count, 8):
                struct.pack_into("<Q", image, at, struct.unpack_from("<Q", image, at)[0] - base)
        self.memory = {IMAGE: bytes(image), SCRATCH: program.setup.scratch}

    def string(self, offset: int) -> str:
        """The C string at an offset of the image."""
        image = self.memory[IMAGE]
        return os.fsdecode(image[offset : image.index(b"\0", offset)])

    def vector(self, offset: int) -> list[str]:
        """The array of strings at an offset of the image."""
        count = self.counts.get(offset, 0)
        places = struct.unpack_from(f"<{count}Q", self.memory[IMAGE], offset)
        return [self.string(place) for place in places]

    def slot(self, register: int) -> str:
        """`$name`."""
        name = list(self.program.setup.assembler.registers)[register].name
        return f"${name}" if name else f"$.{register}"

    def value(self, kind: int, value: int, word: str, operands: Operands) -> Any:
        """One argument: a number, a string, a list of strings, `$name` or `&...`."""
        if kind == REGISTER:
            return self.slot(value)
        if kind in (IMAGE, SCRATCH):
            return self._pointed(kind, value, word, operands)
        return value - (1 << 64) if value >> 63 else value

    def _pointed(self, kind: int, offset: int, word: str, operands: Operands) -> Any:
        if kind == IMAGE and word == "s":
            return self.string(offset)
        if kind == IMAGE and word in ("v", "e"):
            return self.vector(offset)
        size = 0
        if word[0] in "pt":
            count, _, unit = word[1:].partition("*")
            size = int(unit or 1)
            if count[:1] == "@":
                of, length = operands[int(count[1:])]
                size *= length if of == IMMEDIATE else 0
            else:
                size *= int(count or 0)
        content = self.memory[kind][offset : offset + size]
        if word[0] == "t":
            return os.fsdecode(content)
        return f"&{'scratch ' * (kind == SCRATCH)}{content.hex() or hex(offset)}"

    def words(self, syscall: str, kinds: tuple[int, ...], values: tuple[int, ...]) -> list[str]:
        """How this call's arguments read."""
        if syscall in SIGNATURES:
            return SIGNATURES[syscall].split()
        used = max((n + 1 for n in range(6) if kinds[n] or values[n]), default=0)
        return ["n"] * used


def shown(value: Any, word: str, kind: int) -> str:
    """An argument as text."""
    if kind == REGISTER:
        return str(value)
    if isinstance(value, list):
        return shown_list(value, word)
    if isinstance(value, str):
        if word == "s" or word[0] == "t":
            return quoted(value)
        return value if len(value) <= 2 * SHORT + 1 else f"{value[: 2 * SHORT]}..."
    return shown_number(value, word)


def shown_list(value: list[str], word: str) -> str:
    """The arguments, or how many variables: their values may be secrets."""
    if word == "e":
        return f"[{len(value)} variables]"
    more = f", ... {len(value) - SHOWN} more" if len(value) > SHOWN else ""
    return "[" + ", ".join(map(quoted, value[:SHOWN])) + more + "]"


def quoted(text: str) -> str:
    """A string on one line, and no more of it than a line holds."""
    if len(text) > LONGEST:
        text = text[: LONGEST - 3] + "..."
    inside = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in inside) + '"'


def shown_number(value: int, word: str) -> str:
    """A number by what it stands for."""
    if word == "at" and value == lib.AT_FDCWD:
        return "AT_FDCWD"
    if word == "o":
        return f"{value:#o}"
    if word[0] in "pvs" and value == 0:
        return "NULL"
    if word.endswith("|"):
        return flags_of(value, word[:-1])
    return constants(word).get(value, str(value)) if word.isupper() else str(value)


def one(program: Compiled, number: int, reader: Reader | None = None) -> dict[str, Any]:
    """One record as an entry of `explain`."""
    reader = reader or Reader(program)
    fields = RECORD.unpack_from(program.records, number * RECORD.size)
    record_kind, flags, _, nr, result = fields[:5]
    kinds, values = fields[5:11], fields[12:18]
    operands = tuple(zip(kinds, values, strict=True))
    step_number = program.step_of(number)
    step = program.steps[step_number]
    entry: dict[str, Any] = {
        "phase": step.phase, "step": repr(step), "step_number": step_number + 1,
    }  # fmt: skip
    if record_kind == MOVE:
        place = f"scratch+{values[0]:#x}"
        text = (
            f"{place} = {reader.value(kinds[1], values[1], 'n', operands)}"
            if result == NOWHERE
            else f"{reader.slot(result)} = {place}"
        )
        return {**entry, "text": text}
    if record_kind in (SET, WAIT):
        asked = program.setup.assembler.asks[number].text
        if record_kind == WAIT:
            return {**entry, "text": f"wait for the parent: {asked}"}
        return {**entry, "parent": asked, "text": f"ask the parent: {asked}"}
    syscall = name_of(nr)
    words = reader.words(syscall, kinds, values)
    arguments = [
        reader.value(kind, value, word, operands)
        for kind, value, word in zip(kinds, values, words, strict=False)
    ]
    text = ", ".join(
        shown(value, word, kind) for value, word, kind in zip(arguments, words, kinds, strict=False)
    )
    entry |= {"syscall": syscall, "args": arguments, "text": f"{syscall}({text})"}
    entry["registers"] = [n for n in range(len(arguments)) if kinds[n] == REGISTER]
    if result != NOWHERE:
        entry["result"] = reader.slot(result)
    if flags & TRY:
        entry["candidate"] = True
    return entry


def rows(program: Compiled) -> list[dict[str, Any]]:
    """Every record in order, moves too (they have no `syscall`)."""
    reader = Reader(program)
    told = [one(program, number, reader) for number in range(len(program))]
    return told if program.rest is None else [*told, *rows(program.rest)]


def entries(program: Compiled) -> list[dict[str, Any]]:
    """Every system call in order, and what the parent is asked for."""
    return [row for row in rows(program) if "syscall" in row or "parent" in row]


def clone_text(program: Compiled) -> str:
    """The call that makes the child, which it does not make itself."""
    struct_ = program.struct
    call = "clone" if struct_.without_clone3 else "clone3"
    signal = constants("SIG").get(struct_.exit_signal, str(struct_.exit_signal))
    return f"{call}({flags_of(program.setup.clone_flags, 'CLONE_')}, exit_signal={signal})"
