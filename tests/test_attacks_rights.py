"""Attacks by what a program may do: set-uid files, terminals, groups, forks, what is shared."""

from __future__ import annotations

import fcntl
import os
import pty
import shutil
import socket
import struct
import tempfile
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mounting import nothing_is_left
from step_cases import NOBODY, missing, output

from clonekit import Arg, Cgroup, DeclarationError, Filter, Landlock, SpawnError, spawn
from clonekit.linux.abi import call, lib
from clonekit.linux.memory import address
from clonekit.mounts import bind

__all__ = ["nothing_is_left"]
Fields = dict[str, Any]
Need = Callable[[str], None]
#: Never more processes than this, whatever a limit does.
FEW, MANY = 12, 40


# ---- set-uid ----


@pytest.fixture
def set_uid_see() -> Iterator[Path]:
    """A set-uid root program, where a file system honours that, and anybody reaches it."""
    if os.geteuid() != 0:
        pytest.skip("it takes root")
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        path = Path(directory) / "see"
        shutil.copy("/usr/bin/id", path)
        path.chmod(0o4755)
        if output([str(path), "-u"], uid=NOBODY, gid=NOBODY) != "0\n":
            pytest.skip("set-uid files are not honoured here")
        yield path


def test_a_set_uid_program_gets_no_rights_where_there_are_none_to_be_had(
    set_uid_see: Path,
) -> None:
    """The control is in the fixture: without any of these, it runs as root."""
    ids = {"uid": NOBODY, "gid": NOBODY}
    argv = [str(set_uid_see), "-u"]
    assert output(argv, no_new_privs=True, **ids) == f"{NOBODY}\n"
    bound: Fields = {"namespaces": ["mnt"], **ids}
    for nosuid, uid in ((False, 0), (True, NOBODY)):
        there = bind(set_uid_see.parent, "/mnt", nosuid=nosuid)
        assert output(["/mnt/see", "-u"], mounts=[there], **bound) == f"{uid}\n"


def test_a_set_uid_program_is_given_no_descriptor_that_was_not_declared(set_uid_see: Path) -> None:
    """It has what every program has: no inheritable file of ours, and no leak into its rights."""
    fd = os.open("/etc/shadow", os.O_RDONLY)
    os.set_inheritable(fd, True)  # noqa: FBT003 - its own way
    listing = set_uid_see.parent / "ls"
    shutil.copy("/bin/ls", listing)
    listing.chmod(0o4755)
    try:
        seen = output([str(listing), "/proc/self/fd"], uid=NOBODY, gid=NOBODY).split()
        assert set(seen) == {"0", "1", "2", "3"}  # the last is that of the listing
    finally:
        os.close(fd)


def test_a_filter_or_rules_for_a_set_uid_program_want_no_new_privs(set_uid_see: Path) -> None:
    """Otherwise who makes the filter would have a set-uid program misled (CVE-2012-0056's kin)."""
    for field in ({"seccomp": Filter("ALLOW").errno("getuid")}, {"landlock": Landlock(read=["/"])}):
        if "landlock" in field and missing("landlock"):
            continue
        with pytest.raises((SpawnError, DeclarationError)) as caught:
            spawn([str(set_uid_see)], uid=NOBODY, gid=NOBODY, capabilities=[], **field)
        assert "no_new_privs" in str(caught.value)


# ---- groups ----


def test_no_group_is_dropped_in_a_map_of_ones_own(need: Need) -> None:
    """CVE-2014-8989: a group that forbids (mode 604) is lost by setgroups in a user namespace."""
    need("user")
    text = output(["cat", "/proc/self/setgroups"], namespaces=["user"], uid_map=0, gid_map=0)
    assert text == "deny\n"
    with pytest.raises((SpawnError, DeclarationError)) as caught:
        spawn(["true"], namespaces=["user"], uid_map=0, gid_map=0, groups=[])
    assert "groups" in str(caught.value)


# ---- the terminal ----


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal."""
    ends = pty.openpty()
    yield ends
    for fd in ends:
        os.close(fd)


def types(built: Path, user: int, **fields: Any) -> tuple[str, bytes]:
    """What a program says that types into a terminal, and what then stands there to be read."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    attributes = termios.tcgetattr(user)
    attributes[3] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(user, termios.TCSANOW, attributes)
    program = os.open(built / "escape", os.O_RDONLY | os.O_CLOEXEC)
    with open(reader) as told:
        process = spawn(["escape", "tiocsti"], executable=program, env={},
                        fds={0: user, 1: writer, 2: writer}, **fields)  # fmt: skip
        os.close(writer)
        os.close(program)
        with process:
            text = told.read()
            process.wait()
    waiting = bytearray(4)
    fcntl.ioctl(user, termios.FIONREAD, waiting)
    count = struct.unpack("=i", waiting)[0]
    return text, os.read(user, count) if count else b""


def test_a_program_types_into_the_terminal_that_is_its_own(built: Path) -> None:
    """The control for TIOCSTI: where the kernel has it, it is allowed on one's own terminal."""
    if Path("/proc/sys/dev/tty/legacy_tiocsti").read_text() != "1\n":
        pytest.skip("the kernel refuses TIOCSTI (dev.tty.legacy_tiocsti)")
    with terminal() as (_, user):
        assert types(built, user, setsid=True, ctty=user) == ("typed\n", b"echo pwned\n")


