"""Each step of clonekit.steps.limits does what it says, and says what the kernel refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from step_cases import Case, Room, cases_of, check

from clonekit import enter, spawn


@pytest.mark.usefixtures("needs")
@pytest.mark.parametrize("case", cases_of("limits"), ids=str)
def test_a_step_does_what_its_case_says(case: Case, room: Room) -> None:
    check(case, room)


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes a container of root's")
def test_our_score_is_not_written_where_a_container_says(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.touch()
    script = (
        "mount -t tmpfs none /proc && mkdir /proc/self &&"
        f"ln -s {victim} /proc/self/oom_score_adj && echo && exec sleep 1000"
    )
    reader, writer = os.pipe2(os.O_CLOEXEC)
    argv, fds = ["sh", "-c", script], {1: writer, 2: 2}
    with spawn(argv, namespaces=["mnt"], propagation="private", fds=fds) as container:
        os.read(reader, 1)
        with enter(container, ["sleep", "1000"], oom_score_adj=77) as process:
            assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "77\n"
    assert not victim.read_text()
    os.close(reader)
    os.close(writer)
