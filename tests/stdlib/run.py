"""CPython's own tests of `subprocess` and of asyncio's subprocesses, over this library.

    python tests/stdlib/run.py installed    after clonekit.install()
    python tests/stdlib/run.py imported     with `subprocess.Popen`, `run`... being clonekit's
    python tests/stdlib/run.py stock        as they are, to compare

They are those of the running Python. What it runs without us must run and pass with us, but for the
list of `by_design.py`. What fails is run again, by turns with us and without: that counts which
fails again and again, and never without; for some have time-outs, which a slow machine passes.
Further arguments are ids of tests: these alone are run.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import os
import sys
import tempfile
import types
import unittest
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from by_design import ENDLESS, IMPORTED, INSTALLED, expected

STOCK = "stock"
#: Each module: which of its tests are about subprocesses, and how many pass at the least.
SELECTED = {
    "test.test_subprocess": (("",), 280),
    "test.test_asyncio.test_subprocess": (("",), 60),
    "test.test_asyncio.test_events": (("test_subprocess",), 36),
    "test.test_asyncio.test_unix_events": (("ChildWatcher", "asyncio_subprocess"), 1),
}
#: What a module imports is nothing to asyncio's own loop, which makes subprocesses by itself.
OF_MODE = {
    INSTALLED: tuple(SELECTED),
    IMPORTED: ("test.test_subprocess", "test.test_asyncio.test_subprocess"),
    STOCK: tuple(SELECTED),
}
HANG = 1500  # seconds after which it says where it hangs, and ends

AGAIN = 5  # times that what has failed is run again, each way
MOST = 1  # of these, how many may fail with us

#: What became of each test, by its id: `passed`, `skipped` or `failed`; and what it said.
Outcomes = dict[str, tuple[str, str]]


class Overlay(types.ModuleType):
    """A module with names of ours. What is set in it is set where theirs or ours look it up."""

    def __init__(self, of: types.ModuleType, ours: dict[str, Any], home: dict[str, Any]) -> None:
        theirs = vars(of)
        homes = dict.fromkeys(theirs, theirs) | dict.fromkeys(ours, home)
        vars(self).update({**theirs, **ours, "_homes": homes})

    def __setattr__(self, name: str, value: object) -> None:
        vars(self)[name] = self._homes[name][name] = value


class Counted:
    """A method, and how often it was called."""

    def __init__(self, method: Callable[..., None]) -> None:
        self.method = method
        self.calls = 0

    def __get__(self, popen: Any, _: type) -> Callable[..., None]:
        return self if popen is None else types.MethodType(self, popen)

    def __call__(self, *arguments: Any) -> None:
        self.calls += 1
        self.method(*arguments)


def overlays() -> dict[str, types.ModuleType]:
    """Modules in which the names of `subprocess` are clonekit's."""
    import asyncio
    import subprocess

    import clonekit
    from clonekit import aio

    names = {name: getattr(clonekit, name) for name in subprocess.__all__}
    create = {name: getattr(aio, name) for name in asyncio.subprocess.__all__ if "create" in name}
    inner = Overlay(asyncio.subprocess, create, vars(aio))
    return {
        "subprocess": Overlay(subprocess, names, clonekit.run.__globals__),
        "asyncio.subprocess": inner,
        "asyncio": Overlay(asyncio, {**create, "subprocess": inner}, vars(aio)),
    }


def prepared(mode: str) -> Callable[[], tuple[int, int]]:
    """Be in this mode; how many children were made by us since, and by the standard library."""
    if mode == INSTALLED:
        import clonekit

        installation = clonekit.install()
        return lambda: (installation.spawned, installation.stock)
    import subprocess

    stock = subprocess.Popen._execute_child = Counted(subprocess.Popen._execute_child)
    if mode == STOCK:
        return lambda: (0, stock.calls)
    import clonekit

    ours = clonekit.Popen._execute_child = Counted(clonekit.Popen._execute_child)
    return lambda: (ours.calls, stock.calls)


def loaded(mode: str, ids: list[str]) -> unittest.TestSuite:
    """The tests of a mode, or these."""
    suite = unittest.TestSuite()
    theirs = overlays() if mode == IMPORTED else {}
    cannot = {} if mode == STOCK else expected(mode)
    for name in OF_MODE[mode]:
        module = importlib.import_module(name)  # and with it all that shall not see an overlay
        if theirs:
            before = {each: sys.modules[each] for each in theirs}
            sys.modules.update(theirs)
            importlib.reload(module)
            sys.modules.update(before)
        parts = SELECTED[name][0]
        for test in tests_of(unittest.defaultTestLoader.loadTestsFromModule(module)):
            wanted = test.id() in ids if ids else any(part in test.id() for part in parts)
            if wanted and cannot.get(listed(test.id())) != ENDLESS:
                suite.addTest(test)
    return suite


