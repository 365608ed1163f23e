"""`subprocess` as it is, over this library's spawn: `Popen`, `run` and their kin.

Arguments, pipes, text, `communicate` and exceptions are the standard library's own code. Here is
only how the child is made, waited for and signalled.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
import types
from _thread import RLock
from subprocess import (
    DEVNULL,
    PIPE,
    STDOUT,
    CalledProcessError,
    CompletedProcess,
    SubprocessError,
    TimeoutExpired,
)

from clonekit.errors import DeclarationError, SpawnError
from clonekit.parameters import (
    asked,
    command,
    compiled,
    refuse_both,
    searched,
    streams_of,
    unknown_parameter,
)
from clonekit.preexec import refusal
from clonekit.spec import FIELDS, OTHER_FIELDS, Spec
from clonekit.stock import PARAMETERS, STOCK, StockPopen

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
#: What a declaration says that is said by Popen's own parameters of the same name.
SAID_BY_BOTH = ("cwd", "env", "executable", "umask")
#: What a Popen has no keyword for, as it would be taken for something else.
NOT_SAID = ("check", "suspended")
OF_DECLARATION = frozenset({*FIELDS, *OTHER_FIELDS}) - {*SAID_BY_BOTH, *NOT_SAID}


class Told:
    """What `inspect.signature` is told: what `subprocess.Popen` takes, and the fields.

    Made when it is asked for, so that nobody else imports `inspect`.
    """

    def __get__(self, popen: object, kind: type) -> Any:
        own = kind.__init__ is not Popen.__init__  # type: ignore[misc]
        if popen is not None or own or not PARAMETERS:
            raise AttributeError  # it takes what that `__init__` says
        from inspect import Parameter, signature

        stock = signature(StockPopen)
        args, *others = stock.parameters.values()
        more = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=None)
            for name in ("spec", *sorted(OF_DECLARATION))
        ]
        return stock.replace(parameters=[args.replace(default=None), *others, *more])


class Popen(StockPopen):  # type: ignore[type-arg]
    """`subprocess.Popen` with this library's child: clone3, a pidfd, and no Python in between.

    All parameters, attributes and exceptions are those of `subprocess.Popen`, but `preexec_fn`,
    which is refused. Further keywords are a declaration's own names (`rlimits=`, `namespaces=`,
    `mounts=`..., all in docs/reference.md), or `spec=`: a `Spec`, whose argv serves where `args` is
    not given. A field is said once. What the child could not do is raised as the OSError that
    `subprocess` raises, which is a `SpawnError` too.

    The vector of descriptors is that of `close_fds`, `pass_fds` and the three streams. A declared
    `fds=` is the whole of it, over which these are laid. As in `subprocess`, `user=` leaves the
    supplementary groups as they are: give `extra_groups=[]` to give them up. Without `env=` the
    program has `os.environ`, not what C code has put beside that.

    Raises: DeclarationError, a ValueError, before any child is made.
    """

    __signature__ = Told()
    _ck_child: Process | None = None
    _ck_declared: Mapping[str, Any] = types.MappingProxyType({})
    _ck_signalling = 0

    def __init__(
        self, args: Any = None, *others: Any, spec: Spec | None = None, **keywords: Any
    ) -> None:
        declared: dict[str, Any] = {}
        if not keywords.keys() <= PARAMETERS:
            declared = {name: keywords.pop(name) for name in OF_DECLARATION & keywords.keys()}
            for name in keywords.keys() - (PARAMETERS or keywords.keys()):
                raise unknown_parameter(name, PARAMETERS | OF_DECLARATION)
        if spec is not None:
            if not isinstance(spec, Spec):
                msg = f"spec is {spec!r}; give a clonekit.Spec"
                raise DeclarationError(msg)
            args = spec.argv if args is None else args
            refuse_both(declared, spec.fields)
            declared = {**spec.fields, **declared}
        elif args is None or isinstance(args, Spec):
            msg = "give args, or a declaration as spec="
            raise TypeError(msg)
        if declared:
            self._ck_declared = declared
        try:
            super().__init__(args, *others, **keywords)
        except BaseException:
            discard(self)
            raise

    @property
    def pidfd(self) -> int:
        """Its pidfd: readable when it has ended. -1 once it has been reaped."""
        return -1 if self._ck_child is None else self._ck_child.pidfd

    @property
    def exit(self) -> Exit | None:
        """How it ended, with what it used: seconds, KiB; None until it has been reaped."""
        return None if self._ck_child is None else self._ck_child.exit

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
        argv, name = command(args, executable, shell)
        sys.audit("subprocess.Popen", name, argv, cwd, env)
        path = None if name is argv[0] and name else searched(name, env)
        values = asked(
            cwd, restore_signals, gid, gids, uid, umask, start_new_session, process_group
        )  # fmt: skip
        streams, slots = streams_of((p2cread, c2pwrite, errwrite), pass_fds, close_fds)
        self._ck_handle_lock = RLock()
        try:
            program = compiled(values, streams, self._ck_declared, argv, path, env)
            child = self._ck_child = program.handle()
            program.begin(child, slots)
        except SpawnError as error:
            if error.phase == "exec":
                error.filename = name
            elif (error.step or "").startswith("change_directory"):
                error.filename = cwd
            raise
        except DeclarationError:
            passed = [fd for fd in pass_fds if fd >= 0]
            refuse_likewise(argv, env, cwd, [*slots.values(), *passed])
            raise
        self.pid = child.pid
        self._child_created = True
        if slots:
            close_theirs(self, (p2cread, p2cwrite), (c2pwrite, c2pread), (errwrite, errread))

    def _ck_ended(self, returncode: int) -> None:
        """Note how it has ended. The caller has the lock of those who wait."""
        self.returncode = returncode
        self._ck_let_go()

    def _ck_let_go(self) -> None:
        """Close the pidfd of a child that was reaped, unless it is just being signalled."""
        with self._ck_handle_lock:
            if not self._ck_signalling and self._ck_child is not None:
                self._ck_child.close()

    def _internal_poll(self, _deadstate: int | None = None, **stock: Any) -> int | None:
        """Look whether it has ended. Nobody waits here, nor for another who waits."""
        if self.returncode is not None:
            return self.returncode
        child = self._ck_child
        if child is None or child.pidfd < 0 or not child.is_own():
            # Its handle went first, as garbage; or this is a copy of us, whose child it is not.
            return STOCK["_internal_poll"](self, _deadstate, **stock)  # type: ignore[no-any-return]
        if self._waitpid_lock.acquire(blocking=False):  # type: ignore[attr-defined]
            try:
                if self.returncode is None:
                    ended = child.poll()
                    if ended is not None:
                        self._ck_ended(ended.returncode)
            except ChildProcessError:
                self._ck_ended(0 if _deadstate is None else _deadstate)
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode

    def _wait(self, timeout: float | None) -> int | None:
        """Sleep until its pidfd says that it has ended, and reap it."""
        if self.returncode is not None:
            return self.returncode
        child = self._ck_child
        if child is None or child.pidfd < 0 or not child.is_own():
            return STOCK["_wait"](self, timeout)  # type: ignore[no-any-return]
        lock: threading.Lock = self._waitpid_lock  # type: ignore[attr-defined]
        if timeout is None:
            with lock:
                self._ck_reap(child, None)
            return self.returncode
        until = time.monotonic() + timeout
        if not lock.acquire(timeout=min(max(timeout, 0), threading.TIMEOUT_MAX)):
            raise TimeoutExpired(self.args, timeout)
        try:
            self._ck_reap(child, until - time.monotonic())
        except TimeoutError:
            raise TimeoutExpired(self.args, timeout) from None
        finally:
            lock.release()
        return self.returncode

    def _ck_reap(self, child: Process, timeout: float | None) -> None:
        """Wait for its end. The caller has the lock of those who wait."""
        if self.returncode is not None:
            return
        try:
            self._ck_ended(child.wait(timeout).returncode)
        except ChildProcessError:
            self._ck_ended(0)

    def send_signal(self, sig: int) -> None:
        """Send a signal to this child and never to another: pidfd_send_signal.

        One that has ended is left alone. See: pidfd_send_signal(2).
        """
        child = self._ck_child
        if child is None:
            STOCK["send_signal"](self, sig)
            return
        if self.poll() is not None:
            return
        # Whoever reaps it meanwhile, a handler that interrupts this too, must not close the pidfd:
        # its number could be that of another child before it is used.
        with self._ck_handle_lock:
            self._ck_signalling += 1
            try:
                if child.pidfd >= 0:
                    child.send_signal(sig)
            except ProcessLookupError:
                pass
            finally:
                self._ck_signalling -= 1
                if self.returncode is not None:
                    self._ck_let_go()


def close_theirs(popen: Any, *ends: tuple[int, int]) -> None:
    """Close the child's ends of the pipes, as its `_close_pipe_fds` would, in half of the time."""
    devnull = getattr(popen, "_devnull", None)
    fds = [theirs for theirs, ours in ends if ours != -1]
    closing = map(os.close, fds if devnull is None else (*fds, devnull))
    try:
        list(closing)  # a handler of a signal that raises something runs before this or after it
    finally:
        popen._closed_child_pipe_fds = True  # noqa: SLF001 - what looks at it is the standard library


