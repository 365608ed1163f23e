"""Under programs whose source one does not own: their `subprocess` and `asyncio` spawn by us."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import threading
import warnings
from asyncio import unix_events

from clonekit.linux.block import Block
from clonekit.popen import Popen, discard
from clonekit.stock import STOCK, StockPopen
from clonekit.streamed import (
    create_subprocess_exec,
    create_subprocess_shell,
    subprocess_exec,
    subprocess_shell,
)
from clonekit.transport import transport_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: What of our Popen the stock class gets: its objects, and those of classes made of it, are ours.
METHODS = (
    "_ck_child", "_ck_declared", "_ck_ended", "_ck_let_go", "_ck_reap", "_ck_signalling",
    "_internal_poll", "_wait", "exit", "pidfd", "send_signal",
)  # fmt: skip
LOOP = unix_events._UnixSelectorEventLoop  # noqa: SLF001 - asyncio's own seam
ABSENT = object()


class Shown:
    """An attribute of ours, where a program that knows nothing of us sets none of that name."""

    def __init__(self, attribute: property) -> None:
        self._get: Any = attribute.fget

    def __get__(self, popen: object, kind: type | None = None) -> Any:
        return self if popen is None else self._get(popen)


class Installation(Block):
    """What `clonekit.install()` has put under `subprocess` and `asyncio`.

    As a context manager it is taken out at the block's end.

    Attributes:
        spawned: how many children this library has made. What has failed, or was cancelled before
            the program had it, is none.
        stock: how many the standard library's own code has made, for they had a `preexec_fn`.
    """

    def __init__(self) -> None:
        self.spawned = 0
        self.stock = 0
        self._counting = threading.RLock()  # a signal's handler may make children, too
        self._users = 0
        self._lock = threading.Lock()
        self._warned = False
        self._replaced: list[tuple[Any, str, Any]] = []

    def install(self) -> None:
        """Put it in, if it is not."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._put_in()

    def _put_in(self) -> None:
        for name in METHODS:
            value = vars(Popen)[name]
            self._replace(StockPopen, name, Shown(value) if type(value) is property else value)
        self._replace(StockPopen, "_execute_child", self._execute_child())
        name = _make_subprocess_transport.__name__
        self._replace(LOOP, name, self._either(_make_subprocess_transport, vars(LOOP)[name]))
        for ours in (create_subprocess_exec, create_subprocess_shell):
            name = ours.__name__
            create = self._either(ours, getattr(asyncio, name))
            self._replace(asyncio, name, create)
            self._replace(asyncio.subprocess, name, create)
        uvloop = sys.modules.get("uvloop")
        if uvloop is not None:
            self._put_into(uvloop.Loop)
        self._replace(asyncio.AbstractEventLoop, "__init_subclass__", classmethod(self._seen()))

    def _seen(self) -> Callable[..., None]:
        """What sees a loop's class being made: uvloop's, where that is imported after us."""

        def __init_subclass__(kind: Any, /, **keywords: Any) -> None:  # noqa: N807 - asyncio's has it
            super(asyncio.AbstractEventLoop, kind).__init_subclass__(**keywords)  # type: ignore[misc]
            if (kind.__module__, kind.__qualname__) == ("uvloop", "Loop"):
                self._put_into(kind)

        return __init_subclass__

    def _put_into(self, loop: type) -> None:
        """Have uvloop's loop make its children by us: it has code of its own for that."""
        for method in (subprocess_exec, subprocess_shell):
            stock = getattr(loop, method.__name__)
            self._replace(loop, method.__name__, self._of_uvloop(method, stock))

    def uninstall(self) -> None:
        """Take out what one `install()` has put in; what was spawned goes on."""
        with self._lock:
            self._users = max(self._users - 1, 0)
            while self._replaced and not self._users:
                where, name, before = self._replaced.pop()
                if before is not ABSENT:
                    setattr(where, name, before)
                elif name not in METHODS or not name.startswith("_"):  # a wait just now needs those
                    delattr(where, name)

    def _leave(self) -> None:
        self.uninstall()

    def _replace(self, where: Any, name: str, value: Any) -> None:
        """Put a value in place of one that is remembered."""
        self._replaced.append((where, name, vars(where).get(name, ABSENT)))
        setattr(where, name, value)

    def _is_ours(self, preexec_fn: object) -> bool:
        """Whether a child is spawned by us."""
        if preexec_fn is None:
            return True
        if not self._warned:
            self._warned = True
            msg = (
                "preexec_fn runs Python between fork and exec, and goes to the standard library's "
                "own code; see clonekit.Popen(preexec_fn=...) for what replaces it"
            )
            warnings.warn(msg, RuntimeWarning, stacklevel=4)
        return False

    def _count(self, *, ours: bool) -> None:
        """A child was made."""
        with self._counting:
            if ours:
                self.spawned += 1
            else:
                self.stock += 1

    def _execute_child(self) -> Callable[..., None]:
        """The seam of the stock class."""

        def _execute_child(
            popen: Any, args: Any, executable: Any, preexec_fn: Any, *others: Any
        ) -> None:
            ours = self._is_ours(preexec_fn)
            execute = vars(Popen)["_execute_child"] if ours else STOCK["_execute_child"]
            try:
                execute(popen, args, executable, preexec_fn, *others)
            except BaseException:
                if ours:
                    discard(popen)
                raise
            self._count(ours=ours)

        return _execute_child

    def _either(self, ours: Callable[..., Any], stock: Callable[..., Any]) -> Callable[..., Any]:
        """What makes a child for asyncio by us, unless that is left to its own code."""

        @functools.wraps(ours)
        async def make(*args: Any, **parameters: Any) -> Any:
            if is_left(parameters):
                return await stock(*args, **parameters)
            child = await ours(*args, **parameters)
            self._count(ours=True)
            return child

        return make

    def _of_uvloop(self, ours: Callable[..., Any], stock: Callable[..., Any]) -> Callable[..., Any]:
        """`subprocess_exec` and `_shell` of a loop that makes children by itself."""

        @functools.wraps(ours)
        async def make(*args: Any, **parameters: Any) -> Any:
            is_ours = self._is_ours(parameters.get("preexec_fn"))
            child = await (ours if is_ours else stock)(*args, **parameters)
            self._count(ours=is_ours)
            return child

        return make

    def __repr__(self) -> str:
        state = "installed" if self._users else "not installed"
        return f"<Installation: {state}, {self.spawned} spawned, {self.stock} left to stock>"


