"""From what the machine reported to an error that names the step, and the likely cause."""

from __future__ import annotations

import errno
import signal

from clonekit.errors import DeclarationError, SpawnError, spawn_error
from clonekit.explain import clone_text, one
from clonekit.hints import clone_hint, hint_for
from clonekit.linux.abi import lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from clonekit.compiled import Compiled


def failure(program: Compiled, outcome: Any, cause: OSError | None = None) -> Exception:
    """The error for an outcome that is not success; `cause` is what the parent has failed with."""
    if outcome.stage == lib.CK_NOT_OPEN:
        return DeclarationError(
            f"descriptor {outcome.record} is not open here; leave it out, or open it first"
        )
    count = len(program.steps)
    if outcome.stage in (lib.CK_NO_MEMORY, lib.CK_NO_CLONE):
        number = -outcome.result
        if outcome.stage == lib.CK_NO_MEMORY:
            return spawn_error(number, step_count=count, syscall="mmap")
        call = clone_text(program)
        return spawn_error(
            number, syscall=call.partition("(")[0], arguments=call, step_count=count,
            hint=clone_hint(number, program.setup.clone_flags),
        )  # fmt: skip
    entry = one(program, outcome.record)
    details = details_of(program, entry)
    if outcome.stage == lib.CK_KILLED:
        return killed(outcome.result, details)
    result = outcome.result
    number = -result if result < 0 else errno.EIO
    message = None if result < 0 else f"the call returned {result}, which is not what was expected"
    if cause is not None and "syscall" not in entry:
        error = spawn_error(number, cause.strerror or str(cause), **details)
        error.__cause__ = cause
        return error
    hint = hint_for(number, entry, program)
    return spawn_error(number, message, **details, hint=hint)


def details_of(program: Compiled, entry: dict[str, Any]) -> dict[str, Any]:
    """What an error says of the record that it is about."""
    ours = int(program.setup.manner.exists)  # an order's first step, by which it is given things
    return {
        "step": entry["step"], "step_number": entry["step_number"] - ours,
        "step_count": len(program.steps) - ours, "phase": entry["phase"],
        "syscall": entry.get("syscall", ""), "arguments": entry["text"],
    }  # fmt: skip


def late(program: Compiled, outcome: Any, deadline: float) -> SpawnError:
    """The error for a child that was killed because its deadline had passed."""
    details = details_of(program, one(program, outcome.record))
    message = f"it was not done within {deadline} s, and the child was killed"
    return spawn_error(errno.ETIMEDOUT, message, **details)


def died(pid: int, outcome: Any) -> SpawnError:
    """The error for a child that has died between two orders."""
    number = outcome.result
    how = f"was killed by signal {number}" if number else "has ended"
    message = f"it {how} while it waited for an order"
    hint = ""
    if number == signal.SIGKILL:
        hint = "it ends with the thread that made it: has that ended?"
    return spawn_error(
        errno.ECHILD, message, step=f"child {pid}", phase="waiting", arguments="futex(FUTEX_WAIT)",
        signal=number or None, hint=hint,
    )  # fmt: skip


def killed(number: int, details: dict[str, Any]) -> SpawnError:
    """The error for a child that a signal ended before its exec."""
    hint = ""
    if number == 31:  # noqa: PLR2004 - SIGSYS, on both architectures
        hint = f"the seccomp filter does not allow {details['syscall']}, which follows it"
    message = f"the child was killed by signal {number} before its exec"
    if not number:
        message = "the child ended before its exec; as SIGCHLD is ignored, how is not known"
    return spawn_error(errno.ECHILD, message, **details, signal=number, hint=hint)
