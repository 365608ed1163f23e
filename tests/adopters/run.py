"""The suites of programs that use `subprocess`, without `clonekit.install()` and with it.

`run.py [PACKAGE...]`, by a Python that has clonekit: takes the packages of packages.py from PyPI,
each into a venv of its own, and runs its tests twice. What passes without must pass with it. A test
that does not is run again with its file, three times each way: its pass is lost if it fails again
and never failed without. What wavers, or fails without too, is listed and does not count.

Status: 1 if a pass was lost, a suite did not run, or no process in it came from clonekit. All that
is made is in a temporary directory, and removed. It needs git.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from packages import PACKAGES, Package
from suite import FailedError, Run, Suite

AT_ONCE = 2  # suites that run beside each other
AGAIN = 3
LINES = 25  # of what a lost pass says
ROW = "{:<13} {:<8} {:>7} {:>8} {:>5} {:>8} {:>6} {:>8}"
TITLES = ("package", "version", "without", "with", "lost", "spawned", "stock", "seconds")


class Comparison(NamedTuple):
    """What came of a package's tests.

    Attributes:
        lost: tests that pass without `install()` and not with it, and what they say.
        differing: those whose pass is not kept, by intention, and why.
        wavering: tests that did so once; how often they failed when they were run again.
    """

    package: Package
    without: Run
    installed: Run
    lost: Mapping[str, str]
    differing: Mapping[str, str]
    wavering: Mapping[str, str]
    seconds: float

    @property
    def good(self) -> bool:
        return bool(self.without.passed and self.installed.spawned and not self.lost)


async def compare(package: Package, directory: Path) -> Comparison:
    """Run a package's tests without and with, and look again at what differs."""
    started = time.monotonic()
    suite = Suite(package, directory / package.name)
    await suite.prepare()
    without = await suite.run(installed=False)
    installed = await suite.run(installed=True)
    gone = sorted(without.passed - installed.passed)
    differing = {
        test: package.differs[name] for test in gone if (name := named(test)) in package.differs
    }
    doubtful = [test for test in gone if test not in differing]
    failures = {installed: Counter[str]() for installed in (False, True)}
    for again in (False, True) * AGAIN if doubtful else ():
        run = await suite.run(installed=again, beside=doubtful)
        failures[again].update(set(doubtful) - run.passed)
    lost, wavering = {}, {}
    for test in doubtful:
        with_it, without_it = failures[True][test], failures[False][test]
        if with_it and not without_it:
            lost[test] = installed.outcomes.get(test, ("", "it was not there"))[1]
        else:
            wavering[test] = f"again failed {with_it} of {AGAIN} with, {without_it} without"
    took = time.monotonic() - started
    return Comparison(package, without, installed, lost, differing, wavering, took)


def named(test: str) -> str:
    """A test's function, without its parameters."""
    return test.rpartition("::")[2].partition("[")[0]


def row(comparison: Comparison) -> str:
    """Its numbers."""
    package, without, installed = comparison[:3]
    passes = (len(without.passed), len(installed.passed), len(comparison.lost))
    counts = (installed.spawned, installed.stock, round(comparison.seconds))
    return ROW.format(package.name, package.version, *passes, *counts)


def remarks(comparison: Comparison) -> Iterator[str]:
    """What differs with it, and what fails without."""
    _, without, installed = comparison[:3]
    for test, said in comparison.lost.items():
        yield f"lost: {test}"
        yield from said.splitlines()[-LINES:]
    for test, why in comparison.differing.items():
        yield f"differs: {test}: {why}"
    for test, often in comparison.wavering.items():
        yield f"wavers: {test}: {often}"
    for test, (outcome, _) in without.outcomes.items():
        if outcome == "failed":
            now = installed.outcomes.get(test, ("not there",))[0]
            yield f"fails without: {test}" + ("" if now == outcome else f"; {now} with")


async def compared(
    package: Package, directory: Path, slots: asyncio.Semaphore
) -> Comparison | FailedError:
    """Compare in turn, and say what is remarkable."""
    async with slots:
        print(f"{package.name} {package.version}", flush=True)
        try:
            result = await compare(package, directory)
        except FailedError as error:
            print(f"{package.name}: {error}", flush=True)
            return error
    for remark in remarks(result):
        print(f"{package.name}: {remark}", flush=True)
    return result


async def main(names: list[str]) -> int:
    """Compare all, or those that are named."""
    chosen = [package for package in PACKAGES if not names or package.name in names]
    slots = asyncio.Semaphore(AT_ONCE)
    with tempfile.TemporaryDirectory(prefix="clonekit-adopters-") as directory:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(compared(package, Path(directory), slots)) for package in chosen
            ]
    results = [result for task in tasks if isinstance(result := task.result(), Comparison)]
    print("\npasses without install(), and with it; children counted with it")
    print(ROW.format(*TITLES))
    for result in results:
        print(row(result))
    good = sum(result.good for result in results)
    print(f"{good} of {len(chosen)} packages keep their passes")
    return 0 if chosen and good == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
