"""`clonekit.Popen` beside `subprocess.Popen`, from the call until the end was seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from contests import GIB, Contest, Scene, parameters, samples_of, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MANY = 1000
#: The heap of a program of some size.
SOME = GIB // 4
NAMES = ("clonekit", "subprocess")
#: The standard library makes no vfork where ids change.
FORKS = ("subprocess",)


def contest(way: str, *, loop: bool = False, **state: Any) -> Contest:
    """Both, in one way."""
    return Contest(Scene(script="popens.py", way=way, **state), NAMES, loop)


def changing_ids(way: str, heap: int = 0) -> Contest:
    """The same, where ids change."""
    return contest(way, heap=heap)._replace(forking=FORKS, root_only=True, every=2 if heap else 1)


CONTESTS = {
    "plain": contest("plain"),
    "plain, each in a loop": contest("plain", loop=True),
    "new arguments each time": contest("new_argv"),
    "a name, searched in PATH": contest("path"),
    "cwd=": contest("cwd"),
    "start_new_session=": contest("session"),
    "stdout=PIPE, communicate": contest("pipe"),
    "1,000 descriptors": contest("plain", descriptors=MANY),
    "1,000 descriptors, stdout=PIPE, communicate": contest("pipe", descriptors=MANY),
    "user=, group=": changing_ids("user"),
    "user=, group=, 256 MiB heap": changing_ids("user", SOME),
    "user=, group=, 2 GiB heap": changing_ids("user", 2 * GIB),
    "user=, group=, extra_groups=[]": changing_ids("groups"),
    "user=, group=, extra_groups=[], 256 MiB heap": changing_ids("groups", SOME),
    "user=, group=, extra_groups=[], 2 GiB heap": changing_ids("groups", 2 * GIB),
    "asyncio, exec and wait": contest("aio"),
    "asyncio, exec and wait, where the scheduler likes": contest("aio", roams=True),
    "asyncio, ten at once": contest("aio_ten"),
    "asyncio, ten at once, where the scheduler likes": contest("aio_ten", roams=True),
    "asyncio, stdout=PIPE, communicate": contest("aio_pipe"),
    "a shell's pipeline, communicate": contest("pipeline"),
}


@pytest.fixture(scope="session")
def samples(
    wanted: list[dict[str, Any]], built: dict[str, str], cpu: int | None
) -> dict[tuple[str, str], list[float]]:
    """The seconds of every child of this run."""
    return samples_of(CONTESTS, wanted, built, cpu)


@pytest.mark.parametrize(("group", "name"), parameters(CONTESTS))
def test_popen(
    group: str,
    name: str,
    samples: dict[tuple[str, str], list[float]],
    play: Callable[[str, Sequence[float]], None],
) -> None:
    """The target does nothing; the pipeline does little."""
    shown(samples, group, name, play)
