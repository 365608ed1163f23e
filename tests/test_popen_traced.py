"""A tracer that was there first: it has wrapped `subprocess.Popen`, and goes on seeing children."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: What tracers and their like do to `subprocess`, each before anything of this library is imported.
TRACERS = {
    "class": """
class Traced(subprocess.Popen):
    def __init__(self, *args, **keywords):
        seen.append(args)
        super().__init__(*args, **keywords)

subprocess.Popen = Traced
""",
    "wrapped": """
def init(self, *args, _stock=subprocess.Popen.__init__, **keywords):
    seen.append(args)
    _stock(self, *args, **keywords)

subprocess.Popen.__init__ = functools.wraps(subprocess.Popen.__init__)(init)
""",
    "hidden": """
def init(self, *args, _stock=subprocess.Popen.__init__, **keywords):
    seen.append(args)
    _stock(self, *args, **keywords)

subprocess.Popen.__init__ = init
""",
}
PROGRAM = """
import asyncio, functools, subprocess
seen, stock = [], subprocess.Popen
{}
import clonekit

async def main():
    process = await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
    return await process.wait()

done = clonekit.run(["sh", "-c", "ulimit -n"], capture_output=True, text=True,
                    rlimits={{"nofile": 40}})
assert done.stdout == "40\\n", done
try:
    clonekit.Popen(["true"], rlimit=1)
except TypeError:
    pass
else:
    raise AssertionError
seen.clear()
with clonekit.install() as installation:
    assert subprocess.check_output(["echo", "one"]) == b"one\\n"
    assert (installation.spawned, len(seen)) == (1, 1)
    assert stock(["true"]).wait() == 0
    assert asyncio.run(main()) == 3
    assert installation.spawned == 3 and len(seen) >= 2
subprocess.run(["true"])
assert installation.spawned == 3
"""


@pytest.mark.parametrize("tracer", TRACERS)
def test_children_are_ours_and_are_seen_by_the_tracer(tracer: str) -> None:
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(TRACERS[tracer])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (told.returncode, told.stderr) == (0, "")
