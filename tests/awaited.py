"""Waiting for what has happened, and not for a time by which it should have."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest

from clonekit import Fd, SpawnError
from clonekit.linux.abi import NUMBERS
from clonekit.steps import system_call, write
from clonekit.steps.step import Step

RUNG = [1, 0]
LONG = 60  # seconds after which what should have happened is said not to have
_first = threading.Thread(target=int)  # with it the C library takes a signal: a snapshot would see
_first.start()


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """Do this in another thread, which has ended for the kernel too at the block's end."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        while os.path.exists(f"/proc/self/task/{thread.native_id}"):
            os.sched_yield()


def until_in(call: str, thread: int) -> None:
    """Wait until a thread of ours, by its number in the kernel, is in this system call."""
    path, number = Path(f"/proc/self/task/{thread}/syscall"), str(NUMBERS[call])
    end = time.monotonic() + LONG
    while path.read_text().split()[0] != number:
        assert time.monotonic() < end, f"not in {call}, but {path.read_text()}"
        time.sleep(0.001)


@contextmanager
def interrupted_in(call: str, number: signal.Signals = signal.SIGINT) -> Iterator[None]:
    """Have this thread get a signal in the block, when it is in this system call."""
    here, kernels = threading.get_ident(), threading.get_native_id()

    def interrupt() -> None:
        until_in(call, kernels)
        signal.pthread_kill(here, number)

    with beside(interrupt):
        yield


class Bell:
    """Steps by which a child rings, and then waits until it is let go.

    Attributes:
        steps: their results are those of `RUNG`.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC)
        self._ours = os.memfd_create("bell")
        self._theirs = os.open(f"/proc/self/fd/{self._ours}", os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(self._ours, fcntl.LOCK_EX)
        waits = system_call("flock", Fd(self._theirs), fcntl.LOCK_EX)
        self.steps = write(self._writer, b"."), waits

    def heard(self) -> bool:
        """Wait for the child to ring: whether it has."""
        return bool(select.select([self._reader], [], [], LONG)[0])

    def let_go(self) -> None:
        """Have the child go on."""
        fcntl.flock(self._ours, fcntl.LOCK_UN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (self._reader, self._writer, self._ours, self._theirs):
            os.close(fd)


@contextmanager
def told_in_mid_order(work: Callable[[], object]) -> Iterator[tuple[Step, Step]]:
    """Do this in a handler, once, while a child is at these steps, which end after that."""
    here = threading.get_ident()

    def handler(*_: object) -> None:
        try:
            work()
        finally:
            bell.let_go()

    def tell() -> None:
        if bell.heard():
            signal.pthread_kill(here, signal.SIGALRM)

    with Bell() as bell:
        before = signal.signal(signal.SIGALRM, handler)
        try:
            with beside(tell):
                yield bell.steps
        finally:
            signal.signal(signal.SIGALRM, before)


def late_at(step: str, attempt: Callable[[float], object]) -> SpawnError:
    """The error of an attempt that is given a deadline, and stands still at this step.

    What was late before it came there, on a slow machine, is given longer.
    """
    numbers: list[int] = []
    for deadline in (0.05, 0.5, 5.0, 50.0):
        with pytest.raises(TimeoutError, match="the child was killed") as caught:
            attempt(deadline)
        error = caught.value
        assert isinstance(error, SpawnError)
        numbers.append(error.step_number)
        if error.step.startswith(step):
            assert max(numbers) == numbers[-1]
            return error
    pytest.fail(f"late at {error.step}, and not at {step}")
