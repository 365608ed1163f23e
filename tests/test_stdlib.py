"""CPython's own tests of `subprocess` and of asyncio's subprocesses, those of the running Python.

`tests/stdlib/run.py` runs them, over `install()` and with the drop-in imported, and says what
became of them. Its list of tests that cannot pass is counted here: it does not grow unseen.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests/stdlib"))
from by_design import BY_DESIGN, IMPORTED, INSTALLED, expected  # noqa: E402

RUNNER = ROOT / "tests/stdlib/run.py"
#: Not that of a virtual environment, where some of the tests are skipped.
PYTHON = getattr(sys, "_base_executable", sys.executable)
PATHS = [str(ROOT), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
MODES = [INSTALLED, IMPORTED]


def has_tests() -> bool:
    """Whether this Python has its own test suite."""
    try:
        return importlib.util.find_spec("test.test_subprocess") is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """The runner in each mode, at once: it mostly waits."""
    if not has_tests():
        reason = "this Python has no tests; on Debian, apt-get install libpython3-testsuite"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    runners = {
        mode: subprocess.Popen(
            [PYTHON, RUNNER, mode],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for mode in MODES
    }
    yield runners
    for runner in runners.values():
        with runner:
            runner.kill()


@pytest.mark.parametrize("mode", MODES)
def test_cpython_s_own_tests_pass(
    mode: str, running: dict[str, subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    told, complained = running[mode].communicate()
    with capsys.disabled():
        print(f"\n{told}", end="")
    assert running[mode].returncode == 0, told + complained


def test_those_that_cannot_pass_are_these_few() -> None:
    reasons = [(len(tests), modes) for _, modes, tests in BY_DESIGN]
    both, installed, imported = (INSTALLED, IMPORTED), (INSTALLED,), (IMPORTED,)
    assert reasons == [
        (3, both), (1, both), (1, installed), (3, both), (2, both), (7, imported), (2, imported),
    ]  # fmt: skip
    assert [len(expected(mode)) for mode in MODES] == [10, 18]
