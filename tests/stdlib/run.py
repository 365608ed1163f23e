"""CPython's own tests of `subprocess` and of asyncio's subprocesses, over this library.

    python tests/stdlib/run.py installed    after clonekit.install()
    python tests/stdlib/run.py imported     with `subprocess.Popen`, `run`... being clonekit's
    python tests/stdlib/run.py stock        as they are, to compare

Further arguments are ids of tests: these alone are run. They are those of the running Python, and
all that it runs here must pass, but those of `by_design.py`.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from by_design import IMPORTED, INSTALLED, expected

STOCK = "stock"
#: Each module, which of its tests are about subprocesses, and how many pass at the least.
SELECTED: dict[str, tuple[Callable[[unittest.TestCase], bool], int]] = {
    "test.test_subprocess": (lambda _: True, 280),
    "test.test_asyncio.test_subprocess": (lambda _: True, 110),
    "test.test_asyncio.test_events": (lambda test: "test_subprocess" in method_of(test), 30),
    "test.test_asyncio.test_unix_events": (
        lambda test: "ChildWatcher" in type(test).__name__,
        25,
    ),
}
#: asyncio's loop makes its subprocesses by itself: what a module imports is nothing to it.
OF_MODE = {
    INSTALLED: list(SELECTED),
    IMPORTED: ["test.test_subprocess", "test.test_asyncio.test_subprocess"],
    STOCK: list(SELECTED),
}
HANG = 400  # seconds after which it says where it hangs, and ends


def method_of(test: unittest.TestCase) -> str:
    """`test_wait`."""
    return test.id().rpartition(".")[2]


def name_of(test: str) -> str:
    """As the list has it: `test_subprocess.test_wait` for an id."""
    module = next((name for name in SELECTED if test.startswith(f"{name}.")), "")
    return f"{module.removeprefix('test.')}.{test.rpartition('.')[2]}"


class Overlay(types.ModuleType):
    """A module, with names of ours in place of its own.

    What is set here is set there too, for code of theirs and ours to find it.
    """

    def __init__(self, module: types.ModuleType, ours: dict[str, Any], home: dict[str, Any]) -> None:
        vars(self).update({**vars(module), **ours})
        vars(self)["_homes"] = {name: home for name in ours}
        vars(self)["_module"] = vars(module)

    def __setattr__(self, name: str, value: object) -> None:
        vars(self)[name] = value
        self._homes.get(name, self._module)[name] = value


class Counted:
    """Calls of it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls = 0

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self.calls += 1
        return self.function(*arguments, **keywords)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)


def prepared(mode: str) -> tuple[dict[str, types.ModuleType], Callable[[], dict[str, int]]]:
    """What modules shall be while the tests are loaded, and a count of the children so far."""
    if mode == INSTALLED:
        import clonekit

        installation = clonekit.install()
        return {}, lambda: {"ours": installation.spawned, "stock": installation.stock}
    import asyncio
    import subprocess

    stock = subprocess.Popen._execute_child = Counted(subprocess.Popen._execute_child)
    if mode == STOCK:
        return {}, lambda: {"ours": 0, "stock": stock.calls}
    import clonekit
    from clonekit import aio

    ours = clonekit.Popen._execute_child = Counted(clonekit.Popen._execute_child)
    names = {name: getattr(clonekit, name) for name in subprocess.__all__}
    awaited = {
        name: Counted(getattr(aio, name))
        for name in ("create_subprocess_exec", "create_subprocess_shell")
    }
    overlays = {
        "subprocess": Overlay(subprocess, names, clonekit.run.__globals__),
        "asyncio": Overlay(asyncio, awaited, {}),
        "asyncio.subprocess": Overlay(asyncio.subprocess, awaited, {}),
    }
    vars(overlays["asyncio"])["subprocess"] = overlays["asyncio.subprocess"]
    counted = [ours, *awaited.values()]
    return overlays, lambda: {"ours": sum(each.calls for each in counted), "stock": stock.calls}


