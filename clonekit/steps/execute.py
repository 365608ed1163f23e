"""The last step: the program begins."""

from __future__ import annotations

import errno
import os
import sys

from clonekit.errors import DeclarationError
from clonekit.linux.abi import NUMBERS, lib
from clonekit.records import EXEC, IMAGE, NOWHERE, POINTERS, TRY, WORDS, Call, Fd, Vector
from clonekit.steps.opening import path_of
from clonekit.steps.step import NO_OPTION, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from clonekit.records import Records

    Text = str | bytes | os.PathLike[str]

ENCODING = sys.getfilesystemencoding()
#: What does not hide another candidate's reason in a search.
ABSENT = (errno.ENOENT, errno.ENOTDIR)


def encode(text: Text) -> bytes:
    """os.fsencode, with a short way for what is almost always given."""
    return text.encode(ENCODING, "surrogateescape") if type(text) is str else os.fsencode(text)


def arguments(argv: Sequence[Text]) -> Vector:
    """Argv as the kernel takes it, checked."""
    if type(argv) is not list and isinstance(argv, str | bytes | os.PathLike):
        words = os.fsdecode(argv).split() or ["ls"]
        msg = f"argv is {argv!r}; give a list of arguments, as {words!r}"
        raise DeclarationError(msg)
    if type(argv) is not list and type(argv) is not tuple:
        msg = f"argv is {argv!r}; give a list of arguments, as ['ls', '-l']"
        raise DeclarationError(msg)
    try:
        block = "\0".join(argv).encode(ENCODING, "surrogateescape")
    except TypeError:  # bytes, or paths
        try:
            block = b"\0".join(map(os.fsencode, argv))
        except TypeError:
            msg = f"argv is {list(argv)!r}; each argument is a str, bytes or a path"
            raise DeclarationError(msg) from None
    if not argv:
        msg = "argv is empty; its first element is the program's name"
        raise DeclarationError(msg)
    if block.count(b"\0") != len(argv) - 1:
        msg = f"argv holds a NUL byte: {list(argv)!r}; a C string ends there, so remove it"
        raise DeclarationError(msg)
    return Vector(block + b"\0", len(argv))


_ours: tuple[dict[bytes, bytes], Vector] = {}, Vector()


def environment(env: Mapping[Text, Text] | None) -> Vector:
    """Envp as the kernel takes it: exactly `env`, or a copy of ours as it is now.

    Ours is packed again only when it has changed.
    """
    global _ours  # noqa: PLW0603 - a memory of one value
    if env is None:
        known, vector = _ours
        # Encoding it costs more than the rest of a spawn; os.environ may be a mapping of tests.
        now: dict[bytes, bytes] = os.environb._data  # type: ignore[attr-defined] # noqa: SLF001
        if now != known:
            known = now.copy()
            vector = Vector(b"".join([b"%b=%b\0" % item for item in known.items()]), len(known))
            _ours = known, vector
        return vector
    if not hasattr(env, "items"):
        msg = f"env is a {type(env).__name__}; give a mapping of names to values"
        raise DeclarationError(msg)
    strings = []
    for key, value in env.items():
        try:
            name, text = encode(key), encode(value)
        except TypeError:
            msg = f"env: {key!r}: a name and its value are str or bytes, not {type(value).__name__}"
            raise DeclarationError(msg) from None
        if b"=" in name or not name:
            msg = f"env: {key!r} cannot be a variable's name; it is empty or holds '='"
            raise DeclarationError(msg)
        strings.append(b"%b=%b\0" % (name, text))
    block = b"".join(strings)
    if block.count(b"\0") != len(strings):
        msg = "env holds a NUL byte; a C string ends there, so remove it"
        raise DeclarationError(msg)
    return Vector(block, len(strings))


def environment_is_ours() -> bool:
    """Whether nobody has put another mapping in place of os.environ, where PATH is looked for."""
    return getattr(os.environ, "_data", None) is os.environb._data  # type: ignore[attr-defined] # noqa: SLF001


def candidates(program: Text, env: Mapping[Text, Text] | None) -> list[bytes]:
    """The paths that a program's name may mean, in the order of PATH."""
    name = encode(program)
    if b"/" in name:
        return [name]
    if not name:
        msg = "the program's name is empty"
        raise DeclarationError(msg)
    return in_path(name, env)


def in_path(name: bytes, env: Mapping[Text, Text] | None) -> list[bytes]:
    """Where the PATH that the program will have, or the system's default, says that it may be."""
    ours: Mapping[Any, Any] = os.environ if env is None else env
    try:
        found = ours["PATH"]
    except (KeyError, TypeError, BytesWarning):  # names are bytes, perhaps: os.environb wants such
        found = next((ours[name] for name in ours if encode(name) == b"PATH"), os.defpath)
    return [b"%b/%b" % (directory or b".", name) for directory in os.fsencode(found).split(b":")]


