# What a type checker is told of `Popen`, `run` and their kin: as of `subprocess`, and our fields.
# No module of this name is imported. A test compares it with the parameters that there are.

import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from subprocess import CompletedProcess
from typing import IO, Any, AnyStr, Literal, TypeAlias, TypedDict, Unpack, overload

from _typeshed import ReadableBuffer, StrOrBytesPath

from clonekit.process import Exit
from clonekit.spec import Spec

Command: TypeAlias = StrOrBytesPath | Sequence[StrOrBytesPath]
File: TypeAlias = int | IO[Any] | None
Path: TypeAlias = StrOrBytesPath | None
Env: TypeAlias = Mapping[str, StrOrBytesPath] | Mapping[bytes, StrOrBytesPath] | None
Id: TypeAlias = str | int | None

# What a declaration says that is no parameter of `subprocess`.
Fields = TypedDict(  # noqa: UP013 - so many names stand in a paragraph
    "Fields",
    {
        "affinity": Any, "alarm": Any, "autokill": Any, "autoreap": Any, "capabilities": Any,
        "cgroup": Any, "clone_nnp": Any, "core_scheduling": Any, "coredump_filter": Any,
        "ctty": Any, "deadline": Any, "domainname": Any, "empty_mounts": Any, "fds": Any,
        "foreground": Any, "gid": Any, "gid_map": Any, "groups": Any, "hostname": Any, "init": Any,
        "ioprio": Any, "join": Any, "keyring": Any, "ksm": Any, "landlock": Any, "loopback": Any,
        "masked_paths": Any, "mdwe": Any, "mempolicy": Any, "mounts": Any, "namespaces": Any,
        "nested_user": Any, "network": Any, "nice": Any, "no_new_privs": Any, "no_thp": Any,
        "oom_score_adj": Any, "pdeathsig": Any, "personality": Any, "pgid": Any, "prctl": Any,
        "propagation": Any, "readonly_paths": Any, "rlimits": Any, "root": Any, "rootfs": Any,
        "scheduler": Any, "seccomp": Any, "securebits": Any, "setsid": Any, "sigdefault": Any,
        "sigignore": Any, "sigmask": Any, "steps": Any, "time_offsets": Any, "timer_slack_ns": Any,
        "uid": Any, "uid_map": Any, "write_files": Any,
    },
    total=False,
)  # fmt: skip

# What has no place of its own, and says nothing of text or bytes.
class Keywords(Fields, total=False):
    spec: Spec | None
    user: Id
    group: Id
    extra_groups: Iterable[str | int] | None
    umask: int
    pipesize: int
    process_group: int | None

# What asyncio takes as keywords alone; it has fixed some.
class OfAsyncio(Keywords, total=False):
    executable: Path
    preexec_fn: None
    close_fds: bool
    cwd: Path
    env: Env
    startupinfo: Any
    creationflags: int
    restore_signals: bool
    start_new_session: bool
    pass_fds: Collection[int]
    universal_newlines: Literal[False]
    shell: bool
    bufsize: Literal[0]
    encoding: None
    errors: None
    text: Literal[False] | None