def tests_of(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """Each test of a suite."""
    for each in suite:
        if isinstance(each, unittest.TestSuite):
            yield from tests_of(each)
        else:
            yield each


class Noted(unittest.TestResult):
    """What became of each test."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: Outcomes = {}

    def startTest(self, test: unittest.TestCase) -> None:
        self.outcomes[test.id()] = "passed", ""

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self.outcomes[test.id()] = "skipped", " ".join(reason.split())

    def addError(self, test: Any, error: Any) -> None:
        self.outcomes[test.id()] = "failed", self._exc_info_to_string(error, test)

    addFailure = addError

    def addSubTest(self, test: unittest.TestCase, _: unittest.TestCase, error: Any) -> None:
        if error is not None:
            self.addError(test, error)

    def addExpectedFailure(self, test: unittest.TestCase, error: Any) -> None:
        """It fails wherever it runs."""

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self.outcomes[test.id()] = "failed", "it succeeded, and is expected to fail"


def again(mode: str, ids: list[str]) -> Outcomes:
    """What becomes of these tests in a mode, in a Python of its own."""
    import subprocess

    if not ids:
        return {}
    with tempfile.NamedTemporaryFile() as file:
        command = [sys.executable, __file__, mode, *ids, "--outcomes", file.name]
        subprocess.run(command, check=True)
        return json.load(file)


def listed(test: str) -> str:
    """The name that the list would have for an id: module and method."""
    module = next((module for module in SELECTED if test.startswith(f"{module}.")), test)
    return f"{module.removeprefix('test.')}.{test.rpartition('.')[2]}"


def those(outcomes: Outcomes, kind: str) -> list[str]:
    """The tests of which this became."""
    return [test for test, (what, _) in outcomes.items() if what == kind]


def judged(mode: str, outcomes: Outcomes, cannot: dict[str, str]) -> tuple[list[str], list[str]]:
    """What is wrong with tests that were run with us, and what is to be noted.

    Only those which failed or were skipped are run without us, too.
    """
    wrong, noted = [], []
    skipped = those(outcomes, "skipped")
    stock = again(STOCK, skipped)
    wrong += [
        f"{test} is skipped, and not without us: {outcomes[test][1]}"
        for test in skipped
        if stock.get(test, ("not run", ""))[0] != "skipped"
    ]
    failed = [test for test in those(outcomes, "failed") if listed(test) not in cannot]
    ours, theirs = Counter[str](), Counter[str]()
    for _ in range(AGAIN):
        theirs.update(those(again(STOCK, failed), "failed"))
        ours.update(set(failed) - set(those(again(mode, failed), "passed")))
    for test in failed:
        if ours[test] > MOST and not theirs[test]:
            wrong.append(f"{test} failed:\n{outcomes[test][1]}")
            continue
        often = f"{ours[test]} of {AGAIN} times with us and {theirs[test]} without"
        noted.append(f"{test} failed, and again {often}")
        if ours[test] < AGAIN:
            outcomes[test] = "passed", ""
    wrong += [
        f"{test} passed: take it off the list"
        for test in those(outcomes, "passed")
        if listed(test) in cannot
    ]
    return wrong, noted


def missing(mode: str, outcomes: Outcomes) -> Iterator[str]:
    """What was not run, and should have been."""
    for module in OF_MODE[mode]:
        passed = sum(test.startswith(f"{module}.") for test in those(outcomes, "passed"))
        least = SELECTED[module][1]
        if passed < least:
            yield f"{passed} tests of {module} have passed, and {least} should at the least"


def report(mode: str, outcomes: Outcomes, cannot: dict[str, str]) -> None:
    """Print what ran, what did not, and the list."""

    def counts(prefix: str) -> str:
        kinds = Counter(what for test, (what, _) in outcomes.items() if test.startswith(prefix))
        told = [f"{kinds[kind]} {kind}" for kind in ("passed", "failed", "skipped")]
        return f"{kinds.total()} run: {', '.join(told)}"

    print(f"CPython {sys.version.split()[0]}, uid {os.geteuid()}, {mode}: {counts('')}")
    for module in OF_MODE[mode]:
        print(f"  {module}: {counts(f'{module}.')}")
    print(f"{len(cannot)} tests of CPython 3.11 to 3.15 cannot pass:")
    for name, reason in cannot.items():
        print(f"  {name}: {reason}")
    print("skipped, as without us:")
    for reason, times in Counter(outcomes[test][1] for test in those(outcomes, "skipped")).items():
        print(f"  {times}: {reason}")


def main() -> int:
    """Run them; 0 if everything is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("mode", choices=list(OF_MODE))
    parser.add_argument("ids", nargs="*", metavar="ID", help="run these tests alone")
    parser.add_argument("--outcomes", type=Path, help="write what became of each test, as JSON")
    options = parser.parse_intermixed_args()
    faulthandler.dump_traceback_later(HANG, exit=True)
    children = prepared(options.mode)  # before anything of theirs is loaded
    from test.support import os_helper

    noted = Noted()
    with os_helper.temp_cwd(None):
        loaded(options.mode, options.ids).run(noted)
    outcomes = noted.outcomes
    if options.outcomes:
        options.outcomes.write_text(json.dumps(outcomes))
        return 0
    if set(options.ids) - outcomes.keys():
        parser.error(f"no such test: {', '.join(set(options.ids) - outcomes.keys())}")
    cannot = expected(options.mode)
    ours, stock = children()
    wrong, notes = judged(options.mode, outcomes, cannot)
    if options.mode != STOCK and not ours:
        wrong.append("no child was made by clonekit")
    if not options.ids:
        wrong += missing(options.mode, outcomes)
    report(options.mode, outcomes, cannot)
    print(f"{ours} children were made by clonekit, and {stock} by the standard library")
    for text in notes:
        print(f"note: {text}")
    for text in wrong:
        print(f"WRONG: {text}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