def tests_of(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """Each test of a suite."""
    for each in suite:
        if isinstance(each, unittest.TestSuite):
            yield from tests_of(each)
        else:
            yield each


def loaded(mode: str, overlays: dict[str, types.ModuleType], ids: list[str]) -> unittest.TestSuite:
    """The tests of a mode, or these."""
    suite = unittest.TestSuite()
    for name in OF_MODE[mode]:
        module = importlib.import_module(name)
        if overlays:
            theirs = {each: sys.modules[each] for each in overlays}
            sys.modules.update(overlays)
            try:
                importlib.reload(module)
            finally:
                sys.modules.update(theirs)
        wanted = SELECTED[name][0]
        for test in tests_of(unittest.defaultTestLoader.loadTestsFromModule(module)):
            if test.id() in ids if ids else wanted(test):
                suite.addTest(test)
    return suite


class Outcomes(unittest.TestResult):
    """What became of each test: `passed`, `skipped` or `failed`, and what it said."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[str, tuple[str, str]] = {}

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self.outcomes[test.id()] = "passed", ""

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self.outcomes[test.id()] = "skipped", " ".join(reason.split())

    def _failed(self, test: Any, error: Any) -> None:
        said = self._exc_info_to_string(error, test)  # type: ignore[attr-defined]
        self.outcomes[test.id()] = "failed", said

    addError = addFailure = _failed

    def addSubTest(self, test: unittest.TestCase, subtest: Any, error: Any) -> None:
        if error is not None:
            self._failed(test, error)


def outcomes_of_stock(ids: list[str]) -> dict[str, tuple[str, str]]:
    """What becomes of these tests without us, in a Python of its own."""
    if not ids:
        return {}
    import subprocess

    with tempfile.NamedTemporaryFile() as file:
        command = [sys.executable, __file__, STOCK, "--outcomes", file.name, *ids]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        return json.load(file)


def complaints(
    mode: str, outcomes: dict[str, tuple[str, str]], *, whole: bool
) -> Iterator[tuple[str, str]]:
    """What is wrong with these outcomes, or worth to be said: `wrong` or `note`, and a text."""
    of_list = {} if mode == STOCK else expected(mode)
    failed = {each for each, (what, _) in outcomes.items() if what == "failed"}
    skipped = {each for each, (what, _) in outcomes.items() if what == "skipped"}
    unexpected = {each for each in failed if name_of(each) not in of_list}
    stock = outcomes if mode == STOCK else outcomes_of_stock(sorted(unexpected | skipped))
    for each in sorted(unexpected):
        if stock[each][0] == "failed":
            yield "note", f"{each} fails here without us, too"
        else:
            yield "wrong", f"{each} failed:\n{outcomes[each][1]}"
    for each in sorted(skipped):
        if stock[each][0] != "skipped":
            yield "wrong", f"{each} is skipped, and not without us: {outcomes[each][1]}"
    for each, (what, _) in outcomes.items():
        if what == "passed" and name_of(each) in of_list:
            yield "wrong", f"{each} passed: take {name_of(each)} from the list"
    if not whole:
        return
    for name in of_list.keys() - {name_of(each) for each in outcomes}:
        yield "wrong", f"{name} is on the list, and there is no such test"
    for module in OF_MODE[mode]:
        passed = sum(
            what == "passed" for each, (what, _) in outcomes.items() if each.startswith(f"{module}.")
        )
        least = SELECTED[module][1]
        if passed < least:
            yield "wrong", f"{passed} tests of {module} have passed, and at least {least} should"


def counts(outcomes: dict[str, tuple[str, str]]) -> str:
    """`3 tests: 2 passed, 1 skipped`."""
    told = [what for what, _ in outcomes.values()]
    kinds = [f"{told.count(kind)} {kind}" for kind in ("passed", "failed", "skipped")]
    return f"{len(told)} tests: {', '.join(kinds)}"


def report(mode: str, outcomes: dict[str, tuple[str, str]], children: dict[str, int]) -> None:
    """Print what ran, what did not, and the list."""
    version = sys.version.partition(" ")[0]
    print(f"Python {version}, uid {os.geteuid()}, {mode}: {counts(outcomes)}")
    for module in OF_MODE[mode]:
        of_module = {each: outcomes[each] for each in outcomes if each.startswith(f"{module}.")}
        print(f"  {module}: {counts(of_module)}")
    print(f"children: {children['ours']} by clonekit, {children['stock']} by the standard library")
    if mode != STOCK:
        told = expected(mode)
        print(f"{len(told)} tests cannot pass:")
        for name, reason in told.items():
            print(f"  {name}: {reason}")
    reasons: dict[str, int] = {}
    for what, said in outcomes.values():
        if what == "skipped":
            reasons[said] = reasons.get(said, 0) + 1
    for said, times in reasons.items():
        print(f"skipped {times}: {said}")


def main() -> int:
    """Run them; 0 if everything is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("mode", choices=list(OF_MODE))
    parser.add_argument("--outcomes", type=Path, help="write what became of each test, as JSON")
    parser.add_argument("ids", nargs="*", metavar="ID", help="run these tests alone")
    options = parser.parse_intermixed_args()
    faulthandler.dump_traceback_later(HANG, exit=True)
    overlays, children = prepared(options.mode)  # before anything has loaded what it replaces
    from test.support import os_helper

    outcomes = Outcomes()
    with os_helper.temp_cwd():
        loaded(options.mode, overlays, options.ids).run(outcomes)
    told = outcomes.outcomes
    if options.outcomes:
        options.outcomes.write_text(json.dumps(told))
        return 0
    report(options.mode, told, children())
    wrong = 0
    for kind, said in complaints(options.mode, told, whole=not options.ids):
        print(f"{kind}: {said}")
        wrong += kind == "wrong"
    if options.mode != STOCK and not children()["ours"]:
        print("wrong: no child went through clonekit")
        wrong += 1
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
