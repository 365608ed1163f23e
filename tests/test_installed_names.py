"""Under install() a program has its own names: what it sets on a Popen, or in a class of it."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import clonekit


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
