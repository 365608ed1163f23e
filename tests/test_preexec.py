"""A program begun with a declaration sees what it would have seen after a `preexec_fn`."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from preexec_cases import DONE_OTHERWISE, NAMES, SETTINGS, Room, Setting
from step_cases import NOBODY, apart, new_group

import clonekit
from clonekit.linux.abi import lib
from clonekit.preexec import USES, Use
from clonekit.steps import system_call

Need = Callable[[str], None]
Told = dict[str, list[str]]
#: What two programs need not have in common.
OWN = {
    "Name", "State", "Tgid", "Ngid", "Pid", "PPid", "FDSize", "NStgid", "NSpid", "NSpgid", "NSsid",
    "Threads", "SigQ", "HugetlbPages", "Cpus_allowed", "voluntary_ctxt_switches",
    "nonvoluntary_ctxt_switches",
}  # fmt: skip
PTRACE_DETACH = 17
PGRP, SESSION, TTY, FOREGROUND = 2, 3, 4, 5  # in /proc/PID/stat, behind the name


@pytest.fixture
def directory(built: Path) -> Iterator[Path]:
    """A directory that anybody may look into, with the program that tells what it sees."""
    with tempfile.TemporaryDirectory(prefix="clonekit-", dir="/tmp") as name:
        path = Path(name)
        path.chmod(0o755)
        (path / "below").mkdir()
        shutil.copy(built / "state", path)
        yield path


def parsed(text: str, pid: int) -> Told:
    """What the program has seen, by names; numbers that differ each time said otherwise."""
    seen: Told = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "status":
            key, _, value = value.partition(":")
            if key in OWN or key.startswith(("Vm", "Rss")):
                continue
            name = f"status {key}"
        elif name == "stat":
            name, value = "stat", place_of(value.rpartition(")")[2].split(), pid)
        elif name == "mountinfo":
            before, _, after = value.partition(" - ")
            value = f"{before.split()[4]} {after.split()[0]}"
        elif name == "environment" and value.partition("=")[0] not in {*os.environ, "KEY"}:
            continue  # set by a library in C, as readline does
        elif name == "cgroup":
            value = re.sub(r"clonekit-\w+", "the group", value)
        elif name.startswith("ns/"):
            value = "ours" if value == os.readlink(f"/proc/self/{name}") else "another"
        elif name == "keyring":
            value = "ours" if int(value) == NAMES["keyctl"](0, -3, 0) else "another"
        seen.setdefault(name, []).append(value.strip())
    return {name: sorted(values) for name, values in seen.items()}


def place_of(stat: list[str], pid: int) -> str:
    """Its group and its session, and what its terminal is."""
    group, session, foreground = (
        {pid: "its own", os.getpgrp(): "our group", os.getsid(0): "our session"}.get(
            number, "other"
        )
        for number in (int(stat[at]) for at in (PGRP, SESSION, FOREGROUND))
    )
    return f"{group}, {session}, {'terminal' if int(stat[TTY]) else 'none'}, {foreground}"


def inherited() -> set[str]:
    """The descriptors that whoever began the tests has left to every program."""
    numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    open_ones = [fd for fd in numbers if fd > 2 and os.path.exists(f"/proc/self/fd/{fd}")]
    return {f"fd/{fd}" for fd in open_ones if os.get_inheritable(fd)}


def run(popen: Any, directory: Path, *, rooted: bool = False, **keywords: Any) -> Told:
    """Begin the program; what it sees."""
    keywords = {"stdin": subprocess.DEVNULL, "cwd": None if rooted else directory, **keywords}
    program = "/state" if rooted else directory / "state"
    with open(directory / "told", "w+", errors="replace") as output:
        process = popen([program], stdout=output, **keywords)
        assert process.wait() == 0
        output.seek(0)
        return parsed(output.read(), process.pid)


def as_preexec_fn(use: Use, setting: Setting) -> dict[str, Any]:
    """The use as keywords of the standard library's Popen."""
    first = "unshare(CLONE_NEWUSER)" if SETTINGS[use.name].inside else ""
    texts = [text for text in (first, setting.before, use.does, setting.after) if text]
    code = compile(", ".join(texts), use.name, "eval")
    names = {**NAMES, **setting.names}
    return {**setting.common, **setting.stock, "preexec_fn": lambda: eval(code, names)}  # noqa: S307 - the table is ours


def as_declaration(use: Use, setting: Setting) -> dict[str, Any]:
    """What replaces it, as keywords of ours."""
    declared = eval(f"dict({use.instead})", {**NAMES, **setting.names})  # noqa: S307 - the table is ours
    if SETTINGS[use.name].inside:
        declared["namespaces"] = ["user", *declared.get("namespaces", [])]
    return {**setting.common, **setting.besides, **declared}


def compare(use: Use, directory: Path) -> None:
    """The declaration does what the preexec_fn does, and that is something."""
    ambient = inherited()
    seen = []
    for popen, keywords_of in (
        (subprocess.Popen, lambda _, setting: {**setting.common, **setting.stock}),
        (subprocess.Popen, as_preexec_fn),
        (clonekit.Popen, as_declaration),
    ):
        with ExitStack() as stack:
            setting = SETTINGS[use.name].make(Room(directory, stack))
            rooted = setting.rooted and bool(seen)
            told = run(popen, directory, rooted=rooted, **keywords_of(use, setting))
            seen.append({name: told[name] for name in told.keys() - ambient})
            seen[-1]["outside"] = [setting.outside()]
    plain, stock, declared = seen
    assert stock != plain
    assert declared == stock


