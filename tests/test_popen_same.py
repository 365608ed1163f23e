"""What `subprocess.Popen` gives its child, and what it raises, so does ours: asked of both."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import clonekit

ROOT = os.geteuid() == 0
#: What readline puts beside `os.environ`, into that of C, which ours does not look at.
OF_C = ("COLUMNS", "LINES")
#: What a file's name belongs to.
OF_FILES = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENOEXEC)
#: The program: it tells all that its parameters could have changed.
PROBE = """
import json, os, sys
mask = os.umask(0)
fds = {}
for name in os.listdir("/proc/self/fd"):
    try:
        fds[name] = os.readlink("/proc/self/fd/" + name).split(":")[0]
    except OSError:
        pass
lines = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines())
told = {
    "argv": sys.argv[1:], "cwd": os.getcwd(), "umask": mask, "fds": fds,
    "ids": (os.getresuid(), os.getresgid(), os.getgroups()), "environ": dict(os.environ),

    "session": os.getsid(0) == os.getpid(), "group": os.getpgid(0) == os.getpid(),
    "signals": [int(lines[name], 16) & ~INTERNAL for name in ("SigBlk", "SigIgn", "SigCgt")],
    "stdin": sys.stdin.read() if sys.stdin else None,
}
print(json.dumps(told, sort_keys=True), flush=True)
print("to stderr", file=sys.stderr)
"""
#: The C library's own signals, which its posix_spawn leaves ignored.
INTERNAL = 1 << 31 | 1 << 32
PYTHON = [sys.executable, "-S", "-E", "-s", "-c", f"INTERNAL = {INTERNAL}{PROBE}"]
PASSED = range(50, 54)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory, and open files at known numbers, two of them inheritable."""
    place = tmp_path_factory.mktemp("place")
    (place / "input").write_text("what the file says")
    for fd in PASSED:
        source = os.open(place / str(fd), os.O_RDWR | os.O_CREAT)
        os.dup2(source, fd, inheritable=bool(fd % 2))
        os.close(source)
    yield place
    for fd in PASSED:
        os.close(fd)


def streams(draw: Any) -> dict[str, Any]:
    """What the three streams are; files are named, for each contestant opens its own."""
    stdin = draw(st.sampled_from(["input", subprocess.DEVNULL, subprocess.PIPE]))
    stdout = draw(st.sampled_from(["out", subprocess.PIPE]))
    stderr = draw(st.sampled_from(["err", subprocess.PIPE, subprocess.DEVNULL, subprocess.STDOUT]))
    return {"stdin": stdin, "stdout": stdout, "stderr": stderr}


@st.composite
def calls(draw: Any) -> dict[str, Any]:
    """Parameters of a Popen."""
    choices: dict[str, Any] = {
        "close_fds": st.booleans(),
        "pass_fds": st.lists(st.sampled_from([*PASSED, 1]), max_size=3).map(tuple),
        "cwd": st.sampled_from(["/", b"/", Path("/"), ".", "nowhere", "input"]),
        "env": st.sampled_from([{}, {"A": "b"}, {b"PATH": b"/bin"}, {"PATH": "/nowhere"}]),
        "umask": st.sampled_from([0o77, 0, 0o22]),
        "restore_signals": st.booleans(),
        "start_new_session": st.booleans(),
        "process_group": st.just(0),
        "executable": st.sampled_from([sys.executable, "absent", "/", "sh", "/etc/passwd"]),
        "pipesize": st.just(8192),
        "bufsize": st.sampled_from([-1, 0, 1, 4096]),
        "text": st.booleans(),
    }
    ids: dict[str, Any] = {
        "user": st.sampled_from([os.geteuid(), "root", 12345 if ROOT else os.geteuid()]),
        "group": st.sampled_from([os.getegid(), "root", 12345 if ROOT else os.getegid()]),
        "extra_groups": st.lists(st.sampled_from([0, 7, 4242, "root"]), max_size=3),
    }
    names = draw(st.sets(st.sampled_from(sorted(choices)), max_size=4))
    names |= (
        draw(st.sets(st.sampled_from(sorted(ids)), max_size=3)) if draw(st.booleans()) else set()
    )
    return {
        **streams(draw),
        **{name: draw({**choices, **ids}[name]) for name in sorted(names)},
    }


