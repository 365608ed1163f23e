"""What can go wrong: a declaration that cannot be, or a step that failed."""

from __future__ import annotations

import builtins
import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def errno_name(number: int) -> str:
    """The name of an errno, as `EPERM` for 1."""
    return errno.errorcode.get(number, f"errno {number}")


class DeclarationError(ValueError):
    """The declaration is refused before anything was made. The message says what to write."""


class SpawnError(OSError):
    """A spawn failed; nothing of it is left.

    It is also an instance of its errno's own class (`FileNotFoundError`, `PermissionError`...).

    Attributes:
        errno, strerror: as on every `OSError`.
        step: the step that failed, as `explain` shows it, or None if no step was reached.
        step_number, step_count: its place, from 1.
        phase: the phase it belongs to (`clone` if the child could not be made).
        syscall: the name of the system call that failed.
        arguments: that call with its arguments, readable.
        signal: the number of the signal that killed the child before its exec, or None.
        hint: the likely cause and what to do, or an empty string.
    """

    step: str | None = None
    step_number: int = 0
    step_count: int = 0
    phase: str = "clone"
    syscall: str = ""
    arguments: str = ""
    signal: int | None = None
    hint: str = ""

    def __str__(self) -> str:
        """`set_rlimit(nofile, 9): EPERM (step 5 of 12, phase limits); prlimit64(...); hint`."""
        reason = f"killed by signal {self.signal}" if self.signal else errno_name(self.errno or 0)
        where = f"phase {self.phase}"
        if self.step_number:
            where = f"step {self.step_number} of {self.step_count}, {where}"
        text = f"{self.step or self.syscall}: {reason} ({where})"
        if self.arguments:
            text += f": {self.arguments}: {self.strerror}"
        return f"{text}; {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[Any, ...]:
        return made_again, (self.errno, self.strerror, self.filename, vars(self))


_classes: dict[type[OSError], type[SpawnError]] = {OSError: SpawnError}


def spawn_error(number: int, message: str | None = None, **details: object) -> SpawnError:
    """A SpawnError that is also of the errno's built-in class."""
    plain = type(OSError(number, ""))
    if plain not in _classes:
        name = plain.__name__
        _classes[plain] = type(
            "SpawnError", (SpawnError, getattr(builtins, name)), {"__module__": __name__}
        )
    error = _classes[plain](number, message or os.strerror(number))
    for key, value in details.items():
        setattr(error, key, value)
    return error


def made_again(
    number: int, message: str, filename: object, details: dict[str, object]
) -> SpawnError:
    """The same error in another process: of two classes that are both called SpawnError."""
    error = spawn_error(number, message, **details)
    error.filename = filename
    return error