@pytest.mark.parametrize(
    "use", [use for use in USES if use.name in SETTINGS], ids=lambda use: use.name
)
def test_the_declaration_does_what_the_preexec_fn_did(
    use: Use, directory: Path, need: Need
) -> None:
    for name in SETTINGS[use.name].needs:
        need(name)
    if SETTINGS[use.name].session:
        assert apart(lambda: (os.setsid(), compare(use, directory))) == ""
    else:
        compare(use, directory)


def test_every_use_has_a_test() -> None:
    assert {use.name for use in USES} == SETTINGS.keys() | DONE_OTHERWISE
    assert not SETTINGS.keys() & DONE_OTHERWISE
    assert len({use.name for use in USES}) == len(USES)


def demoted() -> None:
    """What many a supervisor's preexec_fn does, in the order in which it must be done here."""
    os.setsid()
    os.umask(0o77)
    os.nice(3)
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    NAMES["prctl"](lib.PR_SET_PDEATHSIG, signal.SIGKILL)
    NAMES["prctl"](lib.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def test_many_uses_at_once_are_one_declaration(directory: Path, need: Need) -> None:
    ids = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    if ids:
        need("setuid")
    declared = run(
        clonekit.Popen, directory, start_new_session=True, umask=0o77, nice=os.nice(0) + 3,
        rlimits={"nofile": 32, "core": 0}, sigignore=["INT"], pdeathsig="KILL", no_new_privs=True,
        **ids,
    )  # fmt: skip
    assert declared == run(subprocess.Popen, directory, preexec_fn=demoted)


def test_the_parent_sets_the_modes_of_the_terminal(directory: Path) -> None:
    seen = []
    for popen in (subprocess.Popen, subprocess.Popen, clonekit.Popen):
        with ExitStack() as stack:
            fd = Room(directory, stack).terminal()
            modes = termios.tcgetattr(fd)
            modes[3] &= ~termios.ECHO
            change = partial(termios.tcsetattr, fd, termios.TCSANOW, modes)
            stock = popen is subprocess.Popen
            if not stock:
                change()
            keywords = {"preexec_fn": change} if stock and seen else {}
            seen.append(run(popen, directory, stdin=fd, **keywords)["modes"])
    plain, stock_one, ours = seen
    assert plain != stock_one == ours


def test_the_parent_knows_the_pid(directory: Path) -> None:
    file = directory / "pid"
    read = ["sh", "-c", f"cat {file}; echo ' '$$"]
    told = subprocess.check_output(read, preexec_fn=lambda: file.write_text(str(os.getpid())))
    assert len(set(told.split())) == 1
    with clonekit.Popen(["sh", "-c", "echo $$"], stdout=subprocess.PIPE) as process:
        assert int(process.communicate()[0]) == process.pid
    reader, writer = os.pipe()
    with clonekit.nascent() as child, open(reader) as lines:
        file.write_text(str(child.pid))
        with child.start(read, fds={1: writer}) as started:
            os.close(writer)
            assert lines.read().split() == [str(started.pid)] * 2


def state(pid: int) -> str:
    """A process's state, as a letter."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_program_is_loaded_and_not_begun(tmp_path: Path) -> None:
    begin = ["touch", str(tmp_path / "begun")]
    trace = partial(NAMES["ptrace"], lib.PTRACE_TRACEME)
    traced = subprocess.Popen(begin, preexec_fn=trace)  # noqa: PLW1509 - what is replaced
    assert os.WIFSTOPPED(os.waitpid(traced.pid, os.WUNTRACED)[1])
    assert (state(traced.pid), os.listdir(tmp_path)) == ("t", [])
    NAMES["ptrace"](PTRACE_DETACH, traced.pid, 0, 0)
    assert traced.wait() == 0
    (tmp_path / "begun").unlink()
    with clonekit.spawn(begin, suspended=True) as held:
        assert (state(held.pid), os.listdir(tmp_path)) == ("t", [])
        assert held.resume().wait().status == 0
    assert os.listdir(tmp_path) == ["begun"]


def test_a_child_waits_until_it_has_been_changed_from_outside() -> None:
    limit = (77, 77)
    ask, asked = os.pipe()
    answer, answered = os.pipe()

    def wait() -> None:
        os.write(asked, b"%d\n" % os.getpid())
        os.read(answer, 1)

    def change() -> None:
        resource.prlimit(int(os.read(ask, 32)), resource.RLIMIT_NOFILE, limit)
        os.write(answered, b"x")

    changing = threading.Thread(target=change)
    changing.start()
    assert subprocess.check_output(["sh", "-c", "ulimit -n"], preexec_fn=wait) == b"77\n"
    changing.join()
    for fd in (ask, asked, answer):
        os.close(fd)
    with clonekit.nascent() as child, open(answered, "wb"):
        resource.prlimit(child.pid, resource.RLIMIT_NOFILE, limit)
        with child.start(["sh", "-c", "test $(ulimit -n) = 77"]) as process:
            assert process.wait().status == 0


def test_whatever_else_it_is_is_a_step(directory: Path) -> None:
    group = os.PRIO_PGRP
    stock = run(
        subprocess.Popen, directory, preexec_fn=lambda: os.setpriority(group, 0, 7),
        start_new_session=True,
    )  # fmt: skip
    steps = [system_call("setpriority", group, 0, 7)]
    assert run(clonekit.Popen, directory, steps=steps, start_new_session=True) == stock
    assert stock["nice"] == ["7"]


def test_a_file_of_a_group_takes_the_one_who_writes(directory: Path, need: Need) -> None:
    need("cgroup")
    group, _ = new_group()
    try:
        seen = run(clonekit.Popen, directory, write_files={group / "cgroup.procs": b"0"})
        assert any(line.endswith("the group") for line in seen["cgroup"])
    finally:
        group.rmdir()
