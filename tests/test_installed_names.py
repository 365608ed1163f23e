"""Under install() a program has its own names: what it sets on a Popen, or in a class of it."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

import clonekit
from clonekit.stock import StockPopen


def test_ours_are_shown_where_it_has_none() -> None:
    with clonekit.install():
        process: Any = subprocess.Popen(["true"])
        assert process.pidfd >= 0
        assert process.exit is None
        assert process.wait() == 0
        assert process.pidfd == -1
        assert process.exit.status == 0


def test_what_it_sets_is_its_own() -> None:
    with clonekit.install():
        process: Any = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        process.pidfd = os.pidfd_open(process.pid)
        process.exit = "soon"
        try:
            process.kill()
            assert process.wait() == -9
            assert process.exit == "soon"
        finally:
            os.close(process.pidfd)
            process.stdin.close()


def test_a_class_of_it_may_have_them_otherwise() -> None:
    class Own(subprocess.Popen[bytes]):
        exit = 7

        def __init__(self, *args: Any) -> None:
            self.pidfd = "none"
            super().__init__(*args)

    with clonekit.install():
        with Own(["true"]) as process:
            pass
        assert (process.returncode, process.pidfd, process.exit) == (0, "none", 7)


def test_a_class_of_either_may_use_any_name_that_stock_has_not() -> None:
    ours = vars(clonekit.Popen).keys() - vars(StockPopen).keys()
    assert {name for name in ours if not name.startswith(("_ck_", "__"))} == {"pidfd", "exit"}
    with clonekit.Popen(["true"]) as process, StockPopen(["true"]) as stock:
        more = vars(process).keys() - vars(stock).keys()
        assert all(name.startswith("_ck_") for name in more)


@pytest.mark.parametrize("base", [clonekit.Popen, subprocess.Popen])
def test_names_of_a_class_made_of_it_are_its_own(base: Any) -> None:
    class Own(base):  # type: ignore[misc]
        _child = _declared = _signalling = _handle_lock = _ended = _reap = _let_go = "own"

    with clonekit.install():
        with Own(["cat"], stdin=subprocess.PIPE) as process:
            process.send_signal(0)
        assert process.wait(5) == 0
        assert process._reap == "own"
