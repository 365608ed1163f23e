"""What imports take in a fresh interpreter: `clonekit`, and with its `Popen`, and `subprocess`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import clonekit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TIMES = 60
UNCOUNTED = 2
MODULES = ("clonekit", "clonekit.popen", "subprocess")
#: Without `site`: what an editable install imports at each start would be imported for free.
CODE = """\
import posix, sys
posix.sched_setaffinity(0, {{{cpu}}})
sys.path[:] = {path!r}
from time import perf_counter_ns
before = perf_counter_ns()
import {module}
print(perf_counter_ns() - before)
"""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Seconds of each import, measured inside the interpreters, which take turns."""
    compiled: Path = tmp_path_factory.mktemp("bytecode")
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    env["PYTHONPYCACHEPREFIX"] = str(compiled)
    cpu = max(os.sched_getaffinity(0))
    home = str(Path(clonekit.__file__).parents[1])  # an editable install has no path without `site`
    taken: dict[str, list[float]] = {module: [] for module in MODULES}
    for _ in range(UNCOUNTED + TIMES):
        for module, times in taken.items():
            code = CODE.format(path=[home, *sys.path], cpu=cpu, module=module)
            told = subprocess.check_output([sys.executable, "-S", "-c", code], env=env)
            times.append(int(told) / 1e9)
    return {module: times[UNCOUNTED:] for module, times in taken.items()}


@pytest.mark.parametrize("module", MODULES)
def test_import(
    module: str, samples: dict[str, list[float]], play: Callable[[str, Sequence[float]], None]
) -> None:
    """The import statement alone, from bytecode."""
    play("import", samples[module])
