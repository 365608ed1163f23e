"""Each step of clonekit.steps.execute does what it says, and says what the kernel refused."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from step_cases import Case, Room, cases_of, check, output, seen

from clonekit import Exit, Program, Slot, SpawnError, Spec, spawn
from clonekit.steps import change_directory, execute, open_file


@pytest.mark.usefixtures("needs")
@pytest.mark.parametrize("case", cases_of("execute"), ids=str)
def test_a_step_does_what_its_case_says(case: Case, room: Room) -> None:
    check(case, room)


SCRIPT = "#!/bin/sh\necho {}\n"


def program_at(path: Path, text: str = SCRIPT, mode: int = 0o755) -> Path:
    """A script that says where it is."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.format(path.parent.name))
    path.chmod(mode)
    return path


def searched(room: Room, *directories: str) -> dict[str, str]:
    return {"PATH": ":".join(str(room.path / each) for each in directories)}


def test_the_first_in_the_path_is_run(room: Room) -> None:
    program_at(room.path / "b/tool")
    program_at(room.path / "c/tool")
    assert output(["tool"], env=searched(room, "a", "b", "c")).strip() == "b"


def test_a_program_that_may_not_be_run_does_not_end_the_search(room: Room) -> None:
    program_at(room.path / "a/tool", mode=0o644)
    program_at(room.path / "b/tool")
    assert output(["tool"], env=searched(room, "a", "b")).strip() == "b"


@pytest.mark.parametrize("order", [("a", "absent"), ("absent", "a"), ("a", "file", "absent")])
def test_eacces_is_not_hidden_by_enoent(room: Room, order: tuple[str, ...]) -> None:
    program_at(room.path / "a/tool", mode=0o644)
    (room.path / "file").touch()
    with pytest.raises(PermissionError) as caught:
        spawn(["tool"], env=searched(room, *order))
    assert isinstance(caught.value, SpawnError)
    assert "a/tool" in caught.value.arguments


def test_the_first_reason_is_told(room: Room) -> None:
    program_at(room.path / "a/tool", mode=0o644)
    program_at(room.path / "b/tool", "no program")
    for order, number in ((("a", "b"), errno.EACCES), (("b", "a"), errno.ENOEXEC)):
        with pytest.raises(SpawnError) as caught:
            spawn(["tool"], env=searched(room, *order))
        assert caught.value.errno == number


def test_paths_in_a_tuple_are_tried_in_turn(room: Room) -> None:
    program_at(room.path / "b/tool")
    paths = tuple(room.path / name / "tool" for name in ("a", "b", "c"))
    assert output(["any name"], executable=paths).strip() == "b"
    assert output(["any name"], executable=paths, check=True).strip() == "b"
    with pytest.raises(FileNotFoundError):
        spawn(["any name"], executable=paths[:1])


@pytest.mark.parametrize("order", [("x", "y"), ("file", "x"), ("x", "file")])
def test_a_program_in_no_directory_is_not_found(room: Room, order: tuple[str, ...]) -> None:
    (room.path / "file").touch()
    with pytest.raises(SpawnError) as caught:
        spawn(["tool"], env=searched(room, *order))
    with pytest.raises(OSError, match="tool") as theirs:
        subprocess.run(["tool"], env=searched(room, *order), check=False)
    assert caught.value.errno == theirs.value.errno


def test_no_shell_runs_what_has_no_interpreter(room: Room) -> None:
    program = program_at(room.path / "a/tool", "echo hello\n")
    with pytest.raises(SpawnError) as caught:
        spawn([str(program)])
    assert caught.value.errno == errno.ENOEXEC


def test_a_relative_path_starts_from_the_childs_directory(room: Room) -> None:
    program_at(room.path / "a/tool")
    assert output(["./tool"], cwd=room.path / "a").strip() == "a"
    assert output(["tool"], cwd=room.path / "a", env={"PATH": "absent:"}).strip() == "a"


def test_argv_0_is_only_a_name_beside_an_executable() -> None:
    text = output(["any name at all", "-c", "echo $0"], executable="/bin/sh")
    assert text.strip() == "any name at all"


