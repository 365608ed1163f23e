"""`subprocess` as it is, over this library's spawn: `Popen`, `run` and their kin.

Arguments, pipes, text, `communicate` and exceptions are the standard library's own code. Here is
only how the child is made, waited for and signalled.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import types
from subprocess import (
    DEVNULL,
    PIPE,
    STDOUT,
    CalledProcessError,
    CompletedProcess,
    SubprocessError,
    TimeoutExpired,
)

from clonekit.completion import open_stdio
from clonekit.errors import DeclarationError, SpawnError
from clonekit.preexec import refusal
from clonekit.records import Slot
from clonekit.spec import FIELDS, OTHER_FIELDS, Spec
from clonekit.steps.credentials import KEEP
from clonekit.steps.descriptors import INHERIT, inherits
from clonekit.steps.execute import candidates

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from clonekit.process import Exit, Process

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "CalledProcessError",
    "CompletedProcess",
    "Popen",
    "SubprocessError",
    "TimeoutExpired",
    "call",
    "check_call",
    "check_output",
    "getoutput",
    "getstatusoutput",
    "run",
]
SHELL = "/bin/sh"
SLOTS = (Slot("stdin"), Slot("stdout"), Slot("stderr"))
NO_ID = (1 << 32) - 1
#: What a declaration says that is said by Popen's own parameters of the same name.
SAID_BY_BOTH = ("cwd", "env", "executable", "umask")
#: Each parameter, and the field of a declaration that it becomes: one of the two is to be given.
SAME = {
    "user": "uid",
    "group": "gid",
    "extra_groups": "groups",
    "start_new_session": "setsid",
    "process_group": "pgid",
    "restore_signals": "sigdefault",
}
OF_DECLARATION = frozenset({*FIELDS, *OTHER_FIELDS}) - {*SAID_BY_BOTH}
#: The standard library's own, for a child that it has made.
STOCK = dict(vars(subprocess.Popen))


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen` with this library's child: clone3, a pidfd, and no Python in between.

    All parameters, attributes and exceptions are those of `subprocess.Popen`, but `preexec_fn`,
    which is refused. Further keywords are a declaration's own names (`rlimits=`, `namespaces=`,
    `mounts=`...), or `spec=`: a `Spec`, whose argv serves where `args` is not given. What the child
    could not do is raised as the OSError that `subprocess` raises, which is a `SpawnError` too.

    The vector of descriptors is that of `close_fds`, `pass_fds` and the three streams; `fds=` adds
    to it. As in `subprocess`, `user=` leaves the supplementary groups as they are: give
    `extra_groups=[]` to give them up.

    Raises: DeclarationError, a ValueError, before any child is made.
    """

    _child: Process | None = None
    _declared: Mapping[str, Any] = types.MappingProxyType({})
    _signalling = 0

    def __init__(
        self, args: Any = None, *others: Any, spec: Spec | None = None, **keywords: Any
    ) -> None:
        declared = {name: keywords.pop(name) for name in OF_DECLARATION & keywords.keys()}
        if spec is not None:
            if not isinstance(spec, Spec):
                msg = f"spec is {spec!r}; give a clonekit.Spec"
                raise DeclarationError(msg)
            args = spec.argv if args is None else args
            declared = {**spec.fields, **declared}
        elif args is None:
            msg = "there is nothing to run; give args, or spec="
            raise TypeError(msg)
        if declared:
            self._declared = declared
        super().__init__(args, *others, **keywords)

    @property
    def pidfd(self) -> int:
        """Its pidfd: readable when it has ended. -1 once it has been reaped."""
        return -1 if self._child is None else self._child.pidfd

    @property
    def exit(self) -> Exit | None:
        """How it ended, with what it used: seconds, KiB; None until it has been reaped."""
        return None if self._child is None else self._child.exit

    def _execute_child(  # noqa: PLR0917 - the standard library's own seam
        self,
        args: Any,
        executable: Any,
        preexec_fn: Any,
        close_fds: Any,
        pass_fds: Any,
        cwd: Any,
        env: Any,
        _startupinfo: Any,
        _creationflags: Any,
        shell: Any,
        p2cread: int,
        p2cwrite: int,
        c2pread: int,
        c2pwrite: int,
        errread: int,
        errwrite: int,
        restore_signals: Any,
        gid: int | None,
        gids: Sequence[int] | None,
        uid: int | None,
        umask: int,
        start_new_session: Any,
        process_group: int,
    ) -> None:
        """Spawn it."""
        if preexec_fn is not None:
            raise refusal(preexec_fn)
        argv, program = command(args, executable, shell)
        sys.audit("subprocess.Popen", program, argv, cwd, env)
        asked = {
            "cwd": cwd,
            "umask": umask if umask >= 0 else None,
            "setsid": True if start_new_session else None,
            "pgid": process_group if process_group >= 0 else None,
            "gid": fitting(gid, "group"),
            "groups": gids,
            "uid": fitting(uid, "user"),
            "sigdefault": None if restore_signals else (),
        }
        fields = {name: value for name, value in asked.items() if value is not None}
        declared = self._declared
        if declared:
            refuse_twice(fields, declared)
            fields = {**declared, **fields}
        if uid is not None or gid is not None:
            fields.setdefault("groups", KEEP)
        ours = (p2cread, c2pwrite, errwrite)
        fields["fds"], slots = vector(declared.get("fds"), ours, pass_fds, close_fds=close_fds)
        if env is not None:
            fields["env"] = env
        if program is not argv[0]:
            fields["executable"] = searched(program, fields.get("env"))
        self._handle_lock = threading.RLock()
        try:
            process = Spec(argv, **fields).program().spawn(**slots)
        except SpawnError as error:
            if error.phase == "exec":
                error.filename = program
            elif (error.step or "").startswith("change_directory"):
                error.filename = cwd
            raise
        except DeclarationError:
            refuse_likewise(argv, env, (*slots.values(), *pass_fds))
            raise
        self._child = process
        self.pid = process.pid
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]

    def _ended(self, returncode: int) -> None:
        """Note how it has ended. The caller has the lock of those who wait."""
        self.returncode = returncode
        self._let_go()

    def _let_go(self) -> None:
        """Close the pidfd of a child that was reaped, unless it is just being signalled."""
        with self._handle_lock:
            if not self._signalling and self._child is not None:
                self._child.close()

    def _internal_poll(self, _deadstate: int | None = None, **stock: Any) -> int | None:
        """Look whether it has ended. Nobody waits here, nor for another who waits."""
        child = self._child
        if child is None or child.pidfd < 0:  # collected together, the handle may be the first
            return STOCK["_internal_poll"](self, _deadstate, **stock)  # type: ignore[no-any-return]
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):  # type: ignore[attr-defined]
            try:
                if self.returncode is None:
                    ended = child.poll()
                    if ended is not None:
                        self._ended(ended.returncode)
            except ChildProcessError:
                self._ended(0 if _deadstate is None else _deadstate)
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode

    def _wait(self, timeout: float | None) -> int | None:
        """Sleep until its pidfd says that it has ended, and reap it."""
        child = self._child
        if child is None:
            return STOCK["_wait"](self, timeout)  # type: ignore[no-any-return]
        if self.returncode is not None:
            return self.returncode
        until = None if timeout is None else time.monotonic() + timeout
        most = -1 if timeout is None else min(max(timeout, 0), threading.TIMEOUT_MAX)
        if not self._waitpid_lock.acquire(timeout=most):  # type: ignore[attr-defined]
            raise TimeoutExpired(self.args, timeout)  # type: ignore[arg-type]
        try:
            if self.returncode is None:
                left = None if until is None else until - time.monotonic()
                self._ended(child.wait(left).returncode)
        except ChildProcessError:
            self._ended(0)
        except TimeoutError:
            raise TimeoutExpired(self.args, timeout) from None  # type: ignore[arg-type]
        finally:
            self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode

    def send_signal(self, sig: int) -> None:
        """Send a signal to this child and never to another: pidfd_send_signal.

        One that has ended is left alone. See: pidfd_send_signal(2).
        """
        child = self._child
        if child is None:
            STOCK["send_signal"](self, sig)
            return
        if self.poll() is not None:
            return
        # Whoever reaps it meanwhile, a handler that interrupts this too, must not close the pidfd:
        # its number could be that of another child before it is used.
        with self._handle_lock:
            self._signalling += 1
            try:
                if child.pidfd >= 0:
                    child.send_signal(sig)
            except ProcessLookupError:
                pass
            finally:
                self._signalling -= 1
                if self.returncode is not None:
                    self._let_go()


