"""Many steps at once make the same program, whichever way they are carried out."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from parent_snapshot import STATUS as OF_STATUS
from step_cases import (
    NOBODY,
    Room,
    privileged,
    refusing,
    short,
)
from ways import NUMBERS, RUNS, Run

from clonekit import Slot
from clonekit.linux.abi import lib
from clonekit.steps import (
    bind_socket,
    change_directory,
    close_descriptor,
    ignore_signals,
    install_seccomp_filter,
    keep_capabilities,
    listen_socket,
    new_session,
    open_file,
    open_memory,
    open_pipe,
    open_socket,
    place_descriptors,
    raise_ambient,
    reset_signals,
    set_affinity,
    set_attribute,
    set_capabilities,
    set_gid,
    set_groups,
    set_host_name,
    set_io_priority,
    set_nice,
    set_no_new_privs,
    set_personality,
    set_rlimit,
    set_scheduler,
    set_signal_mask,
    set_timer_slack,
    set_uid,
    set_umask,
    system_call,
    write,
    write_file,
)
from clonekit.steps.step import Step

SHOWN = """
umask; pwd -P; nice; ulimit -Sn; ulimit -Hc; uname -n; uname -r; ionice
cat <&7; cat <&8; cat <&9; readlink /proc/self/fd/9
cat /proc/self/timerslack_ns /proc/self/personality written
grep -c three-ways /proc/self/mounts; echo ready; read line
"""


def plain(room: Room) -> list[Step]:
    """What takes no privilege."""
    (room.path / "in").write_text("from a file\n")
    reader, writer = os.pipe2(os.O_CLOEXEC)
    room.keep(reader)
    room.stack.callback(os.close, writer)
    return [
        new_session(), open_file(room.path / "in", name="in"),
        open_pipe("r", "w"), write(Slot("w"), b"through a pipe\n"), close_descriptor(Slot("w")),
        open_memory("three-ways", name="m"), write(Slot("m"), b"unread\n"),
        open_socket(socket.AF_UNIX, socket.SOCK_STREAM, name="s"),
        bind_socket(Slot("s"), short(room, "bound")), listen_socket(Slot("s")),
        change_directory(room.path),
        write_file("written", b"by a step\n", os.O_WRONLY | os.O_CREAT), set_umask(0o027),
        place_descriptors(
            {0: reader, 7: Slot("in"), 8: Slot("r"), 9: Slot("m"), 10: Slot("s"), 60: reader}
        ),
        set_rlimit("nofile", 64, 99), set_rlimit("core", 0, 0),
        set_scheduler("batch"), set_nice(5), set_affinity([min(os.sched_getaffinity(0))]),
        set_io_priority("be", 6), set_timer_slack(7777), set_personality(["uname26"]),
        reset_signals(["INT", "QUIT", "PIPE", "XFSZ"]), ignore_signals(["HUP", "USR1"]),
    ]  # fmt: skip


def bare(room: Room) -> list[Step]:
    """The same with a sandbox, and signals blocked."""
    return [
        *plain(room), set_no_new_privs(),
        install_seccomp_filter(refusing({"acct": 1})), set_signal_mask(["TERM", 40]),
    ]  # fmt: skip


def apart_from_us(room: Room) -> list[Step]:
    """The same in namespaces of its own, furnished."""
    where = os.fsencode(room.path) + b"\0"
    mount = system_call("mount", b"three-ways\0", where, b"tmpfs\0", 0, b"size=64k\0")
    whole = system_call("mount", b"none\0", b"/\0", 0, lib.MS_REC | lib.MS_PRIVATE, 0)
    first, *rest = plain(room)
    return [
        *privileged("uts", "mount", "ipc"),
        set_host_name("elsewhere"),
        first,
        rest[0],
        whole,
        mount,
        *rest[1:],
    ]


def lesser(room: Room) -> list[Step]:
    """The same as another user, with a capability."""
    names = ["net_raw"]
    return [
        *plain(room), keep_capabilities(), set_groups([7]), set_gid(NOBODY), set_uid(NOBODY),
        set_capabilities(names, None, names), raise_ambient(names),
        set_attribute("set_keepcaps", 0),
    ]  # fmt: skip


def state(pid: int) -> dict[str, object]:
    """What /proc tells of a process, but for what is different in each."""
    own = Path(f"/proc/{pid}")
    rows = dict(
        row.split(":\t", 1) for row in (own / "status").read_text().splitlines() if ":\t" in row
    )
    numbers = (own / "stat").read_text().rpartition(")")[2].split()
    found: dict[str, object] = {name: rows.get(name) for name in OF_STATUS}
    found |= {f"stat {n}": numbers[n - 3] for n in (7, 18, 19, 40, 41)}
    found |= {name: (own / name).read_bytes() for name in ("cmdline", "environ", "limits", "comm")}
    found |= {
        name: (own / name).read_bytes() for name in ("oom_score_adj", "cgroup", "personality")
    }
    found |= {name: os.readlink(own / name) for name in ("root", "exe")}
    found |= {"leads": (numbers[2], numbers[3]) == (str(pid), str(pid))}
    found |= {
        name: os.readlink(own / "ns" / name) == os.readlink(f"/proc/self/ns/{name}")
        for name in os.listdir(own / "ns")
    }
    return found | {f"fd {n}": open_file_of(pid, n) for n in os.listdir(own / "fd")}


def open_file_of(pid: int, n: str) -> list[str]:
    """What a descriptor is: its file, its place in it and its flags."""
    link = NUMBERS.sub("N", os.readlink(f"/proc/{pid}/fd/{n}")).rpartition("/")[2]
    return [link, *Path(f"/proc/{pid}/fdinfo/{n}").read_text().splitlines()[:2]]


def whole(run: Run, steps: list[Step], room: Room) -> tuple[str, dict[str, object]]:
    """What a program prints that many steps have made, and what /proc says of it."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(reader, errors="replace") as told:
        try:
            process = run(steps, ("sh", "-c", SHOWN), writer)
        finally:
            os.close(writer)
        with process:
            text = "".join(iter(told.readline, "ready\n"))
            return text.replace(str(room.path), "ROOM"), state(process.pid)


@pytest.mark.usefixtures("no_hang")
@pytest.mark.parametrize(
    ("make", "needed"),
    [(plain, ()), (bare, ()), (apart_from_us, ("uts", "mount")), (lesser, ("setuid",))],
)
def test_a_program_of_many_steps_is_the_same_whichever_way(
    make: Callable[[Room], list[Step]],
    needed: tuple[str, ...],
    tmp_path: Path,
    need: Callable[[str], None],
) -> None:
    for name in needed:
        need(name)
    told = {}
    for name, run in RUNS.items():
        if make is lesser and name == "after exec":
            continue  # exec computes capabilities
        room = Room(tmp_path / name.replace(" ", "-"))
        room.path.mkdir()
        tmp_path.chmod(0o755)
        with room.stack:
            told[name] = whole(run, make(room), room)
    text, found = told["compiled"]
    assert "from a file\nthrough a pipe\n" in text
    assert "by a step\n" in text
    assert found["SigIgn"] == f"{1 << 0 | 1 << 9:016x}"
    for name, (other, seen) in told.items():
        assert other == text, name
        assert {
            key: (seen.get(key), found.get(key))
            for key in seen.keys() | found.keys()
            if seen.get(key) != found.get(key)
        } == {}, name
