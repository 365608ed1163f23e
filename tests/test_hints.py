"""What an error says of its cause, where the kernel says one word for many."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

import clonekit
import clonekit.steps
from clonekit import DeclarationError, SpawnError


def hint(argv: list[Any], **declaration: Any) -> str:
    """What is said of a spawn that fails."""
    with pytest.raises(SpawnError) as caught:
        clonekit.spawn(argv, **declaration)
    return caught.value.hint


def executable(path: Path, content: bytes) -> str:
    """A file that may be executed."""
    path.write_bytes(content)
    path.chmod(0o755)
    return str(path)


def test_a_script_without_its_interpreter_is_said_to_be_there(tmp_path: Path) -> None:
    script = executable(tmp_path / "own_script", b"#! /nowhere/sh -e\n")
    told = f"{script} is there, but '/nowhere/sh', which is to interpret it, is not"
    assert hint([script]) == told
    assert hint(["other"], executable=script) == told
    assert hint(["own_script"], env={"PATH": f"/nowhere:{tmp_path}:/usr/bin"}) == told
    assert hint([executable(tmp_path / "of_script", b"#!%b\n" % script.encode())]) == told
    with pytest.raises(FileNotFoundError, match="/nowhere/sh"):
        clonekit.run([script])


def test_a_script_with_the_line_ends_of_others_is_told(tmp_path: Path) -> None:
    script = executable(tmp_path / "script", b"#!/bin/sh\r\necho\r\n")
    assert hint([script]).endswith(r"'/bin/sh\r', which is to interpret it, is not; "
                                   "its first line ends with CR LF")  # fmt: skip


def test_a_binary_without_its_loader_is_said_to_be_there(tmp_path: Path) -> None:
    content = Path(sys.executable).resolve().read_bytes()
    at = content.index(b"/ld-linux")
    program = executable(tmp_path / "program", content[:at] + b"/no-linux" + content[at + 9 :])
    assert hint([program]).startswith(f"{program} is there, but '/lib")
    assert "/no-linux" in hint([program])


def test_nothing_is_said_of_files_that_we_do_not_see_as_the_program(tmp_path: Path) -> None:
    executable(tmp_path / "script", b"#!/nowhere/sh\n")
    assert hint(["./script"], cwd=tmp_path) == ""
    assert hint(["/nowhere/to/be/found"]) == ""
    os.mkfifo(tmp_path / "fifo")
    assert hint(["script2"], env={"PATH": str(tmp_path)}) == ""


def test_what_is_too_long_is_told_with_its_size() -> None:
    assert hint(["true", "a" * 200_000]).startswith("a string of 200001 bytes is too long")
    assert hint(["true"], env={"A": "b" * 200_000}).startswith("a string of 200003 bytes")
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, hard))
    try:
        told = hint(["/bin/true", *["a" * 99_999] * 9], env={})
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))
    assert told.startswith(f"argv and env have {10 + 9 * 100_000 + 8 * 10} bytes")
    assert "a quarter of RLIMIT_STACK" in told


def test_a_process_group_that_cannot_be_is_explained() -> None:
    assert "no group of this session" in hint(["true"], pgid=1)
    with pytest.raises(PermissionError, match=r"setsid, start_new_session"):
        clonekit.run(["true"], start_new_session=True, process_group=0)
    with pytest.raises(PermissionError, match="setsid alone makes a group"):
        clonekit.Program([
            clonekit.steps.set_process_group(),
            clonekit.steps.new_session(),
            clonekit.steps.execute(["true"]),
        ]).spawn()  # fmt: skip


def test_processors_that_are_not_there_are_told_with_those_that_are() -> None:
    ours = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
    assert hint(["true"], affinity=[9999]).endswith(f"has none of these; we may use {ours}")


@pytest.mark.parametrize(
    ("field", "text", "number"),
    [("umask", "022", ", as 0o22"), ("nice", "5", ", as 5"), ("nice", "low", "")],
)
def test_text_for_a_number_is_told(field: str, text: str, number: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        clonekit.spawn(["true"], **{field: text})
    assert f"is '{text}', which is text; give a number{number}; write" in str(caught.value)
