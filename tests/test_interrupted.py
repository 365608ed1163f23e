"""An interrupt while a child is made: there is no child then, and nothing of it."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from parent_snapshot import children, descriptors

import clonekit
from clonekit import Popen, Slot, Spec, spawn

HOME = str(Path(clonekit.__file__).parent)
SLEEPS = ["sleep", "1000"]
#: Its arguments beside the signal are those of a tracing function.
set_interrupt = ctypes.pythonapi.PyErr_SetInterruptEx
set_interrupt.argtypes = [ctypes.c_int, ctypes.py_object, ctypes.py_object, ctypes.py_object]
set_interrupt.restype = None
interrupt = partial(set_interrupt, signal.SIGUSR1)


class Interrupted(BaseException):
    """What the handler raises."""


def handler(_: int, frame: FrameType | None) -> None:
    """Raise, once, in what makes the child: what has come back from there is its caller's."""
    sys.settrace(None)
    if frame is not None and frame.f_code.co_filename != __file__:
        raise Interrupted


@contextmanager
def handled(number: int) -> Iterator[None]:
    """A signal that interrupts Python."""
    before = signal.signal(number, handler)
    gc.freeze()  # what the other tests have left need not be looked through each time
    try:
        yield
    finally:
        signal.signal(number, before)
        gc.unfreeze()


def interrupted_at(instruction: int, make: Callable[[], Any]) -> tuple[bool, Any]:
    """Make this; a signal comes just before an instruction of the library, by its number.

    Python looks for signals where it will, at this instruction or later. So nothing is raised where
    it does not look, as it would be by a tracing function. Whether there was such an instruction;
    and what was made.
    """
    left = count(instruction, -1)
    came = False
    made = None

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal came
        if not frame.f_code.co_filename.startswith(HOME) or frame.f_code.co_name == "__del__":
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode" and next(left) == 0:
            came = True
            return interrupt  # for the next one of this frame
        return trace

    try:
        sys.settrace(trace)
        made = make()
        sys.settrace(None)
    except Interrupted:
        pass
    return came, made


def end(made: Any) -> None:
    """End what was made."""
    if isinstance(made, subprocess.Popen):
        made.kill()
        made.communicate()
    elif made is not None and not isinstance(made, subprocess.CompletedProcess):
        made.__exit__(None, None, None)


def end_known() -> None:
    """End those that `subprocess` knows, whose Popen was complete but nobody's yet."""
    for popen in subprocess._active[:]:  # type: ignore[attr-defined]
        popen.kill()
        popen.wait()
    subprocess._cleanup()  # type: ignore[attr-defined]


PROGRAM = Spec(SLEEPS, fds={0: Slot("stdin")}).program()
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
WAYS: dict[str, Callable[[], Any]] = {
    "spawn": lambda: spawn(SLEEPS),
    "a deadline": lambda: spawn(SLEEPS, deadline=60),
    "suspended": lambda: spawn(SLEEPS, suspended=True),
    "resumed": lambda: spawn(SLEEPS, suspended=True).resume(),
    "Spec.spawn": lambda: Spec(SLEEPS, fds={0: Slot("stdin")}).spawn(stdin=0),
    "Program.spawn": lambda: PROGRAM.spawn(stdin=0),
    "Program.trace": lambda: PROGRAM.trace(stdin=0)[0],
    "enter": lambda: clonekit.enter(os.getpid(), SLEEPS),
    "Popen": lambda: Popen(SLEEPS),
    "Popen with pipes": lambda: Popen(SLEEPS, **PIPES),
    "Popen with a deadline": lambda: Popen(SLEEPS, deadline=60, **PIPES),
    "run": lambda: clonekit.run(["true"], capture_output=True, check=True),
}


#: Those that are long, of which one instruction in so many is interrupted.
STRIDES = {"suspended": 25, "resumed": 25, "Popen with a deadline": 5, "enter": 5}
#: Those in which a descriptor can be lost, as one is between Python's call and its assignment.
MAY_LOSE = ("a deadline", "suspended", "resumed", "enter", "Popen with a deadline")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # as an error it hides a Popen for good
def test_an_interrupt_at_any_instruction_of_the_making_leaves_no_child(way: str) -> None:
    make = WAYS[way]
    end(make())
    before = descriptors()
    with handled(signal.SIGUSR1):
        for instruction in count(0, STRIDES.get(way, 1)):
            came, made = interrupted_at(instruction, make)
            end(made)
            gc.collect()
            end_known()
            assert (children(), instruction) == ([], instruction)
            if way in MAY_LOSE:
                for lost in descriptors().keys() - before.keys():
                    os.close(lost)
            assert (descriptors(), instruction) == (before, instruction)
            if not came:
                break
    assert instruction > 100