def discard(popen: Any) -> None:
    """End the child of one that is not to be had: whoever makes it was interrupted."""
    if popen._child_created:  # noqa: SLF001 - as above
        popen._child_created = False  # noqa: SLF001 - nobody is warned of it
        popen._ck_child.__exit__(None, None, None)  # noqa: SLF001 - our own
        for file in (popen.stdin, popen.stdout, popen.stderr):
            if file is not None:
                file.close()


def refuse_likewise(argv: Sequence[Any], env: Any, cwd: Any, fds: Sequence[int]) -> None:
    """What `subprocess` raises for the same mistake, if it raises anything else than ValueError."""
    for text in (*argv, *(text for item in (env or {}).items() for text in item)):
        os.fsencode(text)
    if cwd is not None and not os.fspath(cwd):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), cwd)
    for fd in fds:
        os.fstat(fd)


def over(function: Any) -> Any:
    """A function of `subprocess`, with `Popen` and its like meaning those that are here."""
    mine = types.FunctionType(
        function.__code__, OURS, function.__name__, function.__defaults__, function.__closure__
    )
    mine.__kwdefaults__ = function.__kwdefaults__
    told = (function.__doc__ or "").rstrip()
    mine.__doc__ = f"{told}\n\n    Children are made by clonekit.Popen, whose keywords it takes."
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
