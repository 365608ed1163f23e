"""A Popen that nobody holds any more: its child is reaped all the same, and nobody is disturbed."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest
from parent_snapshot import unchanged

import clonekit


def test_one_in_a_cycle_of_garbage_is_reaped_after_its_end() -> None:
    with unchanged():
        reader, writer = os.pipe()
        process = clonekit.Popen(["cat"], stdin=reader, stdout=subprocess.DEVNULL)
        os.close(reader)
        pid = process.pid
        process.itself = process  # type: ignore[attr-defined]
        del process
        with pytest.warns(ResourceWarning, match="still running"):
            gc.collect()
        assert clonekit.call(["true"]) == 0
        os.close(writer)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert clonekit.call(["true"]) == 0
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def test_one_whose_end_is_forgotten_has_ended() -> None:
    process = clonekit.Popen(["false"])
    assert process.wait() == 1
    process.returncode = None  # type: ignore[assignment]
    process.kill()
    assert process.returncode is not None


LEFT_AT_THE_END = """
import builtins, os, sys
import clonekit

process = clonekit.Popen(["true"])
if sys.argv[1] == "stolen":
    os.waitpid(process.pid, 0)
builtins.process = process              # goes when modules have gone
del process
"""


@pytest.mark.parametrize("how", ["left", "stolen"])
def test_the_end_of_python_says_nothing_of_one_that_is_left(how: str) -> None:
    told = subprocess.run(
        [sys.executable, "-c", LEFT_AT_THE_END, how], capture_output=True, text=True, check=True
    )
    assert (told.stdout, told.stderr) == ("", "")
