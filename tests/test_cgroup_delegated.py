"""Groups that are given away: what their owner may do, and that they are removed all the same."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from parent_snapshot import unchanged
from step_cases import NOBODY, apart, missing

from clonekit import Cgroup, spawn

NEEDED = missing("cgroup") or missing("setuid")
pytestmark = pytest.mark.skipif(bool(NEEDED), reason=NEEDED)
SLEEP = ["/bin/sleep", "1000"]


@pytest.fixture
def group() -> Iterator[Cgroup]:
    """A group that is delegated to nobody, and nothing that it leaves."""
    with unchanged(), Cgroup(owner=(NOBODY, NOBODY)) as made:
        path = made.path
        yield made
    assert not Path(path).exists()


def as_owner(group: Cgroup, act: Callable[[], object]) -> str:
    """Why this fails when the group's owner does it from inside; "" if it does not."""

    def inside() -> None:
        group.write("cgroup.procs", 0)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        act()

    return apart(inside)


def test_what_may_be_given_away_is_and_the_rest_is_not(group: Cgroup) -> None:
    owners = {name: os.stat(Path(group.path, name)).st_uid for name in os.listdir(group.path)}
    given = {name for name, uid in owners.items() if uid == NOBODY}
    assert {"cgroup.procs", "cgroup.threads", "cgroup.subtree_control"} <= given
    assert os.stat(group.path).st_uid == os.stat(group.path).st_gid == NOBODY
    listed = Path("/sys/kernel/cgroup/delegate")
    if listed.exists():
        assert given == set(listed.read_text().split()) & set(owners)


def test_its_owner_divides_it_without_privilege(group: Cgroup) -> None:
    def act() -> None:
        with Cgroup(limits={"cgroup.max.descendants": 3}) as inner:
            assert Path(inner.path).parent.name == group.name
            with spawn(SLEEP, cgroup=inner) as process:
                assert inner.pids() == [process.pid]
                inner.freeze()
            inner.wait_empty(60)
        assert [Path(each).name for each in Path(group.path).iterdir() if each.is_dir()] == []

    assert as_owner(group, act) == ""


def test_its_owner_cannot_change_its_limits_or_leave_it(group: Cgroup) -> None:
    group.set({"cgroup.max.descendants": 2})
    outside = str(Path(group.path).parent)

    def act() -> None:
        for attempt in (
            lambda: group.set({"cgroup.max.descendants": 5}),
            lambda: group.write("cgroup.freeze", 1),
            lambda: Path(outside, "cgroup.procs").write_text("0"),
            lambda: os.mkdir(f"{outside}/clonekit-out"),
            lambda: os.rmdir(group.path),
        ):
            with pytest.raises(OSError, match=r"Permission|busy"):
                attempt()
        for n in range(2):
            os.mkdir(f"{group.path}/{n}")
        with pytest.raises(OSError, match="unavailable"):
            os.mkdir(f"{group.path}/3")

    assert as_owner(group, act) == ""


def test_groups_that_the_child_made_are_removed_whatever_they_are_called(group: Cgroup) -> None:
    names = [b"a b", b"\xff\xfe", b"-rf", "Ω".encode(), b"x" * 255, b"\\", b"cgroup.fake", b"\x01"]

    def act() -> None:
        for name in names:
            os.mkdir(os.fsencode(group.path) + b"/" + name)

    assert as_owner(group, act) == ""
    assert group.stat()["nr_descendants"] == len(names)


def test_no_depth_stops_the_removal(group: Cgroup) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    depth = 300

    def act() -> None:
        os.chdir(group.path)
        for _ in range(depth):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
        Path("cgroup.procs").write_text("0")
        spawn(["setsid", *SLEEP])
        spawn(["setsid", *SLEEP])

    assert as_owner(group, act) == ""
    assert group.stat()["nr_descendants"] == depth
    assert len(group.pids(below=True)) == 2
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        group.remove()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_frozen_and_threaded_groups_below_are_removed(group: Cgroup) -> None:
    def act() -> None:
        for name in ("frozen", "threads", "threads/inner"):
            os.mkdir(f"{group.path}/{name}")
        with Cgroup.open(f"{group.path}/threads") as threads:
            threads.write("cgroup.procs", 0)
            with Cgroup.open(f"{group.path}/threads/inner") as inner:
                inner.write("cgroup.type", "threaded")
                spawn(SLEEP)
                inner.write("cgroup.threads", os.getpid())
                spawn(SLEEP)
                assert inner.pids() == [], "its processes are those of the group above"
        with Cgroup.open(f"{group.path}/frozen") as frozen:
            spawn(SLEEP, cgroup=frozen)
            frozen.freeze()

    assert as_owner(group, act) == ""
    assert len(group.pids(below=True)) == 3


def test_rights_that_a_process_of_our_own_uid_takes_away_do_not_stop_the_removal(
    group: Cgroup,
) -> None:
    script = """
cd $0 && mkdir -p a/b/c && echo 0 > a/b/cgroup.procs || exit 1
chmod 0 cgroup.* */cgroup.* */*/cgroup.* a/b/c a/b a .
exec sleep 1000
"""

    def act() -> None:
        with Cgroup() as inner, spawn(["sh", "-c", script, inner.path]) as process:
            while os.stat(inner.path).st_mode & 0o777:
                assert process.poll() is None
            inner.remove()
            assert process.wait().signal == signal.SIGKILL

    assert as_owner(group, act) == ""


def test_a_process_that_is_always_another_is_killed(group: Cgroup) -> None:
    script = "f() { f & }; f"  # each forks the next and ends: a list of pids is old at once

    assert as_owner(group, lambda: spawn(["sh", "-c", script])) == ""
    assert group.populated
    group.remove()


def test_an_accomplice_who_goes_on_making_groups_does_not_stop_the_removal(group: Cgroup) -> None:
    path = group.path
    pid = os.fork()
    if pid == 0:  # from outside, as another process of its owner's could
        for n in itertools.count():
            try:
                os.mkdir(f"{path}/{n}")
            except FileNotFoundError:
                os._exit(0)
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    os._exit(1)
    while not group.stat()["nr_descendants"]:
        pass
    group.remove()
    assert os.waitpid(pid, 0)[1] == 0


def test_a_leader_that_ends_leaves_its_children_in_the_group(group: Cgroup) -> None:
    fields = {"uid": NOBODY, "gid": NOBODY, "cgroup": group}
    with spawn(["sh", "-c", "setsid sleep 1000 & exit 4"], **fields) as process:
        assert process.wait(60).status == 4
    (left,) = group.pids()
    pidfd = os.pidfd_open(left)
    group.remove()
    assert select.select([pidfd], [], [], 60)[0], "it has ended"
    os.close(pidfd)