@pytest.mark.parametrize("way", ["a session of its own", "a filter"])
def test_no_program_types_into_our_terminal(built: Path, way: str) -> None:
    """CVE-2017-5226, CVE-2016-2568: TIOCSTI on the terminal of who has made the sandbox."""
    fields: Fields = {"setsid": True, "no_new_privs": True}
    if os.geteuid() == 0:
        fields["capabilities"] = []  # CAP_SYS_ADMIN types into any terminal
    with terminal() as (_, user):
        if way == "a filter":
            refused = Filter("ALLOW").errno("ioctl", Arg(1, "==", termios.TIOCSTI))
            fields = {"setsid": True, "ctty": user, "no_new_privs": True, "seccomp": refused}
        text, waiting = types(built, user, **fields)
    assert waiting == b""
    assert text in {"Operation not permitted\n", "Input/output error\n"}


# ---- forks ----


def forks(built: Path, count: int, **fields: Any) -> tuple[int, str]:
    """How many children a program can have, of so many that it wants, and why no more."""
    assert count <= MANY
    program = os.open(built / "escape", os.O_RDONLY | os.O_CLOEXEC)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(reader) as told:
        process = spawn(["escape", "forks", str(count)], executable=program, env={}, setsid=True,
                        fds={0: 0, 1: writer, 2: writer}, **fields)  # fmt: skip
        os.close(writer)
        os.close(program)
        with process:
            text = told.read()
            process.wait()
    number, _, reason = text.partition(" ")
    return int(number), reason.strip()


def test_forks_are_not_limited_by_themselves(built: Path) -> None:
    """The control, with few."""
    assert forks(built, FEW) == (FEW, "all")


def test_forks_end_at_the_limit_of_processes(built: Path, need: Need) -> None:
    """A fork bomb of a uid that nobody else has, by RLIMIT_NPROC."""
    need("setuid")
    uid = 61_234
    fields: Fields = {"uid": uid, "gid": uid, "groups": [], "rlimits": {"nproc": 6}}
    assert forks(built, 3, **fields) == (3, "all")
    assert forks(built, MANY, **fields) == (5, "Resource temporarily unavailable")


def test_forks_end_at_the_limit_of_a_user_namespace(built: Path, need: Need) -> None:
    """The same by anybody: in a user namespace of one's own, uids are counted anew."""
    need("user")
    fields: Fields = {"namespaces": ["user", "pid"], "uid_map": NOBODY, "gid_map": NOBODY,
                      "rlimits": {"nproc": 6}, "capabilities": []}  # fmt: skip
    if os.geteuid() == 0:
        fields |= {"uid_map": [(NOBODY, 61_235, 1), (0, 0, 1)],
                   "gid_map": [(NOBODY, 61_235, 1), (0, 0, 1)],
                   "uid": NOBODY, "gid": NOBODY, "groups": []}  # fmt: skip
    assert forks(built, 3, **fields) == (3, "all")
    count, reason = forks(built, MANY, **fields)
    assert (count, reason) == (5, "Resource temporarily unavailable")


def test_forks_end_at_the_limit_of_a_group(built: Path) -> None:
    """The same by the pids controller, of which init and all that it leaves are part."""
    if reason := missing("cgroup"):
        pytest.skip(reason)
    try:
        group = Cgroup(limits={"pids.max": 6})
    except (DeclarationError, OSError) as error:
        pytest.skip(f"no pids controller: {error}")
    with group:
        assert forks(built, 3, cgroup=group) == (3, "all")
        assert forks(built, MANY, cgroup=group) == (5, "Resource temporarily unavailable")
        assert group.events("pids")["max"] > 0


# ---- what is shared ----


def reaches(built: Path, name: str, **fields: Any) -> str:
    """What a program says that connects to this abstract socket."""
    program = os.open(built / "escape", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return output(["escape", "abstract", name], executable=program, env={}, **fields).strip()
    finally:
        os.close(program)


def test_abstract_sockets_of_the_host_are_not_there(built: Path) -> None:
    """CVE-2020-15257, of containerd: who shares the network reaches its abstract sockets."""
    name = f"ck-attacks-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind("\0" + name)
        server.listen()
        assert reaches(built, name) == "connected"
        if not missing("user"):
            net = {"namespaces": ["user", "net"]}
            assert reaches(built, name, **net) == "Connection refused"
        if not missing("landlock"):
            try:
                rules = Landlock(scopes=["abstract_unix_socket"])
                rules.enforced()
            except DeclarationError as error:
                pytest.skip(str(error))
            scoped = {"landlock": rules, "no_new_privs": True}
            assert reaches(built, name, **scoped) == "Operation not permitted"


def test_keys_of_our_session_are_not_found_in_another(built: Path, need: Need) -> None:
    """The session keyring is inherited, by a container too, unless it has one of its own."""
    need("keyring")
    keep = [bytearray(text + b"\0") for text in (b"user", b"ck-key", b"secret")]
    program = os.open(built / "escape", os.O_RDONLY | os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:  # in a session of its own, that the tests' one stays as it is
        status = 1
        try:
            call("keyctl", lib.KEYCTL_JOIN_SESSION_KEYRING, 0)
            session = -3 & 0xFFFFFFFF
            call("add_key", address(keep[0]), address(keep[1]), address(keep[2]), 6, session)
            found = output(["escape", "keys"], executable=program, env={})
            other = output(["escape", "keys"], executable=program, env={}, keyring="")
            assert found == "found\n", found
            assert other == "Required key not available\n", other
            status = 0
        finally:
            os._exit(status)
    os.close(program)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_who_undoes_dumpable_is_refused() -> None:
    """PR_SET_DUMPABLE in a child on our memory would open that to its new peers."""
    for option in ("PR_SET_DUMPABLE", str(lib.PR_SET_DUMPABLE), lib.PR_SET_DUMPABLE):
        with pytest.raises(DeclarationError, match="prctl"):
            spawn(["true"], prctl=[(option, 1)])
    assert call("prctl", lib.PR_GET_DUMPABLE) == 1
