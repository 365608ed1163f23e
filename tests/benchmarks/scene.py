"""A process in one state (heap, descriptors) that makes processes and times each of them.

A script: `scene.py '{"heap": 0, "descriptors": 0, ...}'`. Each line of its standard input asks for
rounds; each line of its output has the nanoseconds that every contestant took, spawn and wait.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import mmap
import os
import random
import resource
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from cffi import FFI  # type: ignore[import-untyped]

import clonekit

if TYPE_CHECKING:
    from collections.abc import Callable

    Contestant = Callable[[], int]

DECLARATIONS = """
struct order { char **argv; char **envp; int source[3]; int above; };
int64_t floor_clone3(struct order *);
int64_t floor_posix_spawn(struct order *);
int64_t floor_posix_spawn_bare(struct order *);
int64_t floor_fork(struct order *);
int64_t floor_vfork(struct order *);
"""
#: Who is nobody to this machine, and what a program of his may have.
NOBODY = 65534
LIMITS = {"nofile": 256, "core": 0}
#: One instruction: SECCOMP_RET_ALLOW. The time of a real filter is the filter's own.
FILTER = struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)
#: Rounds that nobody counts: a fork makes the parent fault on each page that it next writes.
UNCOUNTED = 3


def in_c(path: str, argv: list[str], source: list[int]) -> dict[str, Contestant]:
    """The contestants that are written in C, which read the clock themselves."""
    ffi = FFI()
    ffi.cdef(DECLARATIONS)
    lib: Any = ffi.dlopen(path)

    def vector(strings: list[bytes]) -> Any:
        held = [ffi.new("char[]", text) for text in strings]
        array = ffi.new("char *[]", [*held, ffi.NULL])
        keep.append((held, array))
        return array

    keep: list[Any] = []
    order = ffi.new("struct order *")
    order.argv = vector([os.fsencode(text) for text in argv])
    order.envp = vector([b"%b=%b" % item for item in os.environb.items()])
    order.source = source
    order.above = max(2, *source) + 1
    keep.append(order)

    def contestant(name: str) -> Contestant:
        function = getattr(lib, f"floor_{name}")

        def timed() -> int:
            taken: int = function(order)
            if taken < 0:
                raise OSError(-taken, f"{name}: {os.strerror(-taken)}")
            return taken

        timed.keep = keep  # type: ignore[attr-defined]
        return timed

    names = ("clone3", "posix_spawn", "posix_spawn_bare", "fork", "vfork")
    return {name: contestant(name) for name in names}


def in_python(spawn: Callable[[], Any]) -> Contestant:
    """A contestant that is one Python call: the clock is read around it."""

    def timed() -> int:
        before = time.perf_counter_ns()
        ended = spawn()
        taken = time.perf_counter_ns() - before
        status = ended if isinstance(ended, int) else ended.returncode
        if status:
            msg = f"the program ended with {status}"
            raise ChildProcessError(msg)
        return taken

    return timed


def popen_privileged(argv: list[str]) -> Callable[[], int]:
    """`Popen` with the same credentials, limits and filter: what preexec_fn is used for."""
    libc = ctypes.CDLL(None)
    code = ctypes.create_string_buffer(FILTER)
    program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", 1, ctypes.addressof(code)))
    set_no_new_privs, set_seccomp, filter_mode = 38, 22, 2

    def prepare() -> None:
        for name, value in LIMITS.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name.upper()}"), (value, value))
        libc.prctl(set_no_new_privs, 1, 0, 0, 0)
        libc.prctl(set_seccomp, filter_mode, program, 0, 0)

    return lambda: subprocess.Popen(
        argv,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        preexec_fn=prepare,  # noqa: PLW1509 - what is measured
    ).wait()


def contestants(scene: dict[str, Any]) -> dict[str, Contestant]:
    """All that can be asked for, by name."""
    argv = [scene["target"]]
    source = [0, 1, 2]
    if scene["pipes_last"]:
        source[0], source[1] = os.pipe()
    fds = dict(enumerate(source))
    program = clonekit.Spec(argv, fds=fds).program()
    privileged = clonekit.Spec(
        argv, uid=NOBODY, gid=NOBODY, rlimits=LIMITS, no_new_privs=True, seccomp=FILTER
    ).program()
    number = itertools.count()
    named: dict[str, Callable[[], Any]] = {
        "clonekit_compiled": lambda: program.spawn().wait(),
        "clonekit_one_shot": lambda: clonekit.spawn(argv).wait(),
        "clonekit_new_argv": lambda: clonekit.spawn([*argv, str(next(number))]).wait(),
        "subprocess": lambda: subprocess.Popen(argv).wait(),
        "clonekit_privileged": lambda: privileged.spawn().wait(),
        "subprocess_privileged": popen_privileged(argv),
    }
    if scene["pipes_last"]:
        stdin, stdout, _ = source
        named["clonekit_one_shot"] = lambda: clonekit.spawn(argv, fds=fds).wait()
        named["clonekit_new_argv"] = lambda: clonekit.spawn(
            [*argv, str(next(number))], fds=fds
        ).wait()
        named["subprocess"] = lambda: subprocess.Popen(argv, stdin=stdin, stdout=stdout).wait()
    return {
        **in_c(scene["floor"], argv, source),
        **{name: in_python(spawn) for name, spawn in named.items()},
    }


def occupy(size: int) -> mmap.mmap | None:
    """Touch this many bytes in pages of the smallest size."""
    if not size:
        return None
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for offset in range(0, size, mmap.PAGESIZE):
        memory[offset] = 1
    return memory


def rounds(
    known: dict[str, Contestant], names: list[str], count: int, *, loop: bool
) -> dict[str, list[int]]:
    """Time each contestant `count` times: each in a loop, or in turn, each round in a new order."""
    count += UNCOUNTED
    taken: dict[str, list[int]] = {name: [] for name in names}
    turns = [random.sample(names, len(names)) for _ in range(count)]
    order = [name for turn in turns for name in turn]
    if loop:
        order.sort()
    for name in order:
        taken[name].append(known[name]())
    return {name: times[UNCOUNTED:] for name, times in taken.items()}


def perform(contestants: Callable[[dict[str, Any]], dict[str, Contestant]]) -> None:
    """Set the scene, then answer."""
    scene = json.loads(sys.argv[1])
    if scene["cpu"] is not None:
        os.sched_setaffinity(0, {scene["cpu"]})
    held = occupy(scene["heap"])
    for _ in range(scene["descriptors"]):
        os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    known = contestants(scene)
    for line in sys.stdin:
        print(json.dumps(rounds(known, **json.loads(line))), flush=True)
    del held


if __name__ == "__main__":
    perform(contestants)
