"""Programs whose calls a supervisor answers."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from filtered import START
from parent_snapshot import children, descriptors

from clonekit import Filter, Process, spawn
from clonekit.linux.abi import NUMBERS
from clonekit.notify import Listener, Request

#: What nobody calls by chance.
TOLD = ("mkdirat", "getpgid", "fchmod")


@pytest.fixture
def nothing_left() -> Iterator[None]:
    before = descriptors()
    yield
    after = descriptors()
    assert (after, children()) == (before, []), after.items() - before.items()


class Target:
    """A program under a filter that tells a listener of some calls."""

    def __init__(self, code: str, *, names: tuple[str, ...] = TOLD, **fields: Any) -> None:
        self.listener = Listener()
        self.reader, writer = os.pipe()
        made = Filter("ALLOW").notify(*names, to=self.listener)
        program = f"{START}\nnr = {NUMBERS!r}\n{code}"
        with open(writer, "wb") as end:
            self.process: Process = spawn(
                [sys.executable, "-c", program], fds={0: 0, 1: end, 2: 2},
                **{"no_new_privs": True, "seccomp": made, **fields},
            )  # fmt: skip

    def printed(self) -> list[str]:
        """Its lines, when it has ended."""
        with open(self.reader, closefd=False) as lines:
            return lines.read().splitlines()


@contextmanager
def target(code: str, **fields: Any) -> Iterator[Target]:
    made = Target(code, **fields)
    with made.process, made.listener:
        try:
            yield made
        finally:
            os.close(made.reader)


def served(code: str, handler: Callable[[Request], object], **fields: Any) -> list[str]:
    """What a program prints whose calls the handler answers."""
    with target(code, **fields) as made:
        made.listener.serve(handler)
        lines = made.printed()
        assert made.process.wait().status == 0
        return lines
