"""The error for a `preexec_fn` says what to write instead."""

from __future__ import annotations

import functools
import inspect
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clonekit
from clonekit import DeclarationError
from clonekit.preexec import USES, refusal
from clonekit.spec import FIELDS, OTHER_FIELDS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/preexec_fn.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PARAMETERS = {*inspect.signature(subprocess.Popen).parameters, *FIELDS, *OTHER_FIELDS}
libc: Any = None  # nothing here is called


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
    with open(f"/proc/{os.getpid()}/oom_score_adj", "w") as file:
        file.write("1000")


def of_a_module() -> None:
    limited()


class Preparing:
    def __init__(self) -> None:
        self.uid = 1

    def demote(self) -> None:
        os.setgid(self.uid)
        os.setuid(self.uid)

    def __call__(self) -> None:
        libc.prctl(1, signal.SIGTERM)

    def __getattr__(self, name: str) -> object:
        raise AssertionError(name)


def nested() -> Callable[[], None]:
    def inner() -> None:
        os.setpgrp()

    def outer() -> None:
        [inner() for _ in range(1)]
        again()

    def again() -> None:
        outer()

    return outer


SEEN = [
    (os.setsid, ["setsid"]),
    (os.setpgrp, ["setpgid"]),
    (functools.partial(os.nice, 10), ["nice"]),
    (functools.partial(functools.partial(limited)), ["setrlimit", "oom_score_adj", "getpid"]),
    (limited, ["setrlimit", "oom_score_adj", "getpid"]),
    (of_a_module, ["setrlimit", "oom_score_adj", "getpid"]),
    (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN), ["SIG_IGN"]),
    (lambda: (os.umask(0), [os.chroot(path) for path in "/"]), ["umask", "chroot"]),
    (nested(), ["setpgid"]),
    (Preparing().demote, ["setuid", "setgid"]),
    (Preparing(), ["PR_SET_PDEATHSIG"]),
    (lambda: libc.prctl(38, 1, 0, 0, 0), ["PR_SET_NO_NEW_PRIVS"]),
    (lambda: None, []),
    (print, []),
    ("os.setsid", []),
    (7, []),
]


@pytest.mark.parametrize(("preexec_fn", "names"), SEEN, ids=range(len(SEEN)))
def test_what_a_function_seems_to_use_comes_first(preexec_fn: object, names: list[str]) -> None:
    why, *lines, rest = str(refusal(preexec_fn)).splitlines()
    assert [line.split()[0] for line in lines[: len(names)]] == names
    assert sorted(line.split()[0] for line in lines) == sorted(use.name for use in USES)
    assert "steps=" in rest
    instead = [use.instead for name in names for use in USES if use.name == name]
    if names:
        assert f"It seems to use {', '.join(names)}: write {', '.join(instead)}." in why
    else:
        assert "seems" not in why


def test_each_line_says_what_is_written_and_fits_a_terminal() -> None:
    _, *lines, _ = str(refusal(None)).splitlines()
    for use, line in zip(USES, lines, strict=True):
        assert line.split(maxsplit=1) == [use.name, use.instead]
        assert len(line) <= 100


def test_the_reason_is_one_sentence() -> None:
    why = str(refusal(None)).splitlines()[0]
    assert "deadlock" in why
    assert "install()" in why
    assert why.count(". ") == 0


def test_an_empty_cell_is_no_obstacle() -> None:
    def outer() -> Callable[[], None]:
        def inner() -> None:
            os.setsid()
            print(later)

        function = inner
        assert "setsid" in str(refusal(function)).splitlines()[1]
        later = 1
        return function

    outer()


def test_popen_run_and_their_kin_refuse_it() -> None:
    called: list[int] = []
    for function in (clonekit.Popen, clonekit.run, clonekit.call, clonekit.check_output):
        with pytest.raises(DeclarationError, match="preexec_fn is refused"):
            function(["true"], preexec_fn=lambda: called.append(os.getpid()))
    assert called == []


@pytest.mark.parametrize("use", USES, ids=lambda use: use.name)
def test_what_is_written_are_keywords_that_there_are(use: Any) -> None:
    for text in (use.instead, *re.findall(r"`([^`]+)`", use.note)):
        keywords = set(re.findall(r"(?:^|, )(\w+)=", text))
        assert keywords <= PARAMETERS, text


def test_the_page_has_every_use() -> None:
    for use in USES:
        assert "| `{}` |".format(use.does.replace("|", "\\|")) in PAGE
        assert use.instead in PAGE


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_of_the_page_does_what_it_says(example: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for promised in re.findall(r"print\(.*\) +# (.*)", example):
        assert promised in done.stdout