class Popen(subprocess.Popen[AnyStr]):
    @overload
    def __init__(
        self: Popen[str], args: Command = ..., bufsize: int = ..., executable: Path = ...,
        stdin: File = ..., stdout: File = ..., stderr: File = ..., preexec_fn: None = ...,
        close_fds: bool = ..., shell: bool = ..., cwd: Path = ..., env: Env = ...,
        universal_newlines: bool | None = ..., startupinfo: Any = ..., creationflags: int = ...,
        restore_signals: bool = ..., start_new_session: bool = ..., pass_fds: Collection[int] = ...,
        *, text: Literal[True], encoding: str | None = ..., errors: str | None = ...,
        **more: Unpack[Keywords],
    ) -> None: ...  # fmt: skip
    @overload
    def __init__(
        self: Popen[str], args: Command = ..., bufsize: int = ..., executable: Path = ...,
        stdin: File = ..., stdout: File = ..., stderr: File = ..., preexec_fn: None = ...,
        close_fds: bool = ..., shell: bool = ..., cwd: Path = ..., env: Env = ...,
        universal_newlines: bool | None = ..., startupinfo: Any = ..., creationflags: int = ...,
        restore_signals: bool = ..., start_new_session: bool = ..., pass_fds: Collection[int] = ...,
        *, text: bool | None = ..., encoding: str, errors: str | None = ...,
        **more: Unpack[Keywords],
    ) -> None: ...  # fmt: skip
    @overload
    def __init__(
        self: Popen[str], args: Command = ..., bufsize: int = ..., executable: Path = ...,
        stdin: File = ..., stdout: File = ..., stderr: File = ..., preexec_fn: None = ...,
        close_fds: bool = ..., shell: bool = ..., cwd: Path = ..., env: Env = ...,
        universal_newlines: bool | None = ..., startupinfo: Any = ..., creationflags: int = ...,
        restore_signals: bool = ..., start_new_session: bool = ..., pass_fds: Collection[int] = ...,
        *, text: bool | None = ..., encoding: str | None = ..., errors: str,
        **more: Unpack[Keywords],
    ) -> None: ...  # fmt: skip
    @overload
    def __init__(
        self: Popen[str], args: Command = ..., bufsize: int = ..., executable: Path = ...,
        stdin: File = ..., stdout: File = ..., stderr: File = ..., preexec_fn: None = ...,
        close_fds: bool = ..., shell: bool = ..., cwd: Path = ..., env: Env = ..., *,
        universal_newlines: Literal[True], startupinfo: Any = ..., creationflags: int = ...,
        restore_signals: bool = ..., start_new_session: bool = ..., pass_fds: Collection[int] = ...,
        text: bool | None = ..., encoding: str | None = ..., errors: str | None = ...,
        **more: Unpack[Keywords],
    ) -> None: ...  # fmt: skip
    @overload
    def __init__(
        self: Popen[bytes], args: Command = ..., bufsize: int = ..., executable: Path = ...,
        stdin: File = ..., stdout: File = ..., stderr: File = ..., preexec_fn: None = ...,
        close_fds: bool = ..., shell: bool = ..., cwd: Path = ..., env: Env = ...,
        universal_newlines: Literal[False] | None = ..., startupinfo: Any = ...,
        creationflags: int = ..., restore_signals: bool = ..., start_new_session: bool = ...,
        pass_fds: Collection[int] = ..., *, text: Literal[False] | None = ..., encoding: None = ...,
        errors: None = ..., **more: Unpack[Keywords],
    ) -> None: ...  # fmt: skip
    @overload
    def __init__(
        self: Popen[Any], args: Command = ..., bufsize: int = ..., executable: Path = ...,
        stdin: File = ..., stdout: File = ..., stderr: File = ..., preexec_fn: None = ...,
        close_fds: bool = ..., shell: bool = ..., cwd: Path = ..., env: Env = ...,
        universal_newlines: bool | None = ..., startupinfo: Any = ..., creationflags: int = ...,
        restore_signals: bool = ..., start_new_session: bool = ..., pass_fds: Collection[int] = ...,
        *, text: bool | None = ..., encoding: str | None = ..., errors: str | None = ...,
        **more: Unpack[Keywords],
    ) -> None: ...  # fmt: skip
    @property
    def pidfd(self) -> int: ...
    @property
    def exit(self) -> Exit | None: ...

