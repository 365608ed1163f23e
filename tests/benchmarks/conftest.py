"""The benchmarks run when they are asked for by name: `pytest tests/benchmarks`.

What is compared is measured in turn, not one contestant after the other: a noisy machine is then
as noisy for each. The samples are played back to pytest-benchmark, whose clock is theirs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_benchmark.fixture import BenchmarkFixture

HERE = Path(__file__).resolve().parent
CDEFS = HERE.parents[1] / "cdefs"

_now = 0.0


def played_back() -> float:
    """The clock of a playback: it moves by one sample at a time."""
    return _now


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the contestants run."""
    parser.addoption(
        "--unpinned",
        action="store_true",
        help="let the scheduler place parents and children; else all share the last CPU",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Stay out of a run that did not name this folder."""
    named = [config.invocation_params.dir / argument.split("::")[0] for argument in config.args]
    if any(path.resolve().is_relative_to(HERE) for path in named):
        return None
    return collection_path.is_relative_to(HERE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every benchmark the clock of its samples."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.benchmark(timer=played_back))


@pytest.fixture
def play(benchmark: BenchmarkFixture) -> Callable[[str, Sequence[float]], None]:
    """Record samples, in seconds, as one benchmark of a group."""

    def play(group: str, samples: Sequence[float]) -> None:
        coming: Iterator[float] = iter(samples)

        def advance() -> None:
            global _now  # noqa: PLW0603 - a clock has one time
            _now += next(coming)

        benchmark.group = group
        benchmark.pedantic(advance, rounds=len(samples))  # type: ignore[no-untyped-call]

    return play


@pytest.fixture(scope="session")
def wanted(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The parameters of every benchmark of this run."""
    return [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]


@pytest.fixture(scope="session")
def cpu(pytestconfig: pytest.Config) -> int | None:
    """Where all contestants run, if that is one place."""
    return None if pytestconfig.getoption("unpinned") else max(os.sched_getaffinity(0))


@pytest.fixture(scope="session")
def built() -> Iterator[dict[str, str]]:
    """The C contestants and the target, in a directory that any user may enter."""
    directory = Path(tempfile.mkdtemp(prefix="clonekit-benchmark-"))
    directory.chmod(0o755)
    compiler = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror"]
    target, floor = directory / "target", directory / "floor.so"
    small = ["-static", "-nostdlib", "-Wl,-z,noseparate-code", "-Wl,--build-id=none"]
    subprocess.run([*compiler, *small, HERE / "target.c", "-o", target], check=True)
    shared = ["-shared", "-fPIC", f"-I{CDEFS}"]
    subprocess.run([*compiler, *shared, HERE / "floor.c", "-o", floor], check=True)
    yield {"target": str(target), "floor": str(floor)}
    shutil.rmtree(directory)
