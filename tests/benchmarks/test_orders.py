"""An order's round trip beside a byte's, and starts by orders beside a program compiled before.

Whoever waits awake needs a processor for it. So all is measured twice: where the scheduler likes,
and with parent and children on one processor.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cffi import FFI  # type: ignore[import-untyped]

import clonekit
from clonekit.linux import abi
from clonekit.steps import set_rlimit, system_call

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from clonekit.process import Process
    from clonekit.steps.step import Step

    Contestant = Callable[[], float]

HERE = Path(__file__).resolve().parent
CDEFS = HERE.parents[1] / "cdefs"
TURNS = 40
ROUNDS = 10
#: Rounds of each turn that nobody counts.
UNCOUNTED = 2
#: A sample of a round trip is the mean of so many in a row; those before them wake both sides.
TRIPS = 100
TRIPS_BEFORE = 20
#: A deadline that nobody misses.
SECONDS = 10.0
GETPPID = system_call("getppid")

PROCESSORS = os.sched_getaffinity(0)
PLACES = {"any processor": PROCESSORS, "one processor": {max(PROCESSORS)}}
TRIPPING = (
    "pipe",
    "socketpair",
    "order",
    "order_asleep",
    "order_python",
    "order_new",
    "injected",
)
STARTING = (
    "plain",
    "deadline",
    "limits",
    "limits_deadline",
    "nascent",
    "nascent_one_order",
    "nascent_ten_orders",
    "suspended",
    "suspended_one_call",
)
DECLARATIONS = """
int trips_echo(int, int);
int64_t trips_of_byte(int, int, uint32_t, uint32_t);
uint32_t trips_asleep(uintptr_t, int64_t);
int64_t trips_of_order(uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uint32_t,
                       uint32_t);
"""
#: Ten calls that change nothing: each limit is set to what it is.
LIMITS = {
    name: tuple(
        None if value == resource.RLIM_INFINITY else value
        for value in resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))
    )
    for name in (
        "as", "core", "cpu", "data", "fsize", "memlock", "nofile", "nproc", "rss", "stack",
    )
}  # fmt: skip


def in_c(function: Callable[..., int], *arguments: int, keep: object = None) -> Contestant:
    """A function that makes round trips and reads the clock itself; what it is to find is kept."""

    def timed() -> float:
        taken = function(*arguments, TRIPS_BEFORE, TRIPS)
        if taken < 0:
            raise OSError(-taken, os.strerror(-taken))
        return taken / 1e9 / TRIPS

    timed.keep = keep  # type: ignore[attr-defined]
    return timed


def in_python(call: Callable[[], object], before: int = 0, count: int = 1) -> Contestant:
    """A Python call, made so many times: the clock is read around all of them."""

    def timed() -> float:
        for _ in range(before):
            call()
        start = time.perf_counter_ns()
        for _ in range(count):
            call()
        return (time.perf_counter_ns() - start) / 1e9 / count

    return timed


def echo(lib: Any, ours: tuple[int, int], theirs: tuple[int, int], stack: ExitStack) -> Contestant:
    """A byte to a process and back; of each side, what it writes to and what it reads."""
    pid = lib.trips_echo(*theirs)
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid))
    stack.callback(os.waitpid, pid, 0)
    stack.callback(os.kill, pid, signal.SIGKILL)
    for fd in {*ours, *theirs}:
        stack.callback(os.close, fd)
    return in_c(lib.trips_of_byte, *ours)


def addresses(*pointers: Any) -> list[int]:
    """What cffi of one library can give to another."""
    return [int(abi.ffi.cast("uintptr_t", pointer)) for pointer in pointers]


def order_in_c(lib: Any, child: Any, attend: int) -> Contestant:
    """A call that was compiled before, ordered and waited for in C."""
    order = child.order_of([GETPPID])
    inputs = abi.ffi.new("int64_t[]", order.values)
    give = abi.ffi.addressof(abi.lib, "ck_order")
    given = addresses(child._driven.struct, order.struct, inputs)
    return in_c(lib.trips_of_order, *addresses(give), attend, *given, keep=(order, inputs))


def order_in_python(child: Any) -> Contestant:
    """The same from Python."""
    driven, order = child._driven, child.order_of([GETPPID])

    def trip() -> None:
        driven.order(order, order.values, abi.lib.CK_STAYS)
        while driven.attend(time.monotonic() + 1) == abi.lib.CK_RUNNING:
            pass

    return in_python(trip, TRIPS_BEFORE, TRIPS)


def trips(built: Path, stack: ExitStack) -> dict[str, Contestant]:
    """Round trips: to a process that sends bytes back, to a child that waits, to one stopped."""
    ffi = FFI()
    ffi.cdef(DECLARATIONS)
    lib: Any = ffi.dlopen(str(built / "trips.so"))
    awake, asleep = (stack.enter_context(clonekit.nascent()) for _ in range(2))
    asleep._driven.struct.frame.spins = 0
    stopped = stack.enter_context(clonekit.spawn([built / "target"], suspended=True))
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    ours, theirs = (end.detach() for end in socket.socketpair())
    return {
        "pipe": echo(lib, (our_out, our_in), (their_out, their_in), stack),
        "socketpair": echo(lib, (ours, ours), (theirs, theirs), stack),
        "order": order_in_c(lib, awake, *addresses(abi.ffi.addressof(abi.lib, "ck_attend"))),
        "order_asleep": order_in_c(
            lib, asleep, int(ffi.cast("uintptr_t", ffi.addressof(lib, "trips_asleep")))
        ),
        "order_python": order_in_python(awake),
        "order_new": in_python(lambda: awake.syscall("getppid"), TRIPS_BEFORE, TRIPS),
        "injected": in_python(lambda: stopped.syscall("getppid"), TRIPS_BEFORE, TRIPS),
    }


def ended(process: Process) -> None:
    """Wait for a program that does nothing."""
    status = process.wait().returncode
    if status:
        msg = f"the program ended with {status}"
        raise ChildProcessError(msg)


def starts(built: Path) -> dict[str, Contestant]:
    """A spawn and its wait; the program's limits are set by one program, or by orders."""
    argv = [built / "target"]
    steps = [set_rlimit(name, *values) for name, values in LIMITS.items()]

    def compiled(**declaration: Any) -> Contestant:
        program = clonekit.Spec(argv, **declaration).program()
        return in_python(lambda: ended(program.spawn()))

    def ordered(*orders: Sequence[Step]) -> Contestant:
        def start() -> None:
            with clonekit.nascent() as child:
                for order in orders:
                    child.do(*order)
                ended(child.start(argv))

        return in_python(start)

    suspended = clonekit.Spec(argv, suspended=True).program()

    def resumed(*calls: str) -> Contestant:
        def start() -> None:
            with suspended.spawn() as child:
                for call in calls:
                    child.syscall(call)
                ended(child.resume())

        return in_python(start)

    return {
        "plain": compiled(),
        "deadline": compiled(deadline=SECONDS),
        "limits": compiled(rlimits=LIMITS),
        "limits_deadline": compiled(rlimits=LIMITS, deadline=SECONDS),
        "nascent": ordered(),
        "nascent_one_order": ordered(steps),
        "nascent_ten_orders": ordered(*([step] for step in steps)),
        "suspended": resumed(),
        "suspended_one_call": resumed("getppid"),
    }


