"""Programs: slots, orders of one's own, threads, and declarations that cannot be."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from step_cases import Room, seen

import clonekit
from clonekit import DeclarationError, Program, Slot, SpawnError, Spec
from clonekit.steps import (
    bind_socket,
    change_directory,
    execute,
    install_seccomp_filter,
    listen_socket,
    open_file,
    open_socket,
    place_descriptors,
    set_attribute,
    set_no_new_privs,
    set_rlimit,
    set_signal_mask,
    set_uid,
    system_call,
    write,
)


def test_one_program_serves_many_threads_at_once() -> None:
    program = Program(
        [place_descriptors({0: 0, 1: Slot("out")}), execute(["sh", "-c", "echo $0", "me"])]
    )

    def once(_: int) -> bytes:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        process = program.spawn(out=writer)
        os.close(writer)
        with open(reader, "rb") as told, process:
            assert process.wait().status == 0
            return told.read()

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(once, range(400))) == {b"me\n"}


def test_a_slot_may_be_any_number_of_ours_a_target_too(room: Room) -> None:
    program = Program(
        [
            place_descriptors({0: Slot("a"), 1: Slot("b"), 2: 2, 5: Slot("a")}),
            execute([str(room.see), *names({})]),
        ]
    )
    assert program.slots == ("a", "b")
    one, two = room.open("/dev/null"), room.open("/dev/zero")
    for a, b in ((one, two), (two, one), (one, one)):
        checked = Program(
            [*program.steps[1:-2], execute([str(room.see), *names({0: a, 1: b, 2: 2, 5: a})])]
        )
        assert checked.spawn(a=a, b=b).wait().status == 0


def names(vector: dict[int, int]) -> list[str]:
    """Each descriptor as the program `see` names it."""
    texts = []
    for number, source in vector.items():
        file = os.fstat(source)
        texts.append(f"{number}:{file.st_dev}:{file.st_ino}")
    return texts or ["-"]


def test_slots_are_given_all_and_no_others() -> None:
    program = Program([place_descriptors({0: 0, 3: Slot("log")}), execute(["true"])])
    with pytest.raises(DeclarationError, match="give the slot log"):
        program.spawn()
    with pytest.raises(DeclarationError, match="no slot lag"):
        program.spawn(log=0, lag=1)


def test_a_slot_that_is_not_open_is_refused_before_the_clone() -> None:
    program = Program([place_descriptors({0: 0, 3: Slot("log")}), execute(["true"])])
    reader, writer = os.pipe()
    os.close(reader), os.close(writer)
    with pytest.raises(DeclarationError, match="not open"):
        program.spawn(log=reader)


def test_a_port_is_bound_before_the_door_closes() -> None:
    steps = [
        open_socket(socket.AF_INET, socket.SOCK_STREAM, name="s"),
        bind_socket(Slot("s"), ("127.0.0.1", 0)),
        listen_socket(Slot("s")),
        place_descriptors({0: Slot("s")}),
        set_no_new_privs(),
        install_seccomp_filter(refusing_sockets()),
    ]
    ended, text = seen(steps, ("sh", "-c", "readlink /proc/self/fd/0"))
    assert ended.status == 0
    assert text.startswith("socket:")


def refusing_sockets() -> bytes:
    """A filter that allows no more socket to be made."""
    from step_cases import refusing

    return refusing({"socket": 1})


def test_a_result_is_used_before_it_is_made_only_in_error() -> None:
    early = [
        write(Slot("f"), b"x"),
        open_file("/dev/null", os.O_WRONLY, name="f"),
        execute(["true"]),
    ]
    with pytest.raises(DeclarationError, match="before the step that makes it"):
        Program(early)


def test_a_program_of_a_descriptor_that_closed_since_is_refused() -> None:
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    program = Program([place_descriptors({0: null}), execute(["true"])])
    assert program.spawn().wait().status == 0
    os.close(null)
    with pytest.raises(DeclarationError, match=f"descriptor {null} is not open"):
        program.spawn()


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([], "ends with one execute"),
        ([execute(["true"]), set_no_new_privs()], "ends with one execute"),
        ([execute(["true"]), execute(["true"])], "ends with one execute"),
        ([set_signal_mask(), set_no_new_privs(), execute(["true"])], "just before execute"),
        ([place_descriptors({}), place_descriptors({}), execute(["true"])], "place_descriptors"),
        ([execute([])], "argv is empty"),
        ([execute("true")], "list of arguments"),
        ([execute(["true", "a\0b"])], "NUL"),
        ([execute([""])], "empty"),
        ([execute(["true"], env={"A=B": "c"})], "variable's name"),
        ([execute(["true"], env={"A": "c\0"})], "NUL"),
        ([change_directory("a\0b"), execute(["true"])], "NUL"),
        ([place_descriptors({-1: 0}), execute(["true"])], "cannot be a descriptor"),
        ([place_descriptors({"1": 0}), execute(["true"])], "cannot be a descriptor"),
        ([place_descriptors({1: "x"}), execute(["true"])], "not a descriptor"),
        ([place_descriptors([0, 1]), execute(["true"])], "mapping"),
        ([set_rlimit("nofiles", 1), execute(["true"])], "no limit"),
        ([set_rlimit("nofile", 2, 1), execute(["true"])], "above the hard limit"),
        ([set_uid("no such user"), execute(["true"])], "no user"),
        ([set_uid(-1), execute(["true"])], "no user id"),
        ([set_uid((1, 2)), execute(["true"])], "three"),
        ([install_seccomp_filter(b"123"), execute(["true"])], "instructions"),
        ([set_attribute("SET_MDWE", 1), execute(["true"])], "memory"),
        ([set_attribute("SET_DUMPABLE", 1), execute(["true"])], "memory"),
        ([system_call("mmap", 0), execute(["true"])], "memory"),
        ([system_call("fork"), execute(["true"])], "machine"),
        ([system_call("no_such_call"), execute(["true"])], "no system call"),
        ([system_call("umask", *range(7)), execute(["true"])], "at most 6"),
    ],
)
def test_what_cannot_be_is_refused_before_any_clone(steps: list[object], told: str) -> None:
    with pytest.raises(DeclarationError, match=told):
        Program(steps)  # type: ignore[arg-type]


def test_an_unknown_field_is_refused_with_what_was_meant() -> None:
    with pytest.raises(DeclarationError, match="did you mean rlimits"):
        Spec(["true"], rlimit={"cpu": 1})


def test_coredump_filter_is_refused() -> None:
    with pytest.raises(DeclarationError, match="memory"):
        Program([clonekit.steps.write_file("/proc/self/coredump_filter", b"0"), execute(["true"])])


def test_a_spec_equals_its_like_and_may_be_changed() -> None:
    spec = Spec(["true"], umask=0o22)
    assert spec == Spec(["true"], umask=0o22)
    assert spec != spec.replace(umask=None)
    assert spec.replace(umask=None) == Spec(["true"])


def test_an_error_is_of_its_errnos_own_class(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        clonekit.spawn(["true"], cwd=tmp_path / "absent")
    error = caught.value
    assert isinstance(error, SpawnError)
    assert (error.phase, error.syscall) == ("place", "chdir")
    assert (error.step or "").startswith("change_directory(")
    assert "ENOENT" in str(error)


def test_phases_order_a_spec_whatever_its_fields_order() -> None:
    fields = {"umask": 0o22, "no_new_privs": True, "nice": 1, "cwd": "/", "setsid": True}
    turned = dict(reversed(fields.items()))
    steps = [str(step) for step in Spec(["true"], **fields).steps()]
    assert steps == [str(step) for step in Spec(["true"], **turned).steps()]


WRONG: list[dict[str, object]] = [
    {"env": {1: 2}},
    {"env": 5},
    {"nice": "x"},
    {"rlimits": "x"},
    {"rlimits": {"nofile": "x"}},
    {"rlimits": {"nofile": -5}},
    {"rlimits": {"nofiles": 5}},
    {"uid": "no such user"},
    {"uid": -1},
    {"uid": 1.5},
    {"fds": [1]},
    {"fds": {"a": 1}},
    {"fds": {-1: 1}},
    {"fds": {0: "x"}},
    {"cwd": 5.5},
    {"cwd": ""},
    {"umask": "022"},
    {"namespaces": 5},
    {"namespaces": ["nope"]},
    {"hostname": 5},
    {"hostname": "a\0b"},
    {"affinity": ["x"]},
    {"timer_slack_ns": 1 << 70},
    {"pdeathsig": "NOPE"},
    {"sigmask": 5},
    {"seccomp": b"123"},
    {"capabilities": {"bounding": ["zz"]}},
    {"groups": 5},
    {"steps": 5},
    {"steps": [5]},
    {"landlock": "x"},
    {"prctl": 5},
    {"time_offsets": 5},
    {"write_files": {"x": "str"}},
    {"executable": 5.5},
    {"executable": 1 << 20},
    {"scheduler": ("fifo",)},
    {"join": ["x"]},
    {"cgroup": "/no/such/group"},
    {"oom_score_adj": "1"},
    {"mempolicy": ("bind", ["a"])},
    {"setsid": 5},
    {"no_new_privs": "yes"},
    {"keyring": 5},
    {"nises": 5},
    {"hostname": "whole-machine"},
    {"domainname": "whole-machine"},
    {"hostname": "whole-machine", "namespaces": ["net"]},
    {"env": ["SECRET=1"]},
    {"no_new_privs": 1},
    {"cwd": True},
    {"fds": True},
]


@pytest.mark.parametrize("fields", WRONG, ids=str)
def test_a_value_of_the_wrong_kind_is_refused_before_anything_is_made(
    fields: dict[str, object],
) -> None:
    for _ in range(2):  # the second time by the short way, where there is one
        with pytest.raises(DeclarationError):
            clonekit.spawn(["true"], **fields)


@pytest.mark.parametrize("argv", ["ls", b"ls", [], None, 5, ["ls", 3], [["ls"]], ["l\0s"], [""]])
def test_an_argv_of_the_wrong_kind_is_refused_before_anything_is_made(argv: object) -> None:
    clonekit.spawn(["true"]).wait()
    for _ in range(2):
        with pytest.raises(DeclarationError):
            clonekit.spawn(argv)  # type: ignore[arg-type]


def test_letters_are_not_taken_for_an_argv_that_was_seen() -> None:
    for _ in range(2):
        assert clonekit.spawn(["true", "x"]).wait().status == 0
    with pytest.raises(FileNotFoundError):
        clonekit.spawn(["l", "s"])
    with pytest.raises(DeclarationError):
        clonekit.spawn("ls")
