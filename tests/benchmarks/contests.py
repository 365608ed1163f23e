"""Contests: who is compared with whom, and the processes in which they are.

Scenes take turns, and so do the contestants in them.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

HERE = Path(__file__).resolve().parent
GIB = 1 << 30
#: For two large heaps, and a fork of one.
ENOUGH = 5 * GIB
TURNS = 40
ROUNDS = 20
#: A fork of a large heap takes as long as a hundred spawns.
ROUNDS_OF_FORKS = 2


class Scene(NamedTuple):
    """The state of the process that spawns, which runs this script; `way` is how, if it asks.

    One that roams is where the scheduler likes, whatever the others share.
    """

    heap: int = 0
    descriptors: int = 0
    pipes_last: bool = False
    script: str = "scene.py"
    way: str = ""
    roams: bool = False


class Contest(NamedTuple):
    """One group: who is compared, and where; who of them forks; every which turn it is played."""

    scene: Scene
    names: tuple[str, ...]
    loop: bool = False
    forking: tuple[str, ...] = ()
    root_only: bool = False
    every: int = 1


def parameters(contests: Mapping[str, Contest]) -> list[Any]:
    """Each contestant of each contest."""
    found = []
    for group, contest in contests.items():
        barred = contest.root_only and os.geteuid() != 0
        marks = [pytest.mark.skipif(barred, reason="only root may change to another uid")]
        found += [
            pytest.param(group, name, id=f"{group}: {name}", marks=marks) for name in contest.names
        ]
    return found


class Actor:
    """A process that plays one scene."""

    def __init__(
        self, scene: Scene, cpu: int | None, built: dict[str, str], stack: ExitStack
    ) -> None:
        order = json.dumps({**scene._asdict(), **built, "cpu": None if scene.roams else cpu})
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, HERE / scene.script, order],
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


def asked(
    contests: Mapping[str, Contest], wanted: Sequence[dict[str, Any]]
) -> set[tuple[str, str]]:
    """The contestants of this run, by group and name, that can be compared here."""
    enough = available_memory() >= ENOUGH
    return {
        (entry["group"], entry["name"])
        for entry in wanted
        if (contest := contests.get(entry.get("group", "")))
        and (enough or not contest.scene.heap)
        and (os.geteuid() == 0 or not contest.root_only)
    }


def plays(
    contests: Mapping[str, Contest], keys: set[tuple[str, str]]
) -> list[tuple[str, list[str], int]]:
    """What is played each turn: a group, its contestants, how often. Those that fork are apart."""
    found = []
    for group, contest in contests.items():
        names = [name for name in contest.names if (group, name) in keys]
        for forking, count in ((False, ROUNDS), (True, ROUNDS_OF_FORKS)):
            chosen = [name for name in names if (name in contest.forking) == forking]
            if chosen:
                found.append((group, chosen, count))
    return found


def samples_of(
    contests: Mapping[str, Contest],
    wanted: Sequence[dict[str, Any]],
    built: dict[str, str],
    cpu: int | None,
) -> dict[tuple[str, str], list[float]]:
    """The seconds of every spawn of these contests' part of a run."""
    keys = asked(contests, wanted)
    scenes = {contests[group].scene for group, _ in keys}
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in keys}
    with ExitStack() as stack:
        actors = {scene: Actor(scene, cpu, built, stack) for scene in scenes}
        order = plays(contests, keys)
        for turn in range(TURNS):
            random.shuffle(order)
            for group, names, count in order:
                contest = contests[group]
                if turn % contest.every:
                    continue
                answer = actors[contest.scene].play(names, count, loop=contest.loop)
                for name, times in answer.items():
                    taken[group, name] += [time / 1e9 for time in times]
    return taken


def shown(
    samples: Mapping[tuple[str, str], list[float]],
    group: str,
    name: str,
    play: Callable[[str, Sequence[float]], None],
) -> None:
    """Record the seconds of one contestant, if it could be compared here."""
    if (group, name) not in samples:
        pytest.skip(f"less than {ENOUGH // GIB} GiB are available for heaps of 2 GiB")
    play(group, samples[group, name])
