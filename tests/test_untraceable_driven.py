"""Nobody writes the parent's memory beside a child that does not hold it, or waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from attacking import (
    Victim,
    Waiting,
    attacker,
    forks,
    hammer,
    lowered,
    namespace,
    outsider,
    see,
    victim,
)
from test_asks import ask, ask_awake

from clonekit import Process, Program
from clonekit.steps import (
    execute,
    join_namespaces,
    new_session,
    set_umask,
)

Need = Callable[[str], None]

__all__ = ["namespace", "outsider", "see", "victim"]  # fixtures

pytestmark = pytest.mark.usefixtures("no_hang")


def test_no_process_of_the_new_uid_writes_our_memory_beside_a_child_that_is_driven(
    built: Path, victim: Victim, outsider: dict[str, object], see: int
) -> None:
    last = execute(["see", "-"], see, env={})
    absent = execute(["/nonexistent"], env={})
    driven = [
        Program([*lowered(), last], deadline=60),
        Program([new_session(), *lowered(), absent], deadline=60),
        Waiting(*lowered(), last),
        Waiting(*lowered(), absent),
        Waiting(set_umask(0), *lowered(), set_umask(0), last),
    ]
    with attacker(built, victim, **outsider):
        hammer(victim, driven, [forks])


def test_no_root_of_a_joined_user_namespace_writes_us_beside_a_child_that_is_driven(
    built: Path, victim: Victim, namespace: Process, see: int
) -> None:
    joins = join_namespaces(namespace.pidfd, "user")
    last = execute(["see", "-"], see, env={})
    driven = [Program([joins, last], deadline=60), Waiting(joins, last)]
    with attacker(built, victim, join=[(namespace.pidfd, ["user"])]):
        hammer(victim, driven, [])


def slowly(_: object) -> None:
    """What takes us long enough for a look at the child, and for more than one try."""
    time.sleep(0.001)


def test_no_process_of_the_new_uid_writes_us_while_the_child_waits_for_what_it_has_asked(
    built: Path, victim: Victim, outsider: dict[str, object], see: int
) -> None:
    last = execute(["see", "-"], see, env={})
    asking = [
        Program([*lowered(), ask(slowly), last]),
        Program([*lowered(), ask_awake(slowly), last]),
    ]
    with attacker(built, victim, **outsider):
        hammer(victim, asking, [])


def test_no_root_of_a_joined_user_namespace_writes_us_while_the_child_waits(
    built: Path, victim: Victim, namespace: Process, see: int
) -> None:
    joined = join_namespaces(namespace.pidfd, "user")
    asking = Program([joined, ask(slowly), execute(["see", "-"], see, env={})])
    with attacker(built, victim, join=[(namespace.pidfd, ["user"])]):
        hammer(victim, [asking], [])