def command(args: Any, executable: Any, shell: Any) -> tuple[list[Any], Any]:
    """The argument vector, and the name of the program that is to be begun."""
    if isinstance(args, str | bytes):
        argv: list[Any] = [args]
    elif isinstance(args, os.PathLike):
        if shell:
            msg = "path-like args is not allowed when shell is true"
            raise TypeError(msg)
        argv = [args]
    else:
        argv = list(args)
    if shell:
        argv = [executable or SHELL, "-c", *argv]
    return argv, argv[0] if executable is None else executable


def searched(program: Any, env: Any) -> Any:
    """A program that is not argv[0]: a path, or where PATH says that it may be."""
    if b"/" in os.fsencode(program):
        return program
    return tuple(candidates(program, env))


def vector(
    declared: Any, ours: Sequence[int], pass_fds: Sequence[int], *, close_fds: Any
) -> tuple[Any, dict[str, int]]:
    """The descriptors of the program, and the values of the slots among them."""
    fds: dict[Any, Any] = {}
    slots = {}
    if declared is not None:
        fds = {...: INHERIT} if declared == INHERIT else dict(declared)
    elif close_fds:
        fds = open_stdio()
    if not close_fds and not inherits(fds):
        fds[...] = INHERIT
    for number, fd in enumerate(ours):
        if fd == -1:
            continue
        slot = SLOTS[ours.index(fd)]
        fds[number] = slot
        slots[slot.name] = fd
    for fd in pass_fds:
        fds.setdefault(int(fd), int(fd))
    return fds, slots