async def _make_subprocess_transport(  # noqa: PLR0917 - the seam of asyncio's own loop
    loop: Any,
    protocol: Any,
    args: Any,
    shell: Any,
    stdin: Any,
    stdout: Any,
    stderr: Any,
    bufsize: Any,  # noqa: ARG001 - asyncio's is always 0
    extra: Any = None,
    **parameters: Any,
) -> Any:
    """What a loop of asyncio's makes a child by."""
    return await transport_of(
        loop, protocol, args, shell=shell, stdin=stdin, stdout=stdout, stderr=stderr, extra=extra,
        **parameters,
    )  # fmt: skip


def is_left(parameters: dict[str, Any]) -> bool:
    """Whether asyncio's own code makes a child: with a `preexec_fn`, or by a Popen of others."""
    return parameters.get("preexec_fn") is not None or subprocess.Popen is not StockPopen


_installation = Installation()


def install() -> Installation:
    """Have `subprocess` and `asyncio` spawn by this library, in the whole process.

    Methods of the class `subprocess.Popen` are replaced, so that those who imported it earlier, or
    have made classes of it, have them too; and asyncio's `create_subprocess_exec` and `_shell`, and
    what its own loop makes subprocesses by, and uvloop's, whenever that is imported. A child with a
    `preexec_fn` goes to the stock code, with a RuntimeWarning for the first.

    The result counts, and takes it out again: `uninstall()`, or the end of its `with` block. Each
    `install()` wants one of these.
    """
    _installation.install()
    return _installation
