"""Uses of `subprocess`, to be checked with the types of either, and never run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, assert_type

import clonekit as subprocess
from clonekit import (
    DEVNULL,
    PIPE,
    STDOUT,
    CalledProcessError,
    CompletedProcess,
    Popen,
    TimeoutExpired,
    check_output,
    getoutput,
    getstatusoutput,
    run,
)


def picked_by_text(flag: bool) -> None:
    assert_type(run(["ls"]), CompletedProcess[bytes])
    assert_type(run("ls", shell=True, text=False), CompletedProcess[bytes])
    assert_type(run(["ls"], text=True, input="a"), CompletedProcess[str])
    assert_type(run(["ls"], encoding="utf-8", stdout=PIPE), CompletedProcess[str])
    assert_type(run(["ls"], errors="replace", check=True), CompletedProcess[str])
    assert_type(run(["ls"], universal_newlines=True), CompletedProcess[str])
    assert_type(run(["ls"], text=flag, timeout=1.5), CompletedProcess[Any])
    assert_type(check_output([b"ls", Path()], stderr=STDOUT), bytes)
    assert_type(check_output(Path("ls"), text=True), str)
    assert_type(check_output("ls", encoding="utf-8", input="a"), str)
    assert_type(check_output("ls", universal_newlines=True), str)
    assert_type(check_output("ls", errors="strict"), str)
    assert_type(Popen(["ls"]), Popen[bytes])
    assert_type(Popen(["ls"], 0, None, PIPE, PIPE, DEVNULL, None, True, False, "/"), Popen[bytes])
    assert_type(Popen(["ls"], text=True), Popen[str])
    assert_type(Popen(["ls"], encoding="utf-8"), Popen[str])
    assert_type(Popen(["ls"], errors="strict"), Popen[str])
    assert_type(Popen(["ls"], universal_newlines=True), Popen[str])
    assert_type(Popen(["ls"], text=flag), Popen[Any])
    assert_type(getoutput("ls"), str)
    assert_type(getstatusoutput("ls", encoding="utf-8"), tuple[int, str])
    assert_type(subprocess.call(["ls"], env=os.environ, umask=0o22), int)
    assert_type(subprocess.check_call(["ls"], env=os.environb, pass_fds=[3]), int)


def piped(process: subprocess.Popen[str], own: Own) -> int:
    assert_type(process.communicate("in", timeout=2), tuple[str, str])
    assert_type(process.pid, int)
    with process as same:
        assert_type(same, Popen[str])
    assert_type(own.communicate(), tuple[bytes, bytes])
    try:
        run(["ls"], user="nobody", extra_groups=["audio", 5], process_group=0)
    except (CalledProcessError, TimeoutExpired) as error:
        assert_type(error.timeout if isinstance(error, TimeoutExpired) else 0.0, float)
    return process.wait()


class Own(Popen[bytes]):
    def kill(self) -> None:
        self.terminate()


def refused() -> None:
    run(["ls"], universal_newline=True)  # type: ignore[call-overload]
    run([1])  # type: ignore[list-item]
    text: str = check_output(["ls"])  # type: ignore[assignment]
    Popen(["ls"], stdin="file")  # type: ignore[call-overload]
    print(text)
