"""A plugin of pytest: notes what came of each test. It knows nothing of clonekit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

OUTCOMES: dict[str, tuple[str, str]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say where the notes go, and whether a part is enough."""
    group = parser.getgroup("noting")
    group.addoption("--note", type=Path, help="a file for the outcome of each test, as JSON")
    group.addoption("--beside", type=Path, help="a file of tests: only what is in files with them")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the files that no test of `--beside` is in."""
    if config.option.beside is None:
        return
    files = {file_of(test) for test in json.loads(config.option.beside.read_text())}
    items[:] = [item for item in items if file_of(item.nodeid) in files]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the worst of a test's set-up, call and end."""
    before, _ = OUTCOMES.get(report.nodeid, ("passed", ""))
    if before == "passed":
        OUTCOMES[report.nodeid] = report.outcome, report.longreprtext if report.failed else ""


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write them down."""
    session.config.option.note.write_text(json.dumps(OUTCOMES))


def file_of(test: str) -> str:
    return test.partition("::")[0]
