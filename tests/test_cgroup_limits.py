"""Limits by the kernel's names: checked before anything is made, and set where they can be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from parent_snapshot import unchanged
from step_cases import missing

from clonekit import Cgroup, DeclarationError, spawn
from clonekit.linux import cgroup2, cgroup_parent
from clonekit.linux.cgroup_limits import FILES, lines_of, unmet_of

CGROUP2 = missing("cgroup")
MIB = 1 << 20


@pytest.mark.parametrize(
    ("name", "value", "lines"),
    [
        ("memory.max", 64 * MIB, ["67108864"]),
        ("memory.max", "64M", ["64M"]),
        ("memory.high", "max", ["max"]),
        ("memory.min", "0", ["0"]),
        ("memory.oom.group", True, ["1"]),
        ("memory.zswap.writeback", 0, ["0"]),
        ("pids.max", 20, ["20"]),
        ("cpu.max", (50_000, 100_000), ["50000 100000"]),
        ("cpu.max", [50_000], ["50000"]),
        ("cpu.max", 50_000, ["50000"]),
        ("cpu.max", "max", ["max"]),
        ("cpu.max", ("max", 1_000), ["max 1000"]),
        ("cpu.max", "50000 100000", ["50000 100000"]),
        ("cpu.max.burst", 0, ["0"]),
        ("cpu.weight", 10_000, ["10000"]),
        ("cpu.weight.nice", "-20", ["-20"]),
        ("cpu.idle", 1, ["1"]),
        ("cpu.uclamp.max", 33.333, ["33.33"]),
        ("cpu.uclamp.min", "max", ["max"]),
        ("cpuset.cpus", "0-1,4", ["0-1,4"]),
        ("cpuset.cpus", range(2), ["0,1"]),
        ("cpuset.mems", [0], ["0"]),
        ("cpuset.cpus", "", [""]),
        ("cpuset.cpus.partition", "isolated", ["isolated"]),
        ("io.weight", 100, ["default 100"]),
        ("io.weight", {"default": 5, "8:0": 7}, ["default 5", "8:0 7"]),
        ("io.max", {"8:0": {"rbps": MIB, "wiops": "max"}, "8:16": {"riops": 1}},
         ["8:0 rbps=1048576 wiops=max", "8:16 riops=1"]),
        ("io.latency", {"8:0": {"target": 75_000}}, ["8:0 target=75000"]),
        ("io.prio.class", "idle", ["idle"]),
        ("misc.max", {"res_a": 3, "res_b": "max"}, ["res_a 3", "res_b max"]),
        ("rdma.max", {"mlx4_0": {"hca_handle": 2}}, ["mlx4_0 hca_handle=2"]),
        ("hugetlb.2MB.max", 2 * MIB, ["2097152"]),
        ("hugetlb.1GB.rsvd.max", "max", ["max"]),
        ("cgroup.max.depth", 3, ["3"]),
    ],
)  # fmt: skip
def test_a_limit_becomes_the_lines_that_the_kernel_takes(
    name: str, value: object, lines: list[str]
) -> None:
    assert lines_of({name: value}) == [(name, line) for line in lines]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory.max", -1),
        ("memory.max", 1.5),
        ("memory.max", True),
        ("memory.max", None),
        ("memory.max", "64 MB"),
        ("memory.max", "1\n2"),
        ("memory.max", 1 << 64),
        ("memory.oom.group", 2),
        ("pids.max", "many"),
        ("cpu.max", (50_000, 100_000, 1)),
        ("cpu.max", (999, 100_000)),
        ("cpu.max", (50_000, 1_000_001)),
        ("cpu.max", ()),
        ("cpu.max", 0.5),
        ("cpu.weight", 0),
        ("cpu.weight", 10_001),
        ("cpu.weight.nice", 20),
        ("cpu.uclamp.max", 101),
        ("cpuset.cpus", "0-"),
        ("cpuset.cpus", "a"),
        ("cpuset.cpus", [-1]),
        ("cpuset.cpus", 5),
        ("cpuset.cpus.partition", "yes"),
        ("io.weight", {"sda": 5}),
        ("io.max", {"8:0": {"speed": 1}}),
        ("io.max", {"sda": {"rbps": 1}}),
        ("io.max", {"8:0": 5}),
        ("io.max", {}),
        ("io.max", 5),
        ("io.prio.class", "best"),
        ("misc.max", 3),
        ("hugetlb.2MB.max", "x"),
    ],
)
def test_a_value_that_a_limit_does_not_take_is_refused(name: str, value: object) -> None:
    with unchanged(), pytest.raises(DeclarationError, match=name) as caught:
        Cgroup(limits={name: value})
    assert "write " in str(caught.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("memory.maximum", "memory.max"),
        ("memory_max", "memory.max"),
        ("pid.max", "pids.max"),
        ("cpus.weight", "cpu.weight"),
        ("cpuset.cpu", "cpuset.cpus"),
        ("../memory.max", "memory.max"),
    ],
)
def test_a_name_that_is_no_limit_is_refused_and_the_right_one_told(name: str, meant: str) -> None:
    with unchanged(), pytest.raises(DeclarationError, match=f"did you mean '{meant}'"):
        Cgroup(limits={name: 1})


@pytest.mark.parametrize("name", ["cgroup.kill", "cgroup.procs", "zzz", 5, "hugetlb.2MB.current"])
def test_a_file_that_is_no_limit_is_refused(name: str) -> None:
    with pytest.raises(DeclarationError, match="is no limit"):
        Cgroup(limits={name: 1})


def limited(limits: dict[str, Any]) -> Cgroup:
    """A group with these limits, or a skip where it has been tried and the kernel has them not."""
    if CGROUP2:
        pytest.skip(CGROUP2)
    try:
        return Cgroup(limits=limits)
    except (DeclarationError, FileNotFoundError) as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("cgroup.max.descendants", 3, "3\n"),
        ("cgroup.max.depth", "max", "max\n"),
        ("cgroup.pressure", False, "0\n"),
        ("hugetlb.2MB.max", "4M", "4194304\n"),
        ("memory.max", 64 * MIB, "67108864\n"),
        ("memory.high", "32M", "33554432\n"),
        ("memory.swap.max", 0, "0\n"),
        ("memory.oom.group", True, "1\n"),
        ("pids.max", 20, "20\n"),
        ("cpu.max", (50_000, 100_000), "50000 100000\n"),
        ("cpu.weight", 50, "50\n"),
        ("cpu.idle", 1, "1\n"),
        ("cpuset.cpus", [0], "0\n"),
        ("cpuset.mems", "0", "0\n"),
        ("io.weight", 50, "default 50\n"),
    ],
)
def test_a_limit_is_set_before_the_program_begins(name: str, value: object, says: str) -> None:
    with limited({name: value}) as group, spawn(["true"], cgroup=group) as process:
        assert group.read(name) == says
        assert process.wait(60).status == 0


def test_a_fork_bomb_stops_at_the_limit_of_pids() -> None:
    with limited({"pids.max": 20}) as group:
        script = "for n in $(seq 50); do sleep 1000 & done; wait"
        with open(os.devnull, "w") as null, spawn(
            ["sh", "-c", script], cgroup=group, fds={1: null, 2: null}
        ):  # fmt: skip
            while not group.events("pids")["max"]:
                pass
            assert group.number("pids.peak" if Path(group.path, "pids.peak").exists() else
                                "pids.current") <= 20  # fmt: skip


def test_a_program_that_wants_more_memory_than_it_may_have_is_killed() -> None:
    limits = {"memory.max": 64 * MIB, "memory.oom.group": True}
    with limited(limits) as group:
        script = "x=x; while :; do x=$x$x; done"
        with spawn(["sh", "-c", script], cgroup=group) as process:
            assert process.wait(120).signal == 9
        assert group.events("memory")["oom_kill"] >= 1
        assert group.stat("memory")["anon"] < 64 * MIB


@pytest.mark.parametrize(
    ("name", "line", "says", "unmet"),
    [
        ("cpuset.cpus", "0-1", "0-1\n", ""),
        ("cpuset.cpus", "0-1,4", "1\n", ""),
        ("cpuset.cpus", "1", "0,2-3\n", "cpuset.cpus.effective is '0,2-3'"),
        ("cpuset.mems", "1", "0\n", "cpuset.mems.effective is '0'"),
        ("cpuset.cpus", "", "0-3\n", ""),
        ("cpuset.cpus.partition", "root", "root\n", ""),
        ("cpuset.cpus.partition", "root", "root invalid (why)\n", "root invalid (why)"),
        ("memory.max", "1", "", ""),
    ],
)
def test_what_the_kernel_takes_and_does_not_give_is_noticed(
    name: str, line: str, says: str, unmet: str
) -> None:
    assert unmet_of(name, line, lambda _: says) == unmet


def test_a_processor_that_the_group_above_has_not_is_refused() -> None:
    with limited({"cpuset.cpus": "0"}) as outer:
        if (os.cpu_count() or 1) < 2:
            pytest.skip("there is one processor")
        with pytest.raises(OSError, match="does not hold"):
            Cgroup(parent=outer, limits={"cpuset.cpus": "1"})
        assert outer.stat()["nr_descendants"] == 0


def test_limits_can_be_changed_and_all_are_checked_first() -> None:
    with limited({"cgroup.max.depth": 5}) as group:
        group.set({"cgroup.max.depth": 7, "cgroup.max.descendants": 8})
        assert group.number("cgroup.max.depth") == 7
        with pytest.raises(DeclarationError, match="did you mean"):
            group.set({"cgroup.max.depth": 9, "cgroup.max.dept": 9})
        assert group.number("cgroup.max.depth") == 7
        with pytest.raises(OSError, match=r"cgroup\.max\.depth"):
            group.write("cgroup.max.depth", "many")


@pytest.mark.skipif(bool(CGROUP2), reason=CGROUP2)
def test_a_controller_that_version_1_has_is_named() -> None:
    old = cgroup_parent.version_1()
    for name in ("memory.max", "pids.max", "cpu.weight", "io.weight"):
        controller = name.partition(".")[0]
        if {"io": "blkio"}.get(controller, controller) not in old:
            continue
        told = rf"{controller} is a v1 controller here: {name} cannot be set"
        with unchanged(), pytest.raises(DeclarationError, match=told):
            Cgroup(limits={name: 100})


@pytest.mark.skipif(bool(CGROUP2), reason=CGROUP2)
def test_a_controller_that_is_not_given_on_is_named() -> None:
    with pytest.raises(DeclarationError, match="nonesuch controller"):
        Cgroup(controllers=["nonesuch"])
    with Cgroup() as outer:
        given = cgroup2.read(outer.fileno(), "cgroup.controllers").split()
        for controller in given[:1]:
            told = f"{controller} is not enabled"
            with Cgroup(parent=outer) as middle, pytest.raises(DeclarationError, match=told):
                Cgroup(parent=middle, controllers=controller)


def test_a_group_with_processes_gives_no_controllers_and_we_move_only_when_asked() -> None:
    from step_cases import apart

    with limited({}) as outer:
        given = outer.read("cgroup.controllers").split()
        if not given:
            pytest.skip("no controller is to be given on here")

        def inside() -> None:
            outer.write("cgroup.procs", 0)
            told = r"has our own process.*leaf=\"main\""
            with pytest.raises(DeclarationError, match=told):
                Cgroup(controllers=given)
            assert [each for each in os.scandir(outer.path) if each.is_dir()] == []
            for _ in range(2):
                with Cgroup(controllers=given, leaf="main") as made:
                    assert made.read("cgroup.controllers").split() == given
                    assert Path(made.path).parent == Path(outer.path)
                    spawn(["true"], cgroup=made).wait()
            assert cgroup_parent.own_path() == f"{outer.path}/main"

        assert apart(inside) == ""

    with limited({}) as outer, spawn(["/bin/sleep", "1000"], cgroup=outer) as process:
        told = rf"has processes \[{process.pid}\]"
        with pytest.raises(DeclarationError, match=told):
            Cgroup(parent=outer, controllers=given, leaf="main")


def test_every_limit_is_one_of_a_controller_that_the_kernel_has_a_name_for() -> None:
    known = {"cgroup", "cpu", "cpuset", "dmem", "io", "memory", "misc", "pids", "rdma"}
    assert {name.partition(".")[0] for name in FILES} == known