def paths_of(
    name: Text, executable: Text | tuple[Text, ...] | None, env: Mapping[Text, Text] | None
) -> list[bytes]:
    """What is tried, in order."""
    if executable is None:
        return candidates(name, env)
    if type(executable) is tuple:
        return [encode(path) for path in executable]
    return [encode(executable)]  # type: ignore[arg-type]


@step(phase="exec")
def execute(
    argv: Sequence[Text],
    executable: Text | tuple[Text, ...] | int | object | None = None,
    env: Mapping[Text, Text] | None = None,
) -> Records:
    """Begin the program: execve, or execveat for one given by descriptor.

    Without `executable` the program is argv[0]: a path if it has a slash, else looked for in the
    PATH that the program will have, in the child's root. Each candidate is tried; the error is
    the first that is not ENOENT or ENOTDIR. `executable` is a path, or a tuple of them to be tried
    likewise, or a descriptor of ours, an object with `fileno()`, a `SealedProgram` or a Slot;
    argv[0] is then only a name. `env` is the exact environment; None copies ours.

    Raises: ENOENT, EACCES, ENOEXEC, ETXTBSY, E2BIG. ENOENT also for a script's missing
    interpreter, and for a script given by descriptor. See: execve(2), execveat(2).
    """
    vector = arguments(argv)
    variables = environment(env)
    flags = EXEC | TRY
    if executable is not None and not isinstance(executable, str | bytes | os.PathLike | tuple):
        yield Call(
            "execveat", Fd(executable), b"\0", vector, variables, lib.AT_EMPTY_PATH,
            tolerate=ABSENT, flags=flags,
        )  # fmt: skip
        return
    for path in paths_of(argv[0], executable, env):
        yield Call("execve", path_of(path), vector, variables, tolerate=ABSENT, flags=flags)


@step(phase="parent", field="suspended", lasting=True, option=NO_OPTION)
def stop_at_exec() -> Records:
    """Stop when the program is loaded, before its first instruction: ptrace PTRACE_TRACEME.

    `spawn` then gives a `Suspended` process, to be changed from outside and resumed. A set-id
    program gets no privileges by this exec, unless the child has CAP_SYS_PTRACE at this step.

    Raises: EPERM where a security module forbids tracing. See: ptrace(2).
    """
    yield Call("ptrace", lib.PTRACE_TRACEME, 0, 0, 0)


#: A candidate's record without its step and addresses: operands 0, 1 and 2 are in the image.
CANDIDATE = lib.CK_CALL | (EXEC | TRY) << 8 | NUMBERS["execve"] << 32
IN_IMAGE = NOWHERE | sum(IMAGE << 16 + 8 * n for n in range(3))
TOLERATED = int.from_bytes(bytes(ABSENT), "little")


def packed(  # noqa: PLR0917 - the three that it extends, and the three of exec
    records: bytes,
    image: bytes,
    pointers: bytes,
    number: int,
    argv: Sequence[Text],
    executable: Text | tuple[Text, ...] | None,
    env: Mapping[Text, Text] | None,
) -> tuple[bytes, bytes, bytes]:
    """Records, image and pointers with those of `execute` by path appended, as step `number`.

    It says what the step's own records say, without an object for each: every function on this
    way counts in the time of a spawn. The environment comes first: packed for this place, it
    serves the next spawn. A path that is argv[0] is not there twice.
    """
    variables = environment(env)
    vector = arguments(argv)
    block = variables.packed_at(len(image))
    strings_at = len(image) + len(block)
    env_at = strings_at - 8 * variables.count - 8
    strings = vector.packed_at(strings_at)
    end = strings_at + len(strings)
    argv_at = end - 8 * vector.count - 8
    head = CANDIDATE | number << 16
    pointers += POINTERS.pack(env_at, variables.count)
    pointers += POINTERS.pack(argv_at, vector.count)
    if executable is None and b"/" in vector.block.partition(b"\0")[0]:
        records += WORDS.pack(head, IN_IMAGE, TOLERATED, strings_at, argv_at, env_at, 0, 0, 0, 0)
        return records, b"".join((image, block, strings)), pointers
    parts = [image, block, strings]
    for path in paths_of(argv[0], executable, env):
        parts.append(path_of(path))
        records += WORDS.pack(head, IN_IMAGE, TOLERATED, end, argv_at, env_at, 0, 0, 0, 0)
        end += len(parts[-1])
    return records, b"".join(parts), pointers