@pytest.mark.parametrize("env", [{}, {"A": "1"}, {"A": "", "B": "x=y", "Z": "\udcff"}])
def test_the_environment_is_exact(env: dict[str, str]) -> None:
    text = output(["/usr/bin/env", "-0"], env=env)
    expected = {f"{key}={value}" for key, value in env.items()}
    assert set(text.split("\0")) - {""} == {each.replace("\udcff", "\ufffd") for each in expected}


def test_without_one_the_environment_is_ours_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLONEKIT_TEST", "earlier")
    spec = Spec(["/usr/bin/env"])
    monkeypatch.setenv("CLONEKIT_TEST", "now")
    steps = spec.steps()[:-1]
    assert "CLONEKIT_TEST=now" in seen(steps, ("/usr/bin/env",))[1].splitlines()


def test_the_search_follows_the_programs_own_path(
    monkeypatch: pytest.MonkeyPatch, room: Room
) -> None:
    program_at(room.path / "a/tool")
    monkeypatch.setenv("PATH", str(room.path / "a"))
    assert spawn(["tool"]).wait().status == 0
    with pytest.raises(FileNotFoundError):
        spawn(["tool"], env={"PATH": "/nowhere"})


def test_a_program_by_descriptor(room: Room) -> None:
    assert room.see is not None
    fd = room.open(room.see)
    assert output(["see"], executable=fd, cwd="/proc") == "/proc"
    with open(room.see, "rb") as file:
        assert output(["see"], executable=file, cwd="/") == "/"


def test_a_program_by_slot(room: Room) -> None:
    assert room.see is not None
    program = Program([change_directory("/proc"), execute(["see"], Slot("program"))])
    assert program.spawn(program=room.open(room.see)).wait().status == 0
    made = [open_file(room.see, name="tool"), change_directory("/proc")]
    assert seen(made, ("see",), executable=Slot("tool")) == (
        Exit(os.CLD_EXITED, 0),
        "/proc",
    )


def test_a_program_by_descriptor_sees_only_the_vector(room: Room) -> None:
    assert room.see is not None
    null = os.stat("/dev/null")
    vector = {0: room.open("/dev/null"), 9: room.open("/dev/null")}
    names = [f"{number}:{null.st_dev}:{null.st_ino}" for number in vector]
    ended = spawn(["see", *names], executable=room.open(room.see), fds=vector).wait()
    assert ended.status == 0


def test_a_script_by_descriptor_is_refused_with_the_reason(room: Room) -> None:
    fd = room.open(program_at(room.path / "a/tool"))
    with pytest.raises(FileNotFoundError) as caught:
        spawn(["tool"], executable=fd)
    assert "close-on-exec" in caught.value.hint  # type: ignore[attr-defined]


def test_a_busy_file_is_refused_with_the_reason(room: Room) -> None:
    program = program_at(room.path / "a/tool")
    assert room.see is not None
    program.write_bytes(room.see.read_bytes())
    with program.open("r+b"), pytest.raises(SpawnError) as caught:
        spawn([str(program)])
    assert caught.value.errno == errno.ETXTBSY
    assert caught.value.hint


def test_the_search_is_in_the_childs_root(room: Room, need: Callable[[str], None]) -> None:
    need("chroot")
    assert room.see is not None
    directory = room.path / "root/only/here"
    directory.mkdir(parents=True)
    (directory / "tool").write_bytes(room.see.read_bytes())
    (directory / "tool").chmod(0o755)
    inside = {} if os.geteuid() == 0 else {"namespaces": ["user"], "uid_map": 0, "gid_map": 0}
    text = output(["tool"], root=room.path / "root", env={"PATH": "/bin:/only/here"}, **inside)
    assert text == "/"


def test_arguments_may_be_bytes_and_paths(tmp_path: Path) -> None:
    assert output(["echo", b"\xff", tmp_path]) == f"\ufffd {tmp_path}\n"  # type: ignore[list-item]


def test_too_long_a_list_of_arguments_is_refused_by_the_kernel() -> None:
    with pytest.raises(SpawnError) as caught:
        spawn(["true", "x" * (1 << 18)])
    assert caught.value.errno == errno.E2BIG
