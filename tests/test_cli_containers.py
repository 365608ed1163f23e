"""The command line's shorthands for containers, and `clonekit enter`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mounting import root  # noqa: F401 - a fixture
from test_cli import clonekit, explained

from clonekit import Process, spawn
from clonekit.linux.privilege import has_capability
from clonekit.shorthands import ALL, SHORTHANDS, applied, size

Need = Callable[[str], None]
CAP_SYS_ADMIN = 21
pytestmark = pytest.mark.usefixtures("sandboxed")


@pytest.fixture
def sandboxed(need: Need) -> None:
    need("user")


def printed(*words: str, **details: Any) -> str:
    """What `clonekit run` prints, when all is well."""
    done = clonekit("run", *words, **details)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fields_of(*words: str) -> dict[str, Any]:
    """What shorthands make of an empty declaration."""
    table = {shorthand.flag: shorthand for shorthand in SHORTHANDS}
    given, left = [], list(words)
    while left:
        shorthand = table[left.pop(0)]
        given.append((shorthand, [left.pop(0) for _ in shorthand.takes]))
    fields: dict[str, Any] = {}
    applied(fields, given)
    return fields


def test_a_container_from_a_root_file_system(root: Path) -> None:  # noqa: F811 - the fixture
    text = printed(
        "--unshare-all", "--map-root", "--rootfs", str(root), "--read-only", "--proc", "/proc",
        "--dev", "/dev", "--tmpfs", "/tmp,size=1m", "--net", "--hostname", "box", "--init",
        "--clear-env", "--chdir", "/tmp", "--", "/bin/busybox", "sh", "-c",
        "id -u; hostname; echo $$; pwd; touch /x 2>/dev/null; echo $?; touch y; ls;"
        " grep -c lo: /proc/net/dev; ls /dev/null",
    )  # fmt: skip
    assert text.split() == ["0", "box", "2", "/tmp", "1", "y", "1", "/dev/null"]


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["--ro-bind"], ["/bin"]),
        (["--overlay"], ["/bin", "/etc/x"]),
        (["--read-only", "--overlay"], ["/bin"]),
    ],
)
def test_what_is_mounted_on_the_root_is_the_root(
    root: Path,  # noqa: F811 - the fixture
    words: list[str],
    printed: list[str],
) -> None:
    told = "ls -d /etc/x /bin; : 2>/dev/null >/etc/x && ls /etc/x"
    (root / "etc").mkdir(exist_ok=True)
    done = clonekit(
        "run", "--unshare-all", "--map-root", *words, str(root), "/", "--", "/bin/busybox", "sh",
        "-c", told,
    )  # fmt: skip
    assert done.stdout.split() == printed, done.stderr
    assert not (root / "etc/x").exists()


def test_an_empty_root_with_what_is_bound_into_it() -> None:
    usr = ["--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/lib", "/lib64"):
        usr += ["--ro-bind-try", name, name]
    told = "ls /; touch /usr/x; echo $?"
    text = printed("--empty-root", *usr, "--ro-bind-try", "/nowhere", "/n", "--", "sh", "-c", told)
    assert set(text.split()) <= {"usr", "bin", "lib", "lib64", "1"}
    assert text.split()[-1] == "1"


def test_who_may_not_make_namespaces_keeps_its_ids_in_a_user_namespace() -> None:
    text = printed("--unshare", "ipc,uts", "--", "sh", "-c", "id -u; cat /proc/self/uid_map")
    uid, *mapped = text.split()
    assert uid == str(os.geteuid())
    assert (mapped == [uid, uid, "1"]) is not has_capability(CAP_SYS_ADMIN)


def test_namespaces_add_up() -> None:
    assert set(fields_of("--unshare", "pid,ipc", "--net", "--tmpfs", "/x")["namespaces"]) >= {
        "pid", "ipc", "net", "mnt",
    }  # fmt: skip
    assert set(fields_of("--unshare-all", "--unshare", "mount,network")["namespaces"]) == set(ALL)


def test_mounts_are_made_in_the_order_given() -> None:
    mounts = fields_of("--tmpfs", "/a", "--bind", "/tmp", "/a/b", "--dev", "/dev")["mounts"]
    assert [mount.target for mount in mounts] == ["/a", "/a/b", "/dev"]


def test_the_root_is_made_read_only_whatever_the_order() -> None:
    early, late = fields_of("--read-only", "--empty-root"), fields_of("--empty-root", "--read-only")
    assert early["rootfs"] == late["rootfs"]


def test_explain_shows_what_a_shorthand_comes_to() -> None:
    calls = [entry.get("syscall") for entry in explained("--net", "--tmpfs", "/mnt")]
    assert {"fsopen", "move_mount", "ioctl"} <= set(calls)


def test_a_file_with_what_a_descriptor_holds() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    with open(os.memfd_create("data"), "w+b") as data:
        data.write(b"told\n")
        data.flush()
        fd = str(data.fileno())
        words = ("--tmpfs", "/mnt", "--file", fd, "/mnt/new", "--", "cat", "/mnt/new")
        assert printed(*words, pass_fds=[data.fileno()]) == "told\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--tmpfs", "here"), "--tmpfs: 'here' is no place"),
        (("--tmpfs", "/x,size=12q"), "--tmpfs: '12q' is no size"),
        (("--tmpfs", "/x,color=red"), "--tmpfs: 'color=red' is no option"),
        (("--bind", "/nowhere", "/x"), "/nowhere"),
        (("--cpus", "0"), "--cpus: '0' is no number of processors"),
        (("--unshare", "moon"), "'moon' is no namespace"),
        (("--bind", "/tmp"), "--bind"),
        (("--proc", "/proc", "--ro-bind", "/", "/"), "--ro-bind: what is on / is the root"),
        (("--rootfs", "/", "--empty-root"), "--empty-root: there is a root already"),
        (("--ro-bnd", "/", "/"), "did you mean --ro-bind"),
        (("--unshare-mount",), "write --unshare mnt"),
        (("--setenv", "A", "b"), "write --env NAME=VALUE"),
    ],
)
def test_what_is_wrong_is_named(words: tuple[str, ...], told: str) -> None:
    done = clonekit("run", *words, "--", "true")
    assert done.returncode == 125
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "count"), [("0", 0), ("12", 12), ("3k", 3072), ("2M", 2 << 20), ("1g", 1 << 30)]
)
def test_sizes_have_units(text: str, count: int) -> None:
    assert size(text) == count


def test_a_limit_that_the_machine_cannot_set_is_named_and_leaves_no_group() -> None:
    before = groups()
    done = clonekit("run", "--memory", "64m", "--", "true")
    assert done.returncode in (0, 125)
    assert done.returncode == 0 or "memory" in done.stderr or "cgroup" in done.stderr
    assert groups() == before


def groups() -> set[str]:
    """The groups of the v2 hierarchy."""
    found = subprocess.run(
        ["find", "/sys/fs/cgroup", "-name", "clonekit*", "-type", "d"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return set(found.stdout.split())


# ---- enter -----------------------------------------------------------------------------------


@pytest.fixture
def container() -> Iterator[Process]:
    """A process in namespaces of its own, with something in its /tmp."""
    script = "mount -t tmpfs none /tmp && touch /tmp/inside && echo && exec sleep 1000 >&-"
    reader, writer = os.pipe2(os.O_CLOEXEC)
    process = spawn(
        ["sh", "-c", script], namespaces=["user", "mnt", "pid", "uts", "ipc"], init=True,
        uid_map=0, gid_map=0, hostname="inside", fds={1: writer, 2: 2},
    )  # fmt: skip
    os.close(writer)
    with process, open(reader) as told:
        assert told.read() == "\n"
        yield process


def test_a_program_enters_the_namespaces_and_the_root_of_a_process(container: Process) -> None:
    done = clonekit(
        "enter", str(container.pid), "--", "sh", "-c", "hostname; ls /tmp; id -u; echo $$; exit 3"
    )
    name, inside, uid, pid = done.stdout.split()
    assert (name, inside, uid, done.returncode) == ("inside", "inside", "0", 3)
    assert int(pid) < 100


def test_only_some_namespaces_are_entered(container: Process) -> None:
    words = ("--only", "user,uts", "--", "sh", "-c", "hostname; ls /tmp")
    done = clonekit("enter", str(container.pid), *words)
    assert done.stdout.split()[0] == "inside"
    assert "inside" not in done.stdout.split()[1:]


def test_a_process_that_has_ended_is_not_entered() -> None:
    with spawn(["true"]) as process:
        process.wait()
    done = clonekit("enter", str(process.pid), "--", "true")
    assert done.returncode == 125
    assert "No such process" in done.stderr
