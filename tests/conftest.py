"""What the tests share: compiled programs, rooms for cases, and the runs that take long."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from looping import run
from parent_snapshot import unchanged
from step_cases import Case, Room, missing, missing_of
from supervised import nothing_left

from clonekit import Nascent, nascent

__all__ = ["nothing_left", "run"]

PROGRAMS = Path(__file__).parent / "programs"
HANG = 1800  # seconds after which a run is taken for hung, and says where


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker; let hypothesis keep nothing on disk, where we may not write.

    It takes a machine that stalls for a slow test, and for a slow choice of what to test.
    """
    settings.register_profile(
        "here", database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("here")
    config.addinivalue_line("markers", "long: takes minutes; run with -m long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long runs out unless markers are chosen."""
    if config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("long")]
    items[:] = [item for item in items if item not in long]
    config.hook.pytest_deselected(items=long)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with each of the programs, compiled and static."""
    directory = tmp_path_factory.mktemp("programs")
    for source in PROGRAMS.glob("*.c"):
        target = directory / source.stem
        command = ["gcc", "-static", "-O2", "-Wall", "-Werror", "-o", target, source]
        subprocess.run(command, check=True)
    return directory


@pytest.fixture
def room(tmp_path: Path, built: Path) -> Iterator[Room]:
    """Where a case may work."""
    room = Room(tmp_path, built / "see")
    with room.stack:
        yield room


@pytest.fixture
def needs(request: pytest.FixtureRequest) -> None:
    """Skip what this machine cannot do: `@pytest.mark.usefixtures("needs")` on a case."""
    case: Case = request.getfixturevalue("case")
    reason = missing_of(case)
    if reason:
        pytest.skip(reason)


@pytest.fixture
def need() -> object:
    """Skip unless the machine has this: `need("user")`."""

    def ask(name: str) -> None:
        reason = missing(name)
        if reason:
            pytest.skip(reason)

    return ask


@pytest.fixture
def child() -> Iterator[Nascent]:
    """A child that waits, and nothing that it leaves."""
    with unchanged(), nascent() as child:
        yield child


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A file of ours that holds ten bytes."""
    (tmp_path / "file").write_bytes(b"0123456789")
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CLOEXEC)
    yield fd
    os.close(fd)


# Whoever ran the suite in the background may have had these ignored, and so would every program.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(_number, signal.SIG_DFL)

#: The true standard error, which the capture of a test's output does not take away.
STDERR = os.dup(2)


@pytest.fixture
def no_hang() -> Iterator[None]:
    """End the run with the stack of every thread if a test hangs."""
    faulthandler.dump_traceback_later(HANG, exit=True, file=STDERR)
    yield
    faulthandler.cancel_dump_traceback_later()