@overload
def run(
    args: Command = ..., bufsize: int = ..., executable: Path = ..., stdin: File = ...,
    stdout: File = ..., stderr: File = ..., preexec_fn: None = ..., close_fds: bool = ...,
    shell: bool = ..., cwd: Path = ..., env: Env = ..., universal_newlines: bool | None = ...,
    startupinfo: Any = ..., creationflags: int = ..., restore_signals: bool = ...,
    start_new_session: bool = ..., pass_fds: Collection[int] = ..., *, capture_output: bool = ...,
    check: bool = ..., input: str | None = ..., timeout: float | None = ..., text: Literal[True],
    encoding: str | None = ..., errors: str | None = ..., **more: Unpack[Keywords],
) -> CompletedProcess[str]: ...  # fmt: skip
@overload
def run(
    args: Command = ..., bufsize: int = ..., executable: Path = ..., stdin: File = ...,
    stdout: File = ..., stderr: File = ..., preexec_fn: None = ..., close_fds: bool = ...,
    shell: bool = ..., cwd: Path = ..., env: Env = ..., universal_newlines: bool | None = ...,
    startupinfo: Any = ..., creationflags: int = ..., restore_signals: bool = ...,
    start_new_session: bool = ..., pass_fds: Collection[int] = ..., *, capture_output: bool = ...,
    check: bool = ..., input: str | None = ..., timeout: float | None = ...,
    text: bool | None = ..., encoding: str, errors: str | None = ..., **more: Unpack[Keywords],
) -> CompletedProcess[str]: ...  # fmt: skip
@overload
def run(
    args: Command = ..., bufsize: int = ..., executable: Path = ..., stdin: File = ...,
    stdout: File = ..., stderr: File = ..., preexec_fn: None = ..., close_fds: bool = ...,
    shell: bool = ..., cwd: Path = ..., env: Env = ..., universal_newlines: bool | None = ...,
    startupinfo: Any = ..., creationflags: int = ..., restore_signals: bool = ...,
    start_new_session: bool = ..., pass_fds: Collection[int] = ..., *, capture_output: bool = ...,
    check: bool = ..., input: str | None = ..., timeout: float | None = ...,
    text: bool | None = ..., encoding: str | None = ..., errors: str, **more: Unpack[Keywords],
) -> CompletedProcess[str]: ...  # fmt: skip
@overload
def run(
    args: Command = ..., bufsize: int = ..., executable: Path = ..., stdin: File = ...,
    stdout: File = ..., stderr: File = ..., preexec_fn: None = ..., close_fds: bool = ...,
    shell: bool = ..., cwd: Path = ..., env: Env = ..., *, universal_newlines: Literal[True],
    startupinfo: Any = ..., creationflags: int = ..., restore_signals: bool = ...,
    start_new_session: bool = ..., pass_fds: Collection[int] = ..., capture_output: bool = ...,
    check: bool = ..., input: str | None = ..., timeout: float | None = ...,
    text: bool | None = ..., encoding: str | None = ..., errors: str | None = ...,
    **more: Unpack[Keywords],
) -> CompletedProcess[str]: ...  # fmt: skip
@overload
def run(
    args: Command = ..., bufsize: int = ..., executable: Path = ..., stdin: File = ...,
    stdout: File = ..., stderr: File = ..., preexec_fn: None = ..., close_fds: bool = ...,
    shell: bool = ..., cwd: Path = ..., env: Env = ...,
    universal_newlines: Literal[False] | None = ..., startupinfo: Any = ...,
    creationflags: int = ..., restore_signals: bool = ..., start_new_session: bool = ...,
    pass_fds: Collection[int] = ..., *, capture_output: bool = ..., check: bool = ...,
    input: ReadableBuffer | None = ..., timeout: float | None = ...,
    text: Literal[False] | None = ..., encoding: None = ..., errors: None = ...,
    **more: Unpack[Keywords],
) -> CompletedProcess[bytes]: ...  # fmt: skip
@overload
def run(
    args: Command = ..., bufsize: int = ..., executable: Path = ..., stdin: File = ...,
    stdout: File = ..., stderr: File = ..., preexec_fn: None = ..., close_fds: bool = ...,
    shell: bool = ..., cwd: Path = ..., env: Env = ..., universal_newlines: bool | None = ...,
    startupinfo: Any = ..., creationflags: int = ..., restore_signals: bool = ...,
    start_new_session: bool = ..., pass_fds: Collection[int] = ..., *, capture_output: bool = ...,
    check: bool = ..., input: ReadableBuffer | str | None = ..., timeout: float | None = ...,
    text: bool | None = ..., encoding: str | None = ..., errors: str | None = ...,
    **more: Unpack[Keywords],
) -> CompletedProcess[Any]: ...  # fmt: skip
@overload
def check_output(
    args: Command = ..., bufsize: int = ..., executable: Path = ..., stdin: File = ...,
    stderr: File = ..., preexec_fn: None = ..., close_fds: bool = ..., shell: bool = ...,
    cwd: Path = ..., env: Env = ..., universal_newlines: bool | None = ..., startupinfo: Any = ...,
    creationflags: int = ..., restore_signals: bool = ..., start_new_session: bool = ...,
    pass_fds: Collection[int] = ..., *, timeout: float | None = ..., input: str | None = ...,
    text: Literal[True], encoding: str | None = ..., errors: str | None = ...,
    **more: Unpack[Keywords],
) -> str: ...  # fmt: skip
@overload
def check_output(
    args: Command = ..., bufsize: int = ..., executable: Path = ..., stdin: File = ...,
    stderr: File = ..., preexec_fn: None = ..., close_fds: bool = ..., shell: bool = ...,
    cwd: Path = ..., env: Env = ..., universal_newlines: bool | None = ..., startupinfo: Any = ...,
    creationflags: int = ..., restore_signals: bool = ..., start_new_session: bool = ...,
    pass_fds: Collection[int] = ..., *, timeout: float | None = ..., input: str | None = ...,
    text: bool | None = ..., encoding: str, errors: str | None = ..., **more: Unpack[Keywords],
) -> str: ...  # fmt: skip
@overload
def check_output(
    args: Command = ..., bufsize: int = ..., executable: Path = ..., stdin: File = ...,
    stderr: File = ..., preexec_fn: None = ..., close_fds: bool = ..., shell: bool = ...,
    cwd: Path = ..., env: Env = ..., universal_newlines: bool | None = ..., startupinfo: Any = ...,
    creationflags: int = ..., restore_signals: bool = ..., start_new_session: bool = ...,
    pass_fds: Collection[int] = ..., *, timeout: float | None = ..., input: str | None = ...,
    text: bool | None = ..., encoding: str | None = ..., errors: str, **more: Unpack[Keywords],
) -> str: ...  # fmt: skip
@overload
def check_output(
    args: Command = ..., bufsize: int = ..., executable: Path = ..., stdin: File = ...,
    stderr: File = ..., preexec_fn: None = ..., close_fds: bool = ..., shell: bool = ...,
    cwd: Path = ..., env: Env = ..., *, universal_newlines: Literal[True], startupinfo: Any = ...,
    creationflags: int = ..., restore_signals: bool = ..., start_new_session: bool = ...,
    pass_fds: Collection[int] = ..., timeout: float | None = ..., input: str | None = ...,
    text: bool | None = ..., encoding: str | None = ..., errors: str | None = ...,
    **more: Unpack[Keywords],
) -> str: ...  # fmt: skip
@overload
def check_output(
    args: Command = ..., bufsize: int = ..., executable: Path = ..., stdin: File = ...,
    stderr: File = ..., preexec_fn: None = ..., close_fds: bool = ..., shell: bool = ...,
    cwd: Path = ..., env: Env = ..., universal_newlines: Literal[False] | None = ...,
    startupinfo: Any = ..., creationflags: int = ..., restore_signals: bool = ...,
    start_new_session: bool = ..., pass_fds: Collection[int] = ..., *, timeout: float | None = ...,
    input: ReadableBuffer | None = ..., text: Literal[False] | None = ..., encoding: None = ...,
    errors: None = ..., **more: Unpack[Keywords],
) -> bytes: ...  # fmt: skip
@overload
def check_output(
    args: Command = ..., bufsize: int = ..., executable: Path = ..., stdin: File = ...,
    stderr: File = ..., preexec_fn: None = ..., close_fds: bool = ..., shell: bool = ...,
    cwd: Path = ..., env: Env = ..., universal_newlines: bool | None = ..., startupinfo: Any = ...,
    creationflags: int = ..., restore_signals: bool = ..., start_new_session: bool = ...,
    pass_fds: Collection[int] = ..., *, timeout: float | None = ...,
    input: ReadableBuffer | str | None = ..., text: bool | None = ..., encoding: str | None = ...,
    errors: str | None = ..., **more: Unpack[Keywords],
) -> Any: ...  # fmt: skip
def call(
    args: Command = ..., bufsize: int = ..., executable: Path = ..., stdin: File = ...,
    stdout: File = ..., stderr: File = ..., preexec_fn: None = ..., close_fds: bool = ...,
    shell: bool = ..., cwd: Path = ..., env: Env = ..., universal_newlines: bool | None = ...,
    startupinfo: Any = ..., creationflags: int = ..., restore_signals: bool = ...,
    start_new_session: bool = ..., pass_fds: Collection[int] = ..., *, timeout: float | None = ...,
    text: bool | None = ..., encoding: str | None = ..., errors: str | None = ...,
    **more: Unpack[Keywords],
) -> int: ...  # fmt: skip
def check_call(
    args: Command = ..., bufsize: int = ..., executable: Path = ..., stdin: File = ...,
    stdout: File = ..., stderr: File = ..., preexec_fn: None = ..., close_fds: bool = ...,
    shell: bool = ..., cwd: Path = ..., env: Env = ..., universal_newlines: bool | None = ...,
    startupinfo: Any = ..., creationflags: int = ..., restore_signals: bool = ...,
    start_new_session: bool = ..., pass_fds: Collection[int] = ..., *, timeout: float | None = ...,
    text: bool | None = ..., encoding: str | None = ..., errors: str | None = ...,
    **more: Unpack[Keywords],
) -> int: ...  # fmt: skip
