from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from clonekit import DeclarationError, Fd, Slot, Spec, spawn
from clonekit.linux import Seal, SealedProgram, check_executable
from clonekit.linux.abi import lib


def has_check() -> str:
    """Why AT_EXECVE_CHECK is missing, or an empty string."""
    try:
        check_executable("/bin/true")
    except OSError as error:
        return str(error)
    return ""


NO_CHECK = has_check()
needs_check = pytest.mark.skipif(bool(NO_CHECK), reason=NO_CHECK)
CAT = "/bin/cat"


def output(**declaration: object) -> tuple[int | None, str]:
    """The status of `cat /proc/self/comm` run so, and what it printed."""
    out, into = os.pipe()
    with Path("/dev/null").open() as null:
        argv = ["cat", "/proc/self/cmdline"]
        child = spawn(argv, fds={0: null, 1: into, 2: into}, **declaration)
    os.close(into)
    with child, os.fdopen(out) as file:
        text = file.read()
        return child.wait(60).status, text


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


EXECVEAT = """
import os, sys
from clonekit.linux import ExecFlag, execveat
at, path, flags = sys.argv[1:]
fd = os.open(at, os.O_PATH)
execveat(fd, path, ["zero", "one"], {"ONLY": "this"}, ExecFlag(int(flags)))
"""


def begin(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, whose program execveat replaces."""
    argv = [sys.executable, "-c", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("at", "path", "flags"),
    [("/", "usr/bin/env", 0), ("/usr/bin/env", "", lib.AT_EMPTY_PATH), ("/tmp", "/usr/bin/env", 0)],
)
def test_execveat_begins_a_program_with_exactly_this_environment(
    at: str, path: str, flags: int
) -> None:
    source = EXECVEAT.replace('["zero", "one"]', '["env"]')
    done = begin(source, at, path, str(flags))
    assert (done.stdout, done.stderr) == ("ONLY=this\n", "")


def test_execveat_names_the_file_that_it_could_not_begin() -> None:
    done = begin(EXECVEAT, "/", "no/such", "0")
    message = "FileNotFoundError: [Errno 2] execveat: No such file or directory: 'no/such'"
    assert message in done.stderr


@needs_check
def test_a_program_in_path_may_be_executed() -> None:
    check_executable("true")
    check_executable("true", None, {"PATH": "/nowhere:/usr/bin"})
    check_executable("any name", "/bin/true")


@needs_check
def test_a_program_that_is_nowhere_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"execveat: No such file.*'no-such-program'"):
        check_executable("no-such-program")
    with pytest.raises(FileNotFoundError, match="'true'"):
        check_executable("true", None, {"PATH": "/nowhere"})


@needs_check
def test_a_file_without_its_x_bit_is_named_though_a_later_one_is_absent(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    with pytest.raises(PermissionError, match=f"execveat: Permission denied: '{plain}'"):
        check_executable("plain", None, {"PATH": f"{tmp_path}:/nowhere"})


@needs_check
def test_a_descriptor_may_be_asked_about(tmp_path: Path) -> None:
    with Path("/bin/true").open("rb") as file:
        check_executable("name", file)
        check_executable("name", file.fileno())
        check_executable("name", Fd(file))
    plain = tmp_path / "plain"
    plain.write_text("")
    with plain.open() as file, pytest.raises(PermissionError):
        check_executable("name", file)
    with pytest.raises(DeclarationError, match="leave check out"):
        check_executable("name", Slot("program"))


@needs_check
def test_a_declaration_with_check_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    with pytest.raises(PermissionError, match="execveat"):
        Spec([plain], check=True).program()
    with Spec(["true"], check=True).spawn() as child:
        assert child.wait(60).status == 0


@needs_check
def test_a_check_keeps_no_other_thread_from_making_threads() -> None:
    """An exec under way, a check too, has clone(CLONE_FS) fail with EAGAIN in the same process."""
    done = threading.Event()
    failures: list[BaseException] = []

    def make_threads() -> None:
        try:
            while not done.is_set():
                thread = threading.Thread(target=lambda: None)
                thread.start()
                thread.join()
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    maker = threading.Thread(target=make_threads)
    maker.start()
    for _ in range(2000):
        check_executable("/bin/true")
    done.set()
    maker.join()
    assert failures == []


@pytest.mark.parametrize("kind", ["path", "bytes"])
def test_a_sealed_program_runs(kind: str) -> None:
    source = CAT if kind == "path" else Path(CAT).read_bytes()
    with SealedProgram(source) as program:
        assert output(executable=program) == (0, "cat\0/proc/self/cmdline\0")
        assert output(executable=program.fileno()) == (0, "cat\0/proc/self/cmdline\0")


def test_a_sealed_program_is_what_proc_calls_it() -> None:
    with SealedProgram("/bin/sleep", "nap") as program:
        with spawn(["sleep", "60"], executable=program) as child:
            assert str(Path(f"/proc/{child.pid}/exe").readlink()) == "/memfd:nap (deleted)"
        assert repr(program) == "<SealedProgram 'nap'>"


def test_nobody_can_change_a_sealed_program() -> None:
    with SealedProgram(b"\x7fELF") as program:
        fd = program.fileno()
        seals = Seal(fcntl.fcntl(fd, fcntl.F_GET_SEALS))
        assert seals >= Seal.WRITE | Seal.GROW | Seal.SHRINK | Seal.SEAL
        for change in (
            lambda: os.pwrite(fd, b"x", 0),
            lambda: os.ftruncate(fd, 0),
            lambda: os.ftruncate(fd, 100),
            lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
        ):
            with pytest.raises(PermissionError):
                change()
        assert os.pread(fd, 10, 0) == b"\x7fELF"


def test_a_sealed_program_is_not_busy_while_its_source_is_written(tmp_path: Path) -> None:
    source = tmp_path / "cat"
    source.write_bytes(Path(CAT).read_bytes())
    source.chmod(0o755)
    with SealedProgram(source) as program, source.open("r+b"):
        with pytest.raises(OSError, match="ETXTBSY") as caught:
            output(executable=source)
        assert caught.value.errno == errno.ETXTBSY
        assert output(executable=program)[0] == 0


def test_a_sealed_program_closes_its_descriptor() -> None:
    program = SealedProgram("/bin/true")
    fd = program.fileno()
    assert not os.get_inheritable(fd)
    program.close()
    program.close()
    with pytest.raises(ValueError, match="closed"):
        program.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_program_that_cannot_be_read_leaves_no_descriptor(tmp_path: Path) -> None:
    before = open_descriptors()
    with pytest.raises(FileNotFoundError):
        SealedProgram(tmp_path / "missing")
    with pytest.raises(DeclarationError, match="NUL"):
        SealedProgram(b"x", "a\0b")
    assert open_descriptors() == before


def test_a_large_program_is_copied_whole(tmp_path: Path) -> None:
    source = tmp_path / "large"
    source.write_bytes(os.urandom(3 << 20))
    with SealedProgram(source) as program:
        assert os.fstat(program.fileno()).st_size == 3 << 20
        assert os.pread(program.fileno(), 3 << 20, 0) == source.read_bytes()