def build(directory: Path) -> None:
    """Compile the round trips and the target."""
    compiler = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror"]
    small = ["-static", "-nostdlib", "-Wl,-z,noseparate-code", "-Wl,--build-id=none"]
    shared = ["-shared", "-fPIC", f"-I{CDEFS}"]
    subprocess.run([*compiler, *small, HERE / "target.c", "-o", directory / "target"], check=True)
    subprocess.run([*compiler, *shared, HERE / "trips.c", "-o", directory / "trips.so"], check=True)


@pytest.fixture(scope="module")
def samples(
    wanted: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], list[float]]:
    """The seconds of every sample. Places take turns, and so do contestants, in a new order."""
    built = tmp_path_factory.mktemp("orders")
    build(built)
    asked = [(entry["place"], entry["name"]) for entry in wanted if "place" in entry]
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in asked}
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, PROCESSORS)
        known = {}
        for place, processors in PLACES.items():
            os.sched_setaffinity(0, processors)
            for name, contestant in {**trips(built, stack), **starts(built)}.items():
                known[place, name] = contestant
        for _ in range(TURNS):
            for place in random.sample([*PLACES], len(PLACES)):
                os.sched_setaffinity(0, PLACES[place])
                keys = [key for key in asked if key[0] == place]
                for n in range(UNCOUNTED + ROUNDS):
                    for key in random.sample(keys, len(keys)):
                        seconds = known[key]()
                        if n >= UNCOUNTED:
                            taken[key].append(seconds)
    return taken


@pytest.mark.parametrize("name", TRIPPING + STARTING)
@pytest.mark.parametrize("place", PLACES)
def test_orders(
    place: str,
    name: str,
    samples: dict[tuple[str, str], list[float]],
    play: Callable[[str, Sequence[float]], None],
) -> None:
    """A round trip; or from the start until the end of a program that does nothing was seen."""
    play(place, samples[place, name])
