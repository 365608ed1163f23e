"""For each use of `preexec_fn` a setting in which it does something that the program sees.

`SETTINGS` has one for each use that keywords replace, `DONE_OTHERWISE` names those with a test of
their own.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import socket
import struct
import termios
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from step_cases import NOBODY, new_group

import clonekit
from clonekit import Filter
from clonekit.linux.abi import call, lib
from clonekit.linux.landlock import Ruleset

ROOT = os.geteuid() == 0
DONE_OTHERWISE = {"tcsetattr", "getpid", "PTRACE_TRACEME", "waiting"}
NO_NEW_PRIVS = "prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)"
OWN_MOUNTS = 'unshare(CLONE_NEWNS), mount("none", "/", None, MS_REC | MS_PRIVATE, None)'


def calling(name: str) -> Callable[..., int]:
    """A system call that takes texts, too."""

    def make(*arguments: int | str | bytes | None) -> int:
        kept, numbers = [], []
        for value in arguments:
            if isinstance(value, str | bytes):
                kept.append(ctypes.create_string_buffer(os.fsencode(value)))
                numbers.append(ctypes.addressof(kept[-1]))
            else:
                numbers.append(value or 0)
        return call(name, *numbers)

    return make


CALLS = (
    "prctl", "ioprio_set", "set_mempolicy", "landlock_restrict_self", "setns", "unshare", "mount",
    "umount2", "pivot_root", "keyctl", "personality", "ptrace",
)  # fmt: skip
MODULES = (clonekit, fcntl, os, resource, signal, socket, struct, termios)
#: What the texts of the uses are written with.
NAMES: dict[str, Any] = {
    **{name: getattr(lib, name) for name in dir(lib) if name.isupper()},
    **{name: value for name, value in vars(signal).items() if name.startswith("SIG")},
    **{name: calling(name) for name in CALLS},
    **{module.__name__: module for module in MODULES},
}


class Room:
    """A directory that anybody may look into, and what is open, for one run."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self.stack = stack

    def keep(self, fd: int) -> int:
        """A descriptor that is closed at the end."""
        self.stack.callback(os.close, fd)
        return fd

    def zero(self) -> int:
        """A file that is open, and not for the program."""
        return self.keep(os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC))

    def terminal(self) -> int:
        """The slave of a new terminal."""
        master, slave = os.openpty()
        self.keep(master)
        return self.keep(slave)


class Setting:
    """The values of the names that a use is written with, and what it takes besides.

    `before` and `after` are what a `preexec_fn` must do too, `besides` a declaration. `common` goes
    to every Popen, `stock` to those without a declaration. `rooted` says that the program is in a
    root of its own. `outside` tells what a run has done to the world.
    """

    def __init__(self, **names: Any) -> None:
        self.names = names
        self.before = self.after = ""
        self.besides: dict[str, Any] = {}
        self.common: dict[str, Any] = {}
        self.stock: dict[str, Any] = {}
        self.rooted = False
        self.outside: Callable[[], str] = str

    def with_(self, **changed: Any) -> Setting:
        """The same, changed."""
        for name, value in changed.items():
            assert hasattr(self, name)
            setattr(self, name, value)
        return self


class Settings(NamedTuple):
    """How a use is set, what that needs, and where it is tried.

    That is `inside` a user namespace of our own if we are not root, or as leader of a `session`.
    """

    make: Callable[[Room], Setting]
    needs: tuple[str, ...]
    inside: bool
    session: bool


SETTINGS: dict[str, Settings] = {}


def setting(
    use: str, *needs: str, inside: bool = False, session: bool = False
) -> Callable[[Callable[[Room], Setting]], Callable[[Room], Setting]]:
    """Say how a use is set."""

    def add(make: Callable[[Room], Setting]) -> Callable[[Room], Setting]:
        SETTINGS[use] = Settings(make, needs, inside and not ROOT, session)
        return make

    return add


for _use, *_needs in (
    ("setsid",), ("setpgid",), ("PR_SET_PDEATHSIG",), ("setrlimit",), ("nice",),
    ("sched_setscheduler",), ("ioprio_set",), ("PR_SET_TIMERSLACK",), ("umask",), ("SIG_IGN",),
    ("pthread_sigmask",), ("alarm",), ("PR_SET_NO_NEW_PRIVS",), ("oom_score_adj",),
    ("keyctl", "keyring"), ("personality",), ("coredump_filter",), ("PR_SET_THP_DISABLE",),
    ("PR_SET_CHILD_SUBREAPER",), ("environ",),
):  # fmt: skip
    setting(_use, *_needs)(lambda _: Setting())
for _use, *_needs in (("PR_CAPBSET_DROP", "user"), ("unshare", "user")):
    setting(_use, *_needs, inside=True)(lambda _: Setting())


