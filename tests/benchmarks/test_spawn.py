"""Spawn and wait, by heap and by descriptors: ours, `subprocess`, and what C can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from contests import GIB, Contest, Scene, parameters, samples_of, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MANY = 1000

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
FORK = ("fork",)

CONTESTS = {
    "small heap, few descriptors": Contest(Scene(), CHEAP + FORK, forking=FORK),
    "2 GiB heap, few descriptors": Contest(Scene(heap=2 * GIB), CHEAP + FORK, forking=FORK),
    "small heap, 1,000 descriptors": Contest(Scene(descriptors=MANY), CHEAP + FORK, forking=FORK),
    "2 GiB heap, 1,000 descriptors": Contest(
        Scene(heap=2 * GIB, descriptors=MANY), CHEAP + FORK, forking=FORK
    ),
    "small heap, 1,000 descriptors, pipes opened last": Contest(
        Scene(descriptors=MANY, pipes_last=True), PLACING + FORK, forking=FORK
    ),
    "small heap, few descriptors, in a loop": Contest(Scene(), CHEAP, loop=True),
    "2 GiB heap, credentials, limits and a filter": Contest(
        Scene(heap=2 * GIB), PRIVILEGED, forking=PRIVILEGED[1:], root_only=True
    ),
}


@pytest.fixture(scope="session")
def samples(
    wanted: list[dict[str, Any]], built: dict[str, str], cpu: int | None
) -> dict[tuple[str, str], list[float]]:
    """The seconds of every spawn of this run."""
    return samples_of(CONTESTS, wanted, built, cpu)


@pytest.mark.parametrize(("group", "name"), parameters(CONTESTS))
def test_spawn_and_wait(
    group: str,
    name: str,
    samples: dict[tuple[str, str], list[float]],
    play: Callable[[str, Sequence[float]], None],
) -> None:
    """From the call until the child's end was seen; the target does nothing."""
    shown(samples, group, name, play)