def outcome(popen: Any, parameters: dict[str, Any], place: Path) -> object:
    """What the child has told, or what was raised."""
    files = {}
    parameters = dict(parameters)
    for name in ("stdin", "stdout", "stderr"):
        if isinstance(parameters[name], str):
            path = place / parameters[name]
            parameters[name] = files[name] = path.open("r" if name == "stdin" else "w+")
    given = "what is given" if parameters.get("text") else b"what is given"
    try:
        with popen([*PYTHON, "word", "\udcff"], **parameters) as process:
            told = process.communicate(given if parameters["stdin"] == subprocess.PIPE else None)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is compared
        number, name = getattr(error, "errno", None), getattr(error, "filename", None)
        kind = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
        # For what fails before exec, stock names the cwd, whether it was that or not.
        return kind, number, name if number in OF_FILES else None
    finally:
        for file in files.values():
            file.seek(0)
        written = {name: file.read() for name, file in files.items() if name != "stdin"}
        for file in files.values():
            file.close()
    texts = (*told, *written.values())
    return process.returncode, [read(text) for text in texts if text]


def read(text: str | bytes) -> object:
    """What the program has told, and other output as it is."""
    lines = text.splitlines(keepends=True)
    told = [json.loads(line) if line[:1] in {"{", b"{"} else line for line in lines]
    for each in told:
        if isinstance(each, dict):
            for name in OF_C:
                each["environ"].pop(name, None)
    return told


@settings(
    max_examples=120,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(parameters=calls())
def test_the_child_and_the_errors_are_the_same(
    parameters: dict[str, Any], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    stock = outcome(subprocess.Popen, parameters, place)
    assert outcome(clonekit.Popen, parameters, place) == stock


@pytest.mark.parametrize(
    ("args", "parameters"),
    [
        ([], {}),
        (["true", 1], {}),
        (["true", None], {}),
        (["nul\0"], {}),
        (["true"], {"env": {"a=b": "c"}}),
        (["true"], {"env": {"a": 1}}),
        (["true"], {"env": os.environ}),
        (["true"], {"env": os.environb}),
        (["true"], {"env": {b"PATH": b"/bin:/usr/bin"}}),
        (["true"], {"env": {"a": "nul\0"}}),
        (["true"], {"cwd": "nul\0"}),
        (["true"], {"cwd": ""}),
        (["true"], {"cwd": 3.5}),
        (["true"], {"user": -1}),
        (["true"], {"user": 1 << 40}),
        (["true"], {"user": 2.5}),
        (["true"], {"group": -1}),
        (["true"], {"group": 1 << 40}),
        (["true"], {"extra_groups": [-1]}),
        (["true"], {"extra_groups": "root"}),
        (["true"], {"stdin": 9999}),
        (["true"], {"stdout": 9999}),
        (["true"], {"stdout": "no file"}),
        (["true"], {"stdin": subprocess.STDOUT}),
        (["true"], {"bufsize": "1"}),
        (["true"], {"pass_fds": (9999,)}),
        (["true"], {"pass_fds": (-1,)}),
        (["true"], {"pass_fds": ("a",)}),
        (["true"], {"pass_fds": (50,), "close_fds": False}),
        (["true"], {"text": True, "universal_newlines": False}),
        (["true"], {"startupinfo": 1}),
        (["true"], {"creationflags": 1}),
        (["true"], {"unheard_of": 1}),
        (Path("true"), {"shell": True}),
        (Path("/bin/true"), {}),
        (b"/bin/true", {}),
        ("/bin/true", {}),
        (("/bin/true", b"x", Path("y")), {}),
        ("exit 3", {"shell": True}),
        (["echo $0 $1; exit 4", "a", "b"], {"shell": True, "stdout": subprocess.DEVNULL}),
        ("echo $0", {"shell": True, "executable": "/bin/bash", "stdout": subprocess.DEVNULL}),
        ("echo $0", {"shell": True, "executable": "bash", "stdout": subprocess.DEVNULL}),
        ("", {}),
        ("", {"shell": True}),
        ("/", {}),
        ("/etc/passwd", {}),
        ("/etc/passwd/no", {}),
        (["true"], {"process_group": os.getpgid(0) + 1_000_000}),
        (["true"], {"process_group": "a"}),
        (["true"], {"umask": 1 << 40}),
        (["true"], {"umask": 0o7777}),
    ],
)
def test_odd_arguments_end_the_same_way(args: Any, parameters: dict[str, Any]) -> None:
    ends = []
    for popen in (subprocess.Popen, clonekit.Popen):
        try:
            with popen(args, **parameters) as process:
                pass
            ends.append(process.returncode)
        except Exception as error:  # noqa: BLE001 - likewise
            kind = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
            name = error.filename if isinstance(error, OSError) else None
            ends.append((kind, getattr(error, "errno", None), name))
    assert ends[1] == ends[0]


@pytest.mark.parametrize("module", [subprocess, clonekit])
def test_a_mapping_in_place_of_os_environ_is_searched_and_not_passed_on(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "tell"
    program.write_text("#!/bin/sh\necho $TOLD")
    program.chmod(0o755)
    monkeypatch.setenv("TOLD", "ours")
    monkeypatch.setattr(os, "environ", {"PATH": str(tmp_path), "TOLD": "another"})
    assert module.check_output(["tell"]) == b"ours\n"