@setting("TIOCSCTTY")
def a_terminal(room: Room) -> Setting:
    return Setting(fd=room.terminal()).with_(before="os.setsid()")


@setting("tcsetpgrp", session=True)
def the_terminal_of_the_session(room: Room) -> Setting:
    for number in (signal.SIGTTOU, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    fd = room.terminal()
    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)
    room.stack.callback(fcntl.ioctl, fd, termios.TIOCNOTTY)
    return Setting(fd=fd).with_(common={"process_group": 0})


@setting("sched_setaffinity")
def one_processor(_: Room) -> Setting:
    cpus = os.sched_getaffinity(0)
    if len(cpus) == 1:
        pytest.skip("there is one processor")
    return Setting(cpu=max(cpus))


@setting("set_mempolicy", "numa")
def one_node(_: Room) -> Setting:
    return Setting(nodes=struct.pack("=Q", 1))


@setting("SIG_DFL")
def an_ignored_signal(room: Room) -> Setting:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    room.stack.callback(signal.signal, signal.SIGHUP, before)
    return Setting()


@setting("chdir")
def another_directory(_: Room) -> Setting:
    return Setting(path="/")


@setting("chroot", "chroot", inside=True)
def another_root(room: Room) -> Setting:
    return Setting(path=str(room.path)).with_(rooted=True)


@setting("setuid", "setuid")
@setting("setgid", "setuid")
@setting("setgroups", "setuid")
def other_ids(_: Room) -> Setting:
    return Setting(uid=NOBODY, gid=NOBODY)


@setting("PR_SET_SECCOMP")
def a_filter(_: Room) -> Setting:
    instructions = Filter("ALLOW").errno("unshare").program()
    kept = ctypes.create_string_buffer(instructions)
    program = struct.pack("HxxxxxxQ", len(instructions) // 8, ctypes.addressof(kept))
    return Setting(program=program, kept=kept).with_(
        before=NO_NEW_PRIVS, besides={"no_new_privs": True}
    )


@setting("landlock_restrict_self", "landlock")
def a_ruleset(room: Room) -> Setting:
    ruleset = room.stack.enter_context(Ruleset(write=["/dev"]))
    return Setting(ruleset=ruleset.fileno()).with_(
        before=NO_NEW_PRIVS, besides={"no_new_privs": True}
    )


@setting("setns", "user")
def the_namespace_of_another(room: Room) -> Setting:
    name = "net" if ROOT else "user"
    other = clonekit.spawn(["sleep", "1000"], namespaces=[name], fds={})
    room.stack.callback(other.close)
    room.stack.callback(other.wait)
    room.stack.callback(other.kill)
    return Setting(fd=room.keep(os.open(f"/proc/{other.pid}/ns/{name}", os.O_RDONLY)))


@setting("uid_map", "user")
def our_uid(_: Room) -> Setting:
    return Setting(uid=os.geteuid()).with_(before="unshare(CLONE_NEWUSER)")


@setting("sethostname", "uts", inside=True)
def a_host(_: Room) -> Setting:
    return Setting().with_(before="unshare(CLONE_NEWUTS)")


@setting("SIOCSIFFLAGS", "net", inside=True)
def a_network(_: Room) -> Setting:
    return Setting().with_(before="unshare(CLONE_NEWNET)")


@setting("mount", "mount", inside=True)
def a_place_for_a_mount(room: Room) -> Setting:
    return Setting(path=str(room.path / "below")).with_(before=OWN_MOUNTS)


@setting("pivot_root", "mount", inside=True)
def a_root_to_be(room: Room) -> Setting:
    there = "mount(path, path, None, MS_BIND | MS_REC, None), os.chdir(path)"
    gone = 'umount2(".", MNT_DETACH), os.chdir("/")'
    return Setting(path=str(room.path)).with_(
        before=f"{OWN_MOUNTS}, {there}", after=gone, rooted=True
    )


@setting("cgroup.procs", "cgroup")
def a_group(room: Room) -> Setting:
    group, _ = new_group()
    room.stack.callback(group.rmdir)
    return Setting(group=str(group))


@setting("/proc/self/...")
def a_file(room: Room) -> Setting:
    file = room.path / "file"
    file.write_text("")
    return Setting(path=str(file)).with_(outside=file.read_text)


@setting("closerange")
def a_file_that_is_inherited(room: Room) -> Setting:
    os.set_inheritable(room.zero(), True)  # noqa: FBT003 - it takes no name
    return Setting().with_(stock={"close_fds": False})


@setting("dup2")
@setting("set_inheritable")
def a_file_that_is_not_inherited(room: Room) -> Setting:
    return Setting(fd=room.zero()).with_(stock={"close_fds": False})
