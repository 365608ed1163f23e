"""Groups of processes: made, entered, looked at, frozen, killed, delegated, removed."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parent_snapshot import unchanged
from step_cases import NOBODY, apart, missing, output

from clonekit import Cgroup, DeclarationError, Process, SpawnError, Spec, nascent, spawn
from clonekit.linux import cgroup_parent, cgroup_tree

CGROUP2 = missing("cgroup")
SLEEP = ["/bin/sleep", "1000"]


@pytest.fixture
def group() -> Iterator[Cgroup]:
    """A group, and nothing that it leaves."""
    if CGROUP2:
        pytest.skip(CGROUP2)
    with unchanged(), Cgroup() as made:
        path = made.path
        yield made
    assert not Path(path).exists()


def test_a_program_begins_in_a_group_that_is_made_for_it(group: Cgroup) -> None:
    assert f"/{group.name}\n" in output(["cat", "/proc/self/cgroup"], cgroup=group)
    with spawn(SLEEP, cgroup=group) as process:
        assert group.pids() == [process.pid]
        assert group.populated
        assert group.events() == {"populated": 1, "frozen": 0}
    group.wait_empty(10)
    assert not group.populated
    assert group.pids() == []


def test_a_compiled_program_and_a_child_that_waits_begin_in_it_too(group: Cgroup) -> None:
    program = Spec(SLEEP, cgroup=group).program()
    with program.spawn() as one, program.spawn() as two, nascent(cgroup=group) as child:
        assert set(group.pids()) == {one.pid, two.pid, child.pid}


def test_a_group_alone_is_its_own_namespaces_root(group: Cgroup, need: object) -> None:
    need("user")  # type: ignore[operator]
    told = output(["cat", "/proc/self/cgroup"], cgroup=group, namespaces=["user", "cgroup"])
    assert "0::/\n" in told


def test_what_it_counts_is_read(group: Cgroup) -> None:
    spawn(["true"], cgroup=group).wait()
    assert group.stat()["nr_descendants"] == 0
    assert group.stat("cpu")["usage_usec"] > 0
    assert group.read("cgroup.type") == "domain\n"
    assert group.number("cgroup.max.depth") is None
    assert group.path.endswith(f"/{group.name}")
    assert group.name in repr(group)
    if Path(group.path, "cpu.pressure").exists():
        some = group.pressure("cpu")["some"]
        assert set(some) == {"avg10", "avg60", "avg300", "total"}
        assert isinstance(some["total"], int)
    with pytest.raises(FileNotFoundError):
        group.read("cgroup.nothing")


def test_a_frozen_group_stands_still_and_goes_on_when_thawed(group: Cgroup) -> None:
    reader, writer = os.pipe()
    with spawn(["sh", "-c", "read word; exit 3"], cgroup=group, fds={0: reader}) as process:
        group.freeze()
        assert group.events()["frozen"] == 1
        os.write(writer, b"go\n")
        with pytest.raises(TimeoutError):
            process.wait(0.05)
        with pytest.raises(TimeoutError, match=str(process.pid)):
            group.wait_empty(0.01)
        group.thaw()
        assert group.events()["frozen"] == 0
        assert process.wait(60).status == 3
    os.close(reader)
    os.close(writer)


def test_a_wait_ends_when_the_last_process_does(group: Cgroup) -> None:
    reader, writer = os.pipe()
    with (
        spawn(["sleep", "0.2"], fds={1: writer}),
        spawn(["cat"], cgroup=group, fds={0: reader, 1: 1}) as process,
    ):
        os.close(reader)
        os.close(writer)
        group.wait_empty()
        assert process.wait(60).status == 0


def families(group: Cgroup) -> list[Process]:
    """Two programs with two children each, one of them in a session of its own."""
    script = "setsid sleep 1000 & sleep 1000 & echo; wait"
    both = []
    for _ in range(2):
        reader, writer = os.pipe()
        both.append(spawn(["sh", "-c", script], cgroup=group, fds={1: writer}))
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
    return both


def test_a_kill_reaches_all_that_is_in_it(group: Cgroup) -> None:
    both = families(group)
    assert len(group.pids()) == 6
    group.kill()
    group.wait_empty(60)
    assert [each.wait(60).signal for each in both] == [signal.SIGKILL] * 2


def test_without_cgroup_kill_each_is_killed_by_its_pidfd(group: Cgroup) -> None:
    both = families(group)
    with Cgroup(parent=group) as inner, spawn(SLEEP, cgroup=inner) as below:
        inner.freeze()
        assert len(group.pids(below=True)) == 7
        cgroup_tree.kill_each(group.fileno())
        group.wait_empty(60)
        assert group.read("cgroup.freeze") == "0\n"
        assert below.wait(60).signal == signal.SIGKILL
    assert [each.wait(60).signal for each in both] == [signal.SIGKILL] * 2


def test_a_process_that_left_the_group_is_not_killed_as_one_of_it(group: Cgroup) -> None:
    with spawn(SLEEP) as outside:
        cgroup_tree.kill_member(group.fileno(), outside.pid)
        with pytest.raises(TimeoutError):
            outside.wait(0.05)


def test_a_group_that_we_are_in_is_not_killed(group: Cgroup) -> None:
    def inside() -> None:
        group.write("cgroup.procs", 0)
        for act in (group.kill, group.remove):
            with pytest.raises(RuntimeError, match="our own process is in"):
                act()

    assert apart(inside) == ""


@pytest.mark.skipif(bool(CGROUP2), reason=CGROUP2)
def test_a_spawn_that_fails_leaves_no_group() -> None:
    name = f"clonekit-failing-{os.getpid()}"
    with unchanged(), pytest.raises(SpawnError):
        spawn(["/nowhere"], cgroup=Cgroup(name))
    assert name not in os.listdir(cgroup_parent.own_path())


@pytest.mark.skipif(bool(CGROUP2), reason=CGROUP2)
def test_a_group_that_was_opened_stays() -> None:
    with Cgroup() as made:
        with Cgroup.open(made.path) as same, spawn(SLEEP, cgroup=same) as process:
            assert (same.name, same.pids()) == (made.name, [process.pid])
        assert "closed" in repr(same)
        with pytest.raises(ValueError, match="closed"):
            same.fileno()
        with pytest.raises(DeclarationError, match="closed"):
            spawn(["true"], cgroup=same)
        Cgroup.open(made.path).remove()
        assert not Path("/proc/self/fd", str(made.fileno()), "cgroup.procs").exists()
        with pytest.raises(SpawnError, match="has been removed"):
            spawn(["true"], cgroup=made)


@pytest.mark.skipif(bool(CGROUP2), reason=CGROUP2)
def test_another_group_of_the_same_name_is_not_removed() -> None:
    with Cgroup() as made:
        path = made.path
        os.rmdir(path)
        os.mkdir(path)
    assert Path(path).exists()
    os.rmdir(path)


@pytest.mark.skipif(bool(CGROUP2), reason=CGROUP2)
def test_a_copy_of_us_removes_nothing() -> None:
    with Cgroup() as made, spawn(SLEEP, cgroup=made) as process:

        def leave() -> None:
            with made:
                pass
            made.close()

        assert apart(leave) == ""
        assert made.pids() == [process.pid]


@pytest.mark.skipif(bool(CGROUP2), reason=CGROUP2)
def test_a_name_is_what_it_is_called_and_is_there_once() -> None:
    with Cgroup(f"clonekit-é {os.getpid()}") as made:
        with pytest.raises(FileExistsError):
            Cgroup(made.name)
        with Cgroup("cgroup kill", parent=made.path) as inner:
            assert Path(inner.path).parent == Path(made.path)
    assert not made.name.startswith("clonekit-0")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\nb", "a\0b", "x" * 256, 5])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(DeclarationError, match="is no name"):
        Cgroup(name)


@pytest.mark.parametrize("parent", ["/nowhere", "/tmp", "/proc", sys.executable])
def test_a_parent_that_is_no_group_of_version_2_is_refused(parent: str) -> None:
    with unchanged(), pytest.raises(DeclarationError, match="cgroup2"):
        Cgroup(parent=parent)


def test_a_file_of_a_group_is_named_without_slashes(group: Cgroup) -> None:
    for attempt in (
        lambda: group.read("../cgroup.procs"),
        lambda: group.write("/tmp/x", 1),
        lambda: group.stat("../cgroup"),
    ):
        with pytest.raises(DeclarationError, match="is no name"):
            attempt()


@pytest.mark.parametrize("owner", ["root", (1,), (1, 2, 3), -5, True])
def test_an_owner_is_a_uid_or_a_pair(owner: object) -> None:
    with pytest.raises(DeclarationError, match="write a uid"):
        Cgroup(owner=owner)  # type: ignore[arg-type]


def test_an_unprivileged_user_is_told_of_delegation(group: Cgroup, need: object) -> None:
    need("setuid")  # type: ignore[operator]

    def attempt() -> None:
        group.write("cgroup.procs", 0)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        with pytest.raises(PermissionError, match="Delegate=yes"):
            Cgroup()
        with pytest.raises(PermissionError, match="delegated to us"):
            Cgroup(parent=group)

    assert apart(attempt) == ""


@pytest.mark.skipif(not CGROUP2 or os.geteuid() == 0, reason="groups can be made here")
def test_where_no_group_can_be_made_it_says_what_would_do() -> None:
    with (
        unchanged(),
        pytest.raises((PermissionError, DeclarationError), match=r"Delegate=yes|version 2"),
    ):
        Cgroup()


@pytest.mark.skipif(bool(CGROUP2), reason=CGROUP2)
@pytest.mark.parametrize("call", ["mkdir", "close"])
def test_an_interrupt_while_it_is_made_leaves_no_group(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    there = cgroup_parent.own_path()
    before, real = set(os.listdir(there)), getattr(os, call)

    def interrupted(*arguments: Any, **named: Any) -> None:
        real(*arguments, **named)
        if call == "mkdir" or set(os.listdir(there)) != before:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, call, interrupted)
        with pytest.raises(KeyboardInterrupt):
            Cgroup()
    gc.collect()
    assert set(os.listdir(there)) == before
