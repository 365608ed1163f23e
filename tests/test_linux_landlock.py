from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from clonekit import DeclarationError, SpawnError, spawn
from clonekit.linux import FsAccess, NetAccess, Restrictions, Ruleset, Scope, landlock
from clonekit.linux.abi import lib

ABI = landlock.abi()
pytestmark = pytest.mark.skipif(not ABI, reason="this kernel has no Landlock, or it is not enabled")
needs_ports = pytest.mark.skipif(ABI < 4, reason=f"ports need Landlock ABI 4; here it is {ABI}")
needs_scopes = pytest.mark.skipif(ABI < 6, reason=f"scopes need Landlock ABI 6; here it is {ABI}")
needs_ioctl = pytest.mark.skipif(ABI < 5, reason=f"ioctl needs Landlock ABI 5; here it is {ABI}")

SYSTEM = [path for path in ("/usr", "/bin", "/lib", "/lib64") if Path(path).exists()]
PYTHON = [*SYSTEM, sys.prefix, sys.base_prefix]


def shell(script: str, ruleset: Ruleset, *arguments: Path) -> tuple[int | None, str]:
    """The status of a script under the ruleset, and what it printed."""
    out, into = os.pipe()
    with Path("/dev/null").open() as null:
        argv = ["sh", "-c", script, "sh", *map(str, arguments)]
        fds = {0: null, 1: into, 2: into}
        child = spawn(argv, fds=fds, landlock=ruleset, no_new_privs=True)
    os.close(into)
    with child, os.fdopen(out) as file:
        text = file.read()
        return child.wait(60).status, text


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def rooms(tmp_path: Path) -> tuple[Path, Path]:
    """Two directories with a file each."""
    for name in ("open", "shut"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    return tmp_path / "open", tmp_path / "shut"


def test_reading_is_restricted_to_the_paths_named(rooms: tuple[Path, Path]) -> None:
    allowed, denied = rooms
    with Ruleset(read=[*SYSTEM, allowed], best_effort=True) as ruleset:
        assert shell('cat "$1"', ruleset, allowed / "file") == (0, "open")
        status, text = shell('cat "$1"', ruleset, denied / "file")
    assert status == 1
    assert "Permission denied" in text
    assert (denied / "file").read_text() == "shut", "the parent is as before"


def test_writing_is_restricted_and_reading_stays_free(rooms: tuple[Path, Path]) -> None:
    allowed, denied = rooms
    script = 'echo new > "$1/new" && cat "$2/file" && ! echo new > "$2/new" && ! rm "$2/file"'
    with Ruleset(write=[allowed], best_effort=True) as ruleset:
        status, text = shell(script, ruleset, allowed, denied)
    assert status == 0, text
    assert text.startswith("shut")
    assert {path.name for path in allowed.iterdir()} == {"file", "new"}
    assert [path.name for path in denied.iterdir()] == ["file"]


def test_execution_is_restricted_and_takes_no_naming_twice(rooms: tuple[Path, Path]) -> None:
    allowed, denied = rooms
    for room in rooms:
        (room / "program").write_bytes(Path("/bin/true").read_bytes())
        (room / "program").chmod(0o755)
    with Ruleset(read=[], execute=[*SYSTEM, allowed]) as ruleset:
        assert shell('"$1/program"', ruleset, allowed) == (0, "")
        assert shell('"$1/program"', ruleset, denied)[0] == 126


def test_the_program_itself_must_be_allowed(tmp_path: Path) -> None:
    with Ruleset(execute=[tmp_path]) as ruleset, pytest.raises(SpawnError) as caught:
        spawn(["true"], landlock=ruleset, no_new_privs=True)
    assert isinstance(caught.value, PermissionError)
    assert caught.value.syscall == "execve"


def test_a_rule_can_be_for_one_file(rooms: tuple[Path, Path]) -> None:
    allowed, _ = rooms
    (allowed / "other").write_text("other")
    with Ruleset(read=[*SYSTEM, allowed / "file"]) as ruleset:
        assert shell('cat "$1/file" && ! cat "$1/other" 2>&-', ruleset, allowed) == (0, "open")


def test_access_can_be_said_bit_by_bit(rooms: tuple[Path, Path]) -> None:
    allowed, _ = rooms
    rules = {allowed: FsAccess.MAKE_DIR}
    with Ruleset(fs=rules, handled=FsAccess.REMOVE_FILE) as ruleset:
        assert ruleset.enforced.fs == FsAccess.MAKE_DIR | FsAccess.REMOVE_FILE
        script = 'mkdir "$1/made" && ! rm "$1/file" 2>&- && : > "$1/new" && ! mkdir "$2/made" 2>&-'
        assert shell(script, ruleset, *rooms) == (0, "")


def test_a_place_can_be_an_open_directory(rooms: tuple[Path, Path]) -> None:
    allowed, denied = rooms
    fd = os.open(allowed, os.O_PATH)
    with Ruleset(read=[*SYSTEM, fd]) as ruleset:
        os.close(fd)
        script = 'cat "$1/file" && ! cat "$2/file" 2>&-'
        assert shell(script, ruleset, allowed, denied) == (0, "open")


CONNECT = """
import errno, socket, sys
for port in map(int, sys.argv[2:]):
    with socket.socket() as s:
        try:
            getattr(s, sys.argv[1])(("127.0.0.1", port))
            print("ok")
        except OSError as error:
            print(errno.errorcode[error.errno])
"""


def python(ruleset: Ruleset, *arguments: object) -> list[str]:
    """What the program above prints under the ruleset."""
    out, into = os.pipe()
    with Path("/dev/null").open() as null:
        argv = [sys.executable, "-c", CONNECT, *map(str, arguments)]
        child = spawn(argv, fds={0: null, 1: into, 2: into}, landlock=ruleset, no_new_privs=True)
    os.close(into)
    with child, os.fdopen(out) as file:
        lines = file.read().splitlines()
        child.wait(60)
    return lines


@needs_ports
def test_tcp_ports_are_restricted_to_those_named() -> None:
    here = ("127.0.0.1", 0)
    with socket.create_server(here) as one, socket.create_server(here) as two:
        ports = [server.getsockname()[1] for server in (one, two)]
        with Ruleset(tcp_connect=ports[:1]) as ruleset:
            assert python(ruleset, "connect", *ports) == ["ok", "EACCES"]
            assert python(ruleset, "bind", 0) == ["ok"], "what is not named stays free"
        with Ruleset(tcp_bind=[], tcp_connect=ports) as ruleset:
            assert python(ruleset, "connect", *ports) == ["ok", "ok"]
            assert python(ruleset, "bind", 0) == ["EACCES"]


@needs_scopes
def test_signals_can_be_kept_inside() -> None:
    with Ruleset(scopes=Scope.SIGNAL) as ruleset:
        assert shell("kill -0 $$ && ! kill -0 $PPID 2>&-", ruleset) == (0, "")
    with Ruleset(execute=["/"]) as ruleset:
        assert shell("kill -0 $PPID", ruleset) == (0, "")


def test_a_ruleset_serves_many_spawns_and_says_what_it_enforces(rooms: tuple[Path, Path]) -> None:
    with Ruleset(read=["/"]) as ruleset:
        for _ in range(3):
            assert shell('cat "$1/file"', ruleset, rooms[0]) == (0, "open")
        assert ruleset.enforced == Restrictions(fs=FsAccess.READ_FILE | FsAccess.READ_DIR)
        assert not os.get_inheritable(ruleset.fileno())
        assert "READ_FILE" in repr(ruleset)
        fd = ruleset.fileno()
    assert "closed" in repr(ruleset)
    with pytest.raises(ValueError, match="closed"):
        ruleset.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_program_without_no_new_privs_needs_cap_sys_admin() -> None:
    with Ruleset(read=["/"]) as ruleset:
        if os.geteuid() == 0:
            with spawn(["true"], landlock=ruleset) as child:
                assert child.wait(60).status == 0
        else:
            with pytest.raises(SpawnError, match="no_new_privs=True") as caught:
                spawn(["true"], landlock=ruleset)
            assert isinstance(caught.value, PermissionError)


def test_a_failed_ruleset_leaves_no_descriptor(tmp_path: Path) -> None:
    before = open_descriptors()
    with pytest.raises(FileNotFoundError, match="missing"):
        Ruleset(read=[tmp_path / "missing"])
    assert open_descriptors() == before


@pytest.mark.parametrize("ports", [443, "443", ["http"]])
def test_what_is_no_list_of_ports_is_refused(ports: object) -> None:
    with pytest.raises(DeclarationError, match=r"443|is no port"):
        Ruleset(tcp_connect=ports)  # type: ignore[arg-type]


def test_a_single_path_is_refused_saying_what_to_write() -> None:
    with pytest.raises(DeclarationError, match=r"give a list of paths, as \['/usr'\]"):
        Ruleset(read="/usr")
    with pytest.raises(DeclarationError, match="70000 is no port"):
        Ruleset(tcp_bind=[70000])


def test_a_ruleset_that_forbids_nothing_is_the_kernels_error() -> None:
    with pytest.raises(OSError, match="landlock_create_ruleset") as caught:
        Ruleset()
    assert caught.value.errno == errno.ENOMSG


ALL = Restrictions(
    FsAccess.READ_FILE | FsAccess.REFER | FsAccess.TRUNCATE | FsAccess.IOCTL_DEV,
    NetAccess.BIND_TCP,
    Scope.SIGNAL,
)


@pytest.mark.parametrize(
    ("abi", "fs", "net", "scope"),
    [
        (1, FsAccess.READ_FILE, 0, 0),
        (2, FsAccess.READ_FILE | FsAccess.REFER, 0, 0),
        (3, FsAccess.READ_FILE | FsAccess.REFER | FsAccess.TRUNCATE, 0, 0),
        (4, FsAccess.READ_FILE | FsAccess.REFER | FsAccess.TRUNCATE, NetAccess.BIND_TCP, 0),
        (5, ALL.fs, NetAccess.BIND_TCP, 0),
        (6, *ALL),
        (99, *ALL),
    ],
)
def test_each_abi_has_what_its_kernel_can_restrict(
    abi: int, fs: FsAccess, net: NetAccess, scope: Scope
) -> None:
    kept, lacking = ALL.known_to(abi)
    assert kept == Restrictions(fs, net, scope)
    assert len(lacking) == max(0, 6 - abi)
    assert bool(lacking) == (kept != ALL)


def test_what_is_lacking_is_named_with_its_first_kernel() -> None:
    assert ALL.known_to(5)[1] == ["SIGNAL needs Linux 6.12 (ABI 6)"]
    assert ALL.known_to(3)[1][0] == "BIND_TCP needs Linux 6.7 (ABI 4)"


def test_this_kernel_takes_exactly_what_its_abi_is_said_to_know() -> None:
    """The table of versions against the kernel: all it knows is taken, and no more."""
    every = Restrictions(~FsAccess(0), ~NetAccess(0), ~Scope(0))
    known, lacking = every.known_to(ABI)
    os.close(landlock.create_ruleset(*known))
    if lacking:
        with pytest.raises(OSError, match="landlock_create_ruleset"):
            landlock.create_ruleset(*every)


RAW = """
import os, sys
from clonekit.linux import FsAccess, Prctl, clone3, landlock
from clonekit.linux.prctl import prctl

ruleset = landlock.create_ruleset(FsAccess.READ_FILE | FsAccess.READ_DIR)
beneath = os.open(sys.argv[1], os.O_PATH)
landlock.add_path_rule(ruleset, beneath, FsAccess.READ_FILE)
pid, pidfd = clone3()
if pid == 0:
    prctl(Prctl.SET_NO_NEW_PRIVS, 1)
    landlock.restrict_self(ruleset)
    open(sys.argv[1] + "/file").read()
    try:
        open(sys.argv[2] + "/file")
    except PermissionError:
        os._exit(3)
    os._exit(1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), open(sys.argv[2] + "/file").read())
"""


def test_the_raw_calls_restrict_a_copy_and_not_its_parent(rooms: tuple[Path, Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RAW, *map(str, rooms)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("3 shut\n", "")


@needs_ioctl
def test_a_flag_of_a_younger_kernel_is_refused_by_an_older_one_only() -> None:
    with Ruleset(fs={"/dev": FsAccess.IOCTL_DEV}) as ruleset:
        assert ruleset.enforced.fs == lib.LANDLOCK_ACCESS_FS_IOCTL_DEV