def fitting(number: int | None, what: str) -> int | None:
    """An id that the kernel can be told."""
    if number is not None and number >= NO_ID:
        msg = f"{what} {number} is too large; an id is at most {NO_ID - 1}"
        raise OverflowError(msg)
    return number


def refuse_twice(fields: Mapping[str, Any], declared: Mapping[str, Any]) -> None:
    """What is said by a parameter is not said by a declaration too."""
    if declared.get("suspended"):
        msg = "a Popen runs when it is made; for a suspended program use clonekit.spawn"
        raise DeclarationError(msg)
    for name in fields:
        if declared.get(name) is not None:
            parameter = next((own for own, field in SAME.items() if field == name), name)
            msg = f"{parameter} says what the declaration's {name} says; give one of them"
            raise DeclarationError(msg)


def refuse_likewise(argv: Sequence[Any], env: Any, fds: Sequence[int]) -> None:
    """What `subprocess` raises for the same mistake, if it raises anything else than ValueError."""
    for text in (*argv, *(text for item in (env or {}).items() for text in item)):
        os.fsencode(text)
    for fd in fds:
        if fd >= 0:
            os.fstat(fd)


def over(function: Any) -> Any:
    """A function of `subprocess`, with `Popen` and its like meaning those that are here."""
    mine = types.FunctionType(
        function.__code__, OURS, function.__name__, function.__defaults__, function.__closure__
    )
    mine.__kwdefaults__ = function.__kwdefaults__
    mine.__doc__ = function.__doc__
    mine.__module__ = __name__
    return mine


#: What the functions of `subprocess` find by name.
OURS = {**vars(subprocess), "Popen": Popen}
call = OURS["call"] = over(subprocess.call)
check_call = OURS["check_call"] = over(subprocess.check_call)
run = OURS["run"] = over(subprocess.run)
check_output = OURS["check_output"] = over(subprocess.check_output)
getstatusoutput = OURS["getstatusoutput"] = over(subprocess.getstatusoutput)
getoutput = over(subprocess.getoutput)
