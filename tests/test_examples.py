"""Each example runs, and shows what it says that it shows."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mounting import busybox

EXAMPLES = Path(__file__).parent.parent / "examples"
NOBODY = 65534
LOW_PORTS = range(1, 1024)


def run(name: str, *arguments: str) -> str:
    """What the example prints, when it succeeds without a word of complaint."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        env={**os.environ, "PYTHONWARNINGS": "error"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


def free_port(ports: range) -> int:
    """A port that nobody has; from 0 the kernel chooses one."""
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            number: int = probe.getsockname()[1]
            return number
    pytest.skip(f"no port of {ports} can be bound here")


def test_every_example_is_tested() -> None:
    tested = {
        "bind_and_drop", "container", "first", "network", "private_tmp", "rewrite_opens",
        "supervise", "tools", "two_hosts", "untrusted",
    }  # fmt: skip
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


def test_first_program_sees_only_what_it_was_given(need: Callable[[str], None]) -> None:
    need("user")
    need("time")
    told = run("first.py")
    assert "I am pid 1 and uid 0 on aquarium." in told
    assert "Network devices: lo." in told
    assert "At most 16 descriptors and 10 s of processor time." in told
    fds = [line.split()[0] for line in told.splitlines() if " -> " in line]
    assert fds == ["0", "1", "2", "7"]
    assert "Descriptor 7 says: only what was given is here." in told


def test_network_is_made_before_the_program(need: Callable[[str], None]) -> None:
    need("user")
    told = run("network.py")
    assert "the child's network has lo" in told
    assert "port 80 of 10.20.30.40 says hello" in told


def test_a_container_has_what_is_its_own(need: Callable[[str], None]) -> None:
    need("user")
    busybox()
    told = run("container.py").splitlines()
    assert told == [
        "I am process 2 of aquarium, and uid 0.",
        "Here are bin dev etc proc tmp and nothing else.",
        "The root cannot be written.",
        "/tmp can.",
        "Nothing more is mounted.",
    ]


def test_a_snippet_that_nobody_trusts_can_do_little(need: Callable[[str], None]) -> None:
    need("user")
    told = run("untrusted.py").splitlines()
    assert told[0].startswith("uid 65534 in /tmp with ['bin', 'dev', ")
    assert "home" not in told[0]
    closed = {line.partition(" is closed")[0] for line in told[1:5]}
    assert closed == {"network", "other files", "writing", "memory"}
    assert told[5:] == ["processes here: ['1', '2']", "mine", "It ended: SIGXCPU"]


def test_two_hosts_talk_over_a_cable(need: Callable[[str], None]) -> None:
    need("net")
    need("veth")
    told = run("two_hosts.py")
    assert told.splitlines() == [
        "this host has lo, eth0 and 10.0.0.2",
        "port 80 of 10.0.0.1 says hello, 10.0.0.2",
    ]


REFUSING = """
import pathlib, runpy, sys
from clonekit.linux.abi import call, lib
call("unshare", lib.CLONE_NEWUSER)
pathlib.Path("/proc/sys/user/max_user_namespaces").write_text("0")
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def test_first_program_names_the_switch_where_user_namespaces_are_refused(
    need: Callable[[str], None],
) -> None:
    need("user")
    done = subprocess.run(
        [sys.executable, "-c", REFUSING, EXAMPLES / "first.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "user.max_user_namespaces" in done.stderr
    assert "Traceback" not in done.stderr


def test_untrusted_program_has_a_tmp_of_its_own_and_little_else(
    need: Callable[[str], None],
) -> None:
    need("mount")
    need("landlock")
    told = run("private_tmp.py")
    assert f"uid {NOBODY}, in /tmp: 0 files\n" in told
    assert "the task: add one and one\n" in told
    assert "can write in /tmp\ncannot look around\ncannot write elsewhere\n" in told
    assert "It left ['result'] and ended: <Exit with status 0>" in told


def test_untrusted_program_does_not_see_our_tmp(
    tmp_path: Path, need: Callable[[str], None]
) -> None:
    need("mount")
    need("landlock")
    told = run("private_tmp.py", "sh", "-c", f"test -e {tmp_path} || echo hidden")
    assert ("hidden" in told) == tmp_path.is_relative_to("/tmp")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can bind a low port and then be nobody")
def test_server_has_a_low_port_and_is_not_root() -> None:
    port = free_port(LOW_PORTS)
    told = run("bind_and_drop.py", str(port))
    assert f"Port {port}: served by uid {NOBODY}, groups []" in told
    assert ("sees nothing in /" in told) == ("no Landlock" not in told)


@pytest.mark.skipif(os.geteuid() == 0, reason="root has the low port of the other test")
def test_server_of_an_unprivileged_user_has_a_high_port_and_says_so() -> None:
    told = run("bind_and_drop.py", str(free_port(range(1))))
    assert "Not root" in told
    assert f"served by uid {os.geteuid()}" in told


def test_supervisor_restarts_what_failed_and_leaves_what_is_done() -> None:
    told = run("supervise.py")
    assert told.count("steady: <Exit with status 0>") == 1
    assert told.count("failing: <Exit with status 3>") == 3
    assert told.count("crashing: <Exit by signal SIGSEGV>") == 3


def test_a_program_is_shown_other_files() -> None:
    told = run("rewrite_opens.py")
    assert "aquarium\n" in told
    assert "/etc/none/other: No such file or directory" in told
    assert "\n3\n" in told


def test_a_program_of_ours_is_shown_files_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of ours\n")
    told = run("rewrite_opens.py", f"/no/such/place={tmp_path}", "--", "cat", "/no/such/place/file")
    assert "of ours\n" in told


def test_tools_run_at_once_and_apart(need: Callable[[str], None]) -> None:
    need("user")
    told = run("tools.py")
    assert "ended with 0: I am 65534 and process 2" in told
    assert "No such file or directory" in told
    assert "told more than it may, ended with -9: y | y" in told
    assert "ran for 5 s, ended with -9" in told
    assert "Network is unreachable" in told
    assert "ended with 0: mine" in told
    assert len(told.splitlines()) == 8
    assert run("tools.py", "echo $0").endswith("ended with 0: bash\n")
