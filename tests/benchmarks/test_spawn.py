"""Spawn and wait, by heap and by descriptors: ours, `subprocess`, and what C can do."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

HERE = Path(__file__).resolve().parent
CDEFS = HERE.parents[1] / "cdefs"
GIB = 1 << 30
MANY = 1000
#: For two large heaps, and a fork of one.
ENOUGH = 5 * GIB
TURNS = 40
ROUNDS = 20
#: A fork of a large heap takes as long as a hundred spawns.
ROUNDS_OF_FORKS = 2

CHEAP = (
    "clone3",
    "vfork",
    "posix_spawn",
    "posix_spawn_bare",
    "subprocess",
    "clonekit_compiled",
    "clonekit_one_shot",
    "clonekit_new_argv",
)
PLACING = tuple(name for name in CHEAP if name != "posix_spawn_bare")
PRIVILEGED = ("clonekit_privileged", "subprocess_privileged")
FORKING = ("fork", "subprocess_privileged")


class Scene(NamedTuple):
    """The state of the process that spawns."""

    heap: int = 0
    descriptors: int = 0
    pipes_last: bool = False


class Contest(NamedTuple):
    """One group: who is compared, and where."""

    scene: Scene
    names: tuple[str, ...]
    loop: bool = False


CONTESTS = {
    "small heap, few descriptors": Contest(Scene(), (*CHEAP, "fork")),
    "2 GiB heap, few descriptors": Contest(Scene(heap=2 * GIB), (*CHEAP, "fork")),
    "small heap, 1,000 descriptors": Contest(Scene(descriptors=MANY), (*CHEAP, "fork")),
    "2 GiB heap, 1,000 descriptors": Contest(
        Scene(heap=2 * GIB, descriptors=MANY), (*CHEAP, "fork")
    ),
    "small heap, 1,000 descriptors, pipes opened last": Contest(
        Scene(descriptors=MANY, pipes_last=True), (*PLACING, "fork")
    ),
    "small heap, few descriptors, in a loop": Contest(Scene(), CHEAP, loop=True),
    "2 GiB heap, credentials, limits and a filter": Contest(Scene(heap=2 * GIB), PRIVILEGED),
}


def parameters() -> list[Any]:
    """Each contestant of each contest."""
    found = []
    for group, contest in CONTESTS.items():
        for name in contest.names:
            root_only = name in PRIVILEGED and os.geteuid() != 0
            marks = [pytest.mark.skipif(root_only, reason="only root may change to another uid")]
            found.append(pytest.param(group, name, id=f"{group}: {name}", marks=marks))
    return found


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


class Actor:
    """A process that plays one scene."""

    def __init__(
        self, scene: Scene, cpu: int | None, built: dict[str, str], stack: ExitStack
    ) -> None:
        order = json.dumps({**scene._asdict(), **built, "cpu": cpu})
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, HERE / "scene.py", order],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        assert process.stdin
        assert process.stdout
        self.questions, self.answers = process.stdin, process.stdout

    def play(self, names: Sequence[str], count: int, *, loop: bool) -> dict[str, list[int]]:
        """The nanoseconds of each contestant."""
        self.questions.write(json.dumps({"names": names, "count": count, "loop": loop}) + "\n")
        self.questions.flush()
        answer: dict[str, list[int]] = json.loads(self.answers.readline())
        return answer


def available_memory() -> int:
    """What could be allocated now, in bytes."""
    with Path("/proc/meminfo").open() as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def plays(asked: set[tuple[str, str]]) -> list[tuple[str, list[str], int]]:
    """What is played each turn: a group, its contestants, how often. Those that fork are apart."""
    found = []
    for group, contest in CONTESTS.items():
        names = [name for name in contest.names if (group, name) in asked]
        for forking, count in ((False, ROUNDS), (True, ROUNDS_OF_FORKS)):
            chosen = [name for name in names if (name in FORKING) == forking]
            if chosen:
                found.append((group, chosen, count))
    return found


@pytest.fixture(scope="session")
def samples(
    wanted: list[dict[str, Any]], built: dict[str, str], pytestconfig: pytest.Config
) -> dict[tuple[str, str], list[float]]:
    """The seconds of every spawn of this run. Scenes take turns, and so do contestants in them."""
    asked = {(entry["group"], entry["name"]) for entry in wanted if "group" in entry}
    if os.geteuid() != 0:
        asked = {(group, name) for group, name in asked if name not in PRIVILEGED}
    if available_memory() < ENOUGH:
        asked = {(group, name) for group, name in asked if not CONTESTS[group].scene.heap}
    scenes = {CONTESTS[group].scene for group, _ in asked}
    cpu = None if pytestconfig.getoption("unpinned") else max(os.sched_getaffinity(0))
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in asked}
    with ExitStack() as stack:
        actors = {scene: Actor(scene, cpu, built, stack) for scene in scenes}
        order = plays(asked)
        for _ in range(TURNS):
            random.shuffle(order)
            for group, names, count in order:
                contest = CONTESTS[group]
                answer = actors[contest.scene].play(names, count, loop=contest.loop)
                for name, times in answer.items():
                    taken[group, name] += [time / 1e9 for time in times]
    return taken


@pytest.mark.parametrize(("group", "name"), parameters())
def test_spawn_and_wait(
    group: str,
    name: str,
    samples: dict[tuple[str, str], list[float]],
    play: Callable[[str, Sequence[float]], None],
) -> None:
    """From the call until the child's end was seen; the target does nothing."""
    if (group, name) not in samples:
        pytest.skip(f"less than {ENOUGH // GIB} GiB are available for heaps of 2 GiB")
    play(group, samples[group, name])
