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

import pytest

from clonekit import SpawnError
from clonekit.linux.abi import NUMBERS
from clonekit.steps import write
from clonekit.steps.step import Step

PAGE = os.sysconf("SC_PAGE_SIZE")
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


@contextmanager
def bell() -> Iterator[tuple[int, Step]]:
    """A step by which a child rings, and waits until we have read a page; and where we read it."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PAGE)
    try:
        yield reader, write(writer, bytes(2 * PAGE))
    finally:
        os.close(reader)
        os.close(writer)


@contextmanager
def told_in_mid_order(work: Callable[[], object]) -> Iterator[Step]:
    """Do this in a handler, once, while a child is at this step, which ends after that."""
    here = threading.get_ident()

    def handler(*_: object) -> None:
        try:
            work()
        finally:
            os.read(reader, PAGE)

    def tell() -> None:
        if select.select([reader], [], [], LONG)[0]:
            signal.pthread_kill(here, signal.SIGALRM)

    with bell() as (reader, rings):
        before = signal.signal(signal.SIGALRM, handler)
        try:
            with beside(tell):
                yield rings
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
