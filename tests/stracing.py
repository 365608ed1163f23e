"""A process that spawns while strace watches it, and what strace then says.

`Worker` is a Python process that runs functions of the test modules. strace is attached to it
after it has begun, so that only what a test asks for is seen or tampered with.
"""

from __future__ import annotations

import ast
import errno
import fcntl
import functools
import os
import pickle
import re
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import step_cases
from parent_snapshot import changes, snapshot
from step_cases import Room

from clonekit import DeclarationError, Program, SpawnError
from clonekit.explain import SIGNATURES, rows
from clonekit.linux.abi import NUMBERS, call, lib
from clonekit.steps import execute

HANG = 120  # seconds after which a worker is taken for hung
LONGEST = 1 << 20  # bytes of a string that strace shows
#: Calls that strace shows with their strings; all others are shown as six numbers.
DECODED = sorted(
    {"pipe2", "recvmsg"}
    | {
        name
        for name, words in SIGNATURES.items()
        if {"s", "v", "e", "t@1", "t@2"} & {*words.split()}
    }
)


class Seen(NamedTuple):
    """One system call as strace saw it: numbers are ints, strings bytes, vectors lists."""

    name: str
    arguments: list[Any]
    result: int | None  # -errno for a failure, None if it did not return


class Worker:
    """A Python process without other threads, whose memory is its heap alone.

    Its standard descriptors are /dev/null. `prepare` runs in it first, when nothing else does.
    """

    def __init__(self, prepare: Callable[..., object] | None = None, *arguments: object) -> None:
        environment = {
            **os.environ,
            # No arenas: what Python allocates is in [heap], so other mappings stay as they are.
            "PYTHONMALLOC": "malloc",
            "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
            "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
            "MALLOC_ARENA_MAX": "1",
            "PYTHONHASHSEED": "0",
        }
        inner, self._requests = os.pipe2(os.O_CLOEXEC)
        self._answers, outer = os.pipe2(os.O_CLOEXEC)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(inner), str(outer)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            pass_fds=(inner, outer), env=environment,
        )  # fmt: skip
        os.close(inner)
        os.close(outer)
        self.pid: int = self.run(os.getpid)
        if prepare is not None:
            self.run(prepare, *arguments)

    def run(self, function: Callable[..., Any], *arguments: object) -> Any:
        """What the function gives in the worker; it and its arguments must be picklable."""
        request = pickle.dumps((function, arguments))
        write_all(self._requests, len(request).to_bytes(8, "little") + request)
        kind, value = pickle.loads(self._read(int.from_bytes(self._read(8), "little")))  # noqa: S301 - our own
        if kind == "raised":
            raise AssertionError(value)
        return value

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            if not select.select([self._answers], [], [], HANG)[0]:
                self._process.kill()
                self._process.wait()
                message = f"the worker has not answered for {HANG} s"
                raise AssertionError(message)
            part = os.read(self._answers, size - len(data))
            if not part:
                assert self._process.stderr
                told = self._process.stderr.read().decode()
                message = f"the worker ended with {self._process.wait()}: {told}"
                raise AssertionError(message)
            data += part
        return data

    def close(self) -> None:
        """End the worker."""
        os.close(self._requests)
        os.close(self._answers)
        self._process.wait()
        assert self._process.stderr
        self._process.stderr.close()

    @property
    def lives(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    @contextmanager
    def watched(self, *options: str) -> Iterator[Callable[[], dict[int, list[Seen]]]]:
        """Have strace watch the worker and its children meanwhile.

        Gives a function that ends that, and tells what was seen of each process in order.
        """
        with tempfile.NamedTemporaryFile("r", prefix="strace-", encoding="ascii") as log:
            command = [
                "strace", "--follow-forks", "-X", "raw", "-xx", "-v", "-s", str(LONGEST),
                "-e", f"raw=!{','.join(DECODED)}", *options, "-o", log.name, "-p", str(self.pid),
            ]  # fmt: skip
            strace: subprocess.Popen[str] = subprocess.Popen(
                command, stderr=subprocess.PIPE, text=True
            )

            def seen() -> dict[int, list[Seen]]:
                if strace.poll() is None:
                    strace.send_signal(signal.SIGTERM)
                    strace.wait()
                return parsed(log.read())

            try:
                assert strace.stderr
                told = strace.stderr.readline()
                assert "attached" in told, told
                yield seen
            finally:
                seen()
                if strace.stderr:
                    strace.stderr.close()


def write_all(fd: int, data: bytes) -> None:
    """Write all of it."""
    while data:
        data = data[os.write(fd, data) :]


#: A success and a failure, after which a process has imported and mapped what a spawn takes.
WARM = (
    "own_table-the_table_is_the_childs_own",
    "write_file-a_file_to_write_that_is_not_there",
    "disable_huge_pages-huge_pages_are_off",
)
#: What the first stage calls by itself, before its records, and around a clone among these.
OF_STAGE = ("prctl", "lseek", "mmap", "close")
AROUND_CLONE = "rt_sigaction"


def warm_worker(path: Path, see: Path, begin: Callable[..., object], *arguments: object) -> Worker:
    """A worker that has run `begin`, and has spawned before."""
    worker = Worker(begin, *arguments)
    for _ in range(2):
        for name in WARM:
            worker.run(prepare, of_case, (name,), path, see)
        worker.run(spawn_ready)
        worker.run(finish)
    return worker


@functools.cache
def missing_strace() -> str:
    """Why strace cannot watch a process of ours; "" if it can."""
    try:
        worker = Worker()
    except AssertionError as error:
        return f"no worker: {error}"
    try:
        with worker.watched() as seen:
            worker.run(os.getppid)
            if not any(call.name == "getppid" for call in seen().get(worker.pid, ())):
                return "strace sees nothing"
    except (OSError, AssertionError) as error:
        return f"strace cannot watch: {error}"
    finally:
        worker.close()
    return ""


# ---- what strace wrote ----

LINE = re.compile(r"^(\d+) +(.*)$")
CALL = re.compile(r"^(\w+)\((.*)\) += (\S+)(?: (E\w+))?.*$")


def parsed(text: str) -> dict[int, list[Seen]]:
    """The calls of each process, processes in the order of their first call."""
    calls: dict[int, list[Seen]] = {}
    begun: dict[int, str] = {}
    for line in text.splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        pid, event = int(match[1]), match[2]
        if event.endswith(" <unfinished ...>"):
            begun[pid] = event.removesuffix(" <unfinished ...>")
            calls.setdefault(pid, [])
            continue
        if event.startswith("<... "):
            event = begun.pop(pid, "") + event.partition(" resumed>")[2]
        if call := CALL.match(event):
            calls.setdefault(pid, []).append(
                Seen(call[1], arguments_of(call[2]), result_of(call[3], call[4]))
            )
    return calls


def result_of(value: str, error: str | None) -> int | None:
    """A call's result, -errno for a failure."""
    if error:
        return -int(getattr(errno, error))
    return None if value == "?" else number(value)


def number(text: str) -> int:
    """A number as C writes it."""
    return int(text, 8) if re.fullmatch(r"0[0-7]+", text) else int(text, 0)


def arguments_of(text: str) -> list[Any]:
    """A call's arguments; structures stay text."""
    return [argument(part) for part in split(text)]


def split(text: str) -> list[str]:
    """The parts between the commas that stand in no bracket."""
    parts: list[str] = []
    depth = 0
    for piece in text.split(", "):
        if depth:
            parts[-1] += f", {piece}"
        elif piece:
            parts.append(piece)
        depth += sum(map(piece.count, "[{")) - sum(map(piece.count, "]}"))
    return parts


def argument(text: str) -> Any:
    """One argument. With -xx no string holds a comma, a quote or a bracket."""
    if text == "NULL":
        return 0
    if text.startswith('"'):
        return ast.literal_eval(f"b{text}")
    if text.startswith("["):
        return [argument(part) for part in split(text[1:-1])]
    try:
        return number(text)
    except ValueError:
        return text


def followed(calls: dict[int, list[Seen]], pid: int) -> list[Seen]:
    """The calls of a child, from a clone of its own on those of the process that it makes."""
    seen = calls[pid]
    for number, one in enumerate(seen):
        if one.name == "clone" and (one.result or 0) > 0:
            pids = [*calls]
            return seen[: number + 1] + calls[pids[pids.index(pid) + 1]]
    return seen


# ---- the worker's side ----


class Outcome(NamedTuple):
    """What became of a spawn, and what it changed in the process that spawned."""

    pid: int  # 0: no child, or one that was reaped before anybody could tell
    ended: tuple[int | None, int | None] | None  # status, signal
    error: dict[str, Any] | None


READY: list[tuple[Room, Program, dict[str, int]]] = []
BEFORE: dict[str, object] = {}


def begin(refused: dict[str, int] | None = None) -> None:
    """Lead a session, so that `setsid` does nothing; put the worker under a filter."""
    os.setsid()
    if refused:
        step_cases.install(step_cases.refusing(refused))


def prepare(
    make: Callable[..., tuple[Program, dict[str, int]]],
    arguments: tuple[object, ...],
    path: Path,
    see: Path,
) -> list[dict[str, Any]] | str:
    """Compile a program for `spawn_ready`.

    Gives its records as `explain` shows them, or why it is refused.
    """
    room = Room(Path(tempfile.mkdtemp(dir=path)), see)
    try:
        program, slots = make(room, *arguments)
    except DeclarationError as error:
        room.stack.close()
        return str(error)
    except BaseException:
        room.stack.close()
        raise
    READY.append((room, program, slots))
    shown = rows(program)
    BEFORE.update(snapshot(memory=True))
    return shown


def of_case(room: Room, name: str) -> tuple[Program, dict[str, int]]:
    """The program of a case."""
    case = next(case for case in step_cases.CASES if str(case) == name)
    return Program([*case.steps(room), execute(case.argv)]), {}


def spawn_ready(*tampered: tuple[str, int]) -> list[Outcome]:
    """Spawn each program that was prepared, once.

    `tampered` are calls of which strace spoils the nth: this process has its own behind it first.
    """
    for name, count in tampered:
        for _ in range(count):
            lib.ck_raw(NUMBERS[name], *HARMLESS.get(name, (-1,) * 6))
    return [spawned(program, slots) for _, program, slots in READY]


#: Arguments with which a call changes nothing, where -1 each is not enough.
HARMLESS = {"umask": (os.umask(0o022), 0, 0, 0, 0, 0)}
os.umask(HARMLESS["umask"][0])


#: What is told of a SpawnError.
DETAILS = ("errno", "step", "step_number", "phase", "syscall", "arguments", "signal")


def spawned(program: Program, slots: dict[str, int]) -> Outcome:
    """Spawn a program and wait for its end."""
    try:
        process = program.spawn(**slots)
    except SpawnError as error:
        failed = {name: getattr(error, name) for name in DETAILS}
        failed["classes"] = [kind.__name__ for kind in type(error).__mro__]
        return Outcome(0, None, failed)
    with process:
        ended = process.wait()
        return Outcome(process.pid, (ended.status, ended.signal), None)


def finish() -> dict[str, tuple[object, object]]:
    """What is not as it was before the spawns; their rooms are closed then."""
    changed = changes(BEFORE, snapshot(memory=True))
    for room, *_ in READY:
        room.stack.close()
    READY.clear()
    return changed


def serve(requests: int, answers: int) -> None:
    """Run functions until there are no more; both pipes leave the low numbers to them."""
    inner, outer = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 200) for fd in (requests, answers))
    os.close(requests)
    os.close(answers)
    with open(inner, "rb") as told:
        while size := told.read(8):
            try:
                function, arguments = pickle.loads(told.read(int.from_bytes(size, "little")))  # noqa: S301 - our own
                answer: tuple[str, Any] = ("gives", function(*arguments))
                data = pickle.dumps(answer)
            except BaseException:  # noqa: BLE001 - whatever it is, it is the answer
                import traceback

                data = pickle.dumps(("raised", traceback.format_exc()))
            write_all(outer, len(data).to_bytes(8, "little") + data)


def be_traceable() -> None:
    """Let any process of our uid attach, where Yama would allow only an ancestor."""
    try:
        call("prctl", lib.PR_SET_PTRACER, -1)  # PR_SET_PTRACER_ANY
    except OSError as error:
        if error.errno != errno.EINVAL:  # Yama is not there
            raise


if __name__ == "__main__":
    be_traceable()
    serve(int(sys.argv[1]), int(sys.argv[2]))
