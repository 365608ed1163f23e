"""What is kept with a process's memory, and the program that gives the child one of its own."""

from __future__ import annotations

import os

from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib
from clonekit.records import EXEC, Call, Data, Fd, Move, OwnMemory, Scratch, Slot, Vector
from clonekit.steps.step import Option, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clonekit.records import Records

#: Descriptors of the first stage: its records, what tells its parent of its end, and itself.
PLAN, ALIVE, STAGE = Slot(".plan"), Slot(".alive"), Slot(".stage")
#: The opened coredump_filter.
FILTER = Slot("coredump_filter")
#: The kinds of mapping that a core dump may hold, by their bits: core(5).
MAPPINGS = (
    "anonymous-private", "anonymous-shared", "file-private", "file-shared", "elf-headers",
    "huge-private", "huge-shared", "dax-private", "dax-shared",
)  # fmt: skip


@step(phase="memory")
def load_first_stage() -> Records:
    """Go on in a memory of our own: execveat of a tiny static program, which runs what follows.

    It is a sealed memfd, so that it is there in any root and nobody can change it. Added where a
    step needs it; you need not name it. As any exec it takes the capabilities that are not ambient
    from a child that is not root.

    Raises: EACCES where the sysctl vm.memfd_noexec is 2. Since: Linux 3.19. See: execveat(2).
    """
    name, low, middle, high = b"clonekit\0", Scratch(bytes(8)), Scratch(bytes(8)), Scratch(bytes(8))
    second, third = Slot(), Slot()
    yield Call("fcntl", Fd(ALIVE), lib.F_SETFD, 0)
    yield Call("fcntl", Fd(PLAN), lib.F_SETFD, 0)
    yield Move(low.at(0), value=Fd(PLAN))
    yield Move(low.at(1), to=second)
    yield Move(middle.at(0), value=second)
    yield Move(low.at(2), to=third)
    yield Move(high.at(0), value=third)
    argv = Scratch(bytes(40), {0: name, 8: low, 16: middle, 24: high})
    yield Call(
        "execveat", Fd(STAGE), b"\0", argv, Vector(), lib.AT_EMPTY_PATH, flags=EXEC
    )  # fmt: skip


@step(phase="memory", field="mdwe", apart=True, lasting=True, ours=True)
def deny_write_execute() -> Records:
    """Memory that was ever writable is never executable: prctl(PR_SET_MDWE).

    Its children have it, too. An exec takes away what they do not have (PR_MDWE_NO_INHERIT): that
    is for `set_attribute("MDWE", 3)` in a suspended process.

    Raises: EINVAL before Linux 6.3. Since: Linux 6.3. See: PR_SET_MDWE(2const).
    """
    yield OwnMemory()
    yield Call("prctl", lib.PR_SET_MDWE, lib.PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)


@step(phase="memory", field="no_thp", apart=True, lasting=True, ours=True)
def disable_huge_pages() -> Records:
    """No transparent huge pages for the program: prctl(PR_SET_THP_DISABLE).

    Since: Linux 3.15. See: PR_SET_THP_DISABLE(2const).
    """
    yield OwnMemory()
    yield Call("prctl", lib.PR_SET_THP_DISABLE, 1, 0, 0, 0)


@step(phase="memory", field="ksm", apart=True, lasting=True, ours=True)
def merge_pages() -> Records:
    """Equal pages of the program and others are stored once: prctl(PR_SET_MEMORY_MERGE).

    Raises: EINVAL before Linux 6.4, or without KSM; EPERM without CAP_SYS_RESOURCE.
    Since: Linux 6.7 for exec, which takes it away before. See: PR_SET_MEMORY_MERGE(2const).
    """
    yield OwnMemory()
    yield Call("prctl", lib.PR_SET_MEMORY_MERGE, 1, 0, 0, 0)


def mappings(text: str) -> int | list[str]:
    """`0x33`, or `anonymous-private,elf-headers`."""
    return int(text, 0) if text[:1].isdigit() else text.split(",")


@step(phase="adjust", field="coredump_filter", lasting=True, each=lambda _: [()])
def open_coredump_filter() -> Records:
    """Open /proc/self/coredump_filter, which is root's when ids have changed; for the next step.

    Raises: ENOENT without /proc; EACCES for a child that is not root and joins a user namespace.
    See: core(5).
    """
    path = Data(b"/proc/self/coredump_filter\0")  # to open it is no harm yet
    flags = os.O_WRONLY | os.O_CLOEXEC
    yield Call("openat", lib.AT_FDCWD, path, flags, 0, to=FILTER)


@step(
    phase="memory",
    field="coredump_filter",
    apart=True,
    lasting=True,
    ours=True,
    option=Option("KINDS", mappings),
)
def set_coredump_filter(kinds: int | list[str] | str) -> Records:
    """Which kinds of mapping a core dump holds, by number or names: /proc/self/coredump_filter.

    The file is what `open_coredump_filter()` has opened, which comes first.

    See: core(5).
    """
    yield OwnMemory()
    if not isinstance(kinds, int):
        value = 0
        for name in [kinds] if isinstance(kinds, str) else kinds:
            if name not in MAPPINGS:
                msg = f"coredump_filter: {name!r} is no kind; use {', '.join(MAPPINGS)}"
                raise DeclarationError(msg)
            value |= 1 << MAPPINGS.index(name)
    elif not 0 <= kinds < 1 << len(MAPPINGS):
        msg = f"coredump_filter: {kinds:#x}; give bits below {1 << len(MAPPINGS):#x}"
        raise DeclarationError(msg)
    else:
        value = kinds
    text = f"{value:#x}".encode()
    yield Call("write", Fd(FILTER), text, len(text), expect=len(text))
    yield Call("close", Fd(FILTER))


@step(phase="init", field="init", apart=True, lasting=True, ours=True)
def run_init() -> Records:
    """The first process of the new PID namespace is an init of ours; the program is its child.

    It passes on signals (those from the terminal reach the program anyway), reaps, and ends with
    the program's status, or 128 and the signal's number, and everything in the namespace with it.
    Without it, the program itself is the first process: it gets no signal that it does not
    handle, and must reap.

    Raises: EAGAIN, ENOMEM. See: pid_namespaces(7), clone(2).
    """
    yield OwnMemory()
    yield Call("clone", lib.SIGCHLD, 0, 0, 0, 0, to=Slot())
