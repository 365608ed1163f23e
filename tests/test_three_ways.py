"""The same steps make the same program: compiled, one by one in a child that waits, after exec."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from parent_snapshot import STATUS as OF_STATUS
from step_cases import (
    CASES,
    MOUNTINFO,
    STAT,
    STATUS,
    Case,
    Room,
    apart,
    install,
    refusing,
)
from ways import NUMBERS, RUNS, Run

from clonekit.steps.step import KINDS

SUCCEEDING = [case for case in CASES if not case.fails]
#: Steps whose effect is the exec's, with the reason.
NOT_AFTER_EXEC = {
    "change_root": "the program is found in the root that it begins with",
    "raise_ambient": "exec computes capabilities from it",
    "set_securebits": "exec looks at them",
    "keep_capabilities": "exec clears it",
    "bound_capabilities": "exec computes capabilities from it",
    "set_capabilities": "exec computes them anew",
    "set_uid": "exec copies the effective to the saved one",
    "set_gid": "exec copies the effective to the saved one",
    "nothing_mounted": "a program must be found",
    "furnish_network": "a program that is held asks nobody",
    "run_init": "a program that is loaded is not forked",
    "the_pid_namespace_of_another": "a program that is loaded is not forked",
}


#: Joins that a process cannot make while it shares its memory.
FROM_FIRST_STAGE = {"the_pid_namespace_of_another"}


def outcome(run: Run, case: Case, room: Room) -> tuple[str, int | None, dict[str, bytes]]:
    """What the program prints, how it ends, and what files there are then."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(reader, errors="replace") as told:
        try:
            process = run(case.steps(room), case.argv, writer)
        finally:
            os.close(writer)
        with process:
            text = told.read()
            status = process.wait().status
    files = {
        str(path.relative_to(room.path)): path.read_bytes()
        for path in room.path.rglob("*")
        if path.is_file()
    }
    return text, status, files


def comparable(text: str, argv: tuple[str, ...]) -> object:
    """What must be the same whichever way: numbers of pids, files and addresses are not."""
    if argv == STATUS:
        rows = dict(row.split(":\t", 1) for row in text.splitlines() if ":\t" in row)
        return {name: rows.get(name) for name in OF_STATUS if name != "Seccomp_filters"}
    if argv == STAT:
        return [text.rpartition(")")[2].split()[n - 3] for n in (18, 19, 40, 41)]
    if argv[-1] in {"/proc/net/unix", "/proc/keys", "/proc/self/numa_maps", "/proc/self/cgroup"}:
        return None
    if argv == MOUNTINFO:  # ids of mounts, which count all on the machine
        return [NUMBERS.sub("N", row).split()[3:] for row in text.splitlines()]
    return NUMBERS.sub("N", text)


def ways_of(case: Case) -> dict[str, Run]:
    """The ways in which this case can be said."""
    ways = dict(RUNS)
    of_own_memory = case.step != "join_namespaces" and KINDS[case.step].apart
    if of_own_memory or case.step == "set_oom_score_adj" or case.name in FROM_FIRST_STAGE:
        del ways["one by one"]
    if case.step in NOT_AFTER_EXEC or case.name in NOT_AFTER_EXEC:
        del ways["after exec"]
    return ways


def compare(case: Case, path: Path, see: Path) -> None:
    """Run a case in each of its ways, and compare what is seen."""
    told = {}
    for name, run in ways_of(case).items():
        where = path / name.replace(" ", "-")
        where.mkdir()
        room = Room(where, see)
        with room.stack:
            text, status, files = outcome(run, case, room)
            assert case.sees(text), (name, text)
            assert status == 0, (name, text)
            told[name] = comparable(text, case.argv), files
    for name, seen in told.items():
        assert seen == told["compiled"], name


@pytest.mark.usefixtures("needs", "no_hang")
@pytest.mark.parametrize("case", SUCCEEDING, ids=str)
def test_a_program_sees_the_same_whichever_way(case: Case, tmp_path: Path, built: Path) -> None:
    if case.refused:
        work = lambda: (install(refusing(case.refused)), compare(case, tmp_path, built / "see"))  # noqa: E731
        assert apart(work) == ""
    else:
        compare(case, tmp_path, built / "see")
