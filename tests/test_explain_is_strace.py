"""What `explain` prints is what strace sees in the child between clone3 and exec."""

from __future__ import annotations

import errno
import itertools
import os
import re
import signal
import socket
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest
import stracing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from step_cases import CASES, WITHOUT_CASES, Case, Room, missing, missing_of
from stracing import (
    AROUND_CLONE,
    OF_STAGE,
    Outcome,
    Seen,
    Worker,
    begin,
    finish,
    followed,
    of_case,
    prepare,
    spawn_ready,
    warm_worker,
)

from clonekit import INHERIT, Program, Slot, Spec
from clonekit.linux.abi import lib
from clonekit.steps.step import KINDS

Row = dict[str, Any]
GUARDED = re.compile("PR_SET_DUMPABLE|setns|load_first_stage")
SENT = re.compile(r"cmsg_data=\[([^\]]+)\]")
LOADED = re.compile(r"(\$\S+) = scratch\+")
#: How a child that asks tells its parent, and waits.
WAITING = ("futex", "sched_yield")
#: strace leaves the mode out where the flags make no file, and the number where it is no device.
SHORTENED = ("mknodat", "openat")
#: What the spawning process finds out at each spawn: a number above all that it keeps, its pidfd.
DRIVERS_OWN = ("$.above", "$.parent", "$.plan", "$.alive", "$.stage")
#: It shows the address of a name that is too long.
HOST_NAMES = ("sethostname", "setdomainname")
LONGEST_HOST_NAME = 64


class Run(NamedTuple):
    """A program as it was explained, as it was seen, and what became of it."""

    rows: list[Row]
    calls: list[Seen]
    outcome: Outcome
    slots: dict[str, int]


class DifferenceError(AssertionError):
    """What was explained is not what was seen."""


def refuse(row: Row, call: Seen, why: str) -> NoReturn:
    """Say what differs."""
    message = f"{why}: explained {row['text']} (args {row.get('args')}), seen {call}"
    raise DifferenceError(message)


def compared(run: Run) -> int:
    """How many rows were run; raises `DifferenceError`."""
    registers = {f"${name}": value for name, value in run.slots.items()}
    calls = [*without_own(run.calls), Seen("nothing more", [], None)]
    at = 0
    # A tracer without privilege sees no strings of a memory that is untraceable.
    unreadable = os.geteuid() != 0 and any(row.get("syscall") == "setns" for row in run.rows)
    ends: list[int] = []
    last: Row | None = None
    for number, row in enumerate(run.rows):
        call = calls[at]
        if last is not None and call.name == "exit_group" and not waits(row):
            return ended(run, last, number)
        if "syscall" not in row:
            load(row, registers, ends)
            last = asked(row) or last
            at += waiting(calls[at:])
            continue
        compare(row, call, registers, unreadable=unreadable)
        if "result" in row:
            registers[row["result"]] = call.result or 0
        if call.name == "pipe2" and call.result == 0:
            ends = list(call.arguments[0])
        if call.name == "recvmsg" and (sent := SENT.search(str(call.arguments[1]))):
            ends = [int(fd, 0) for fd in sent[1].split(", ")]
        if untraceable(row):
            unreadable = os.geteuid() != 0
        if "candidate" in row and call.result == 0:
            assert run.outcome.error is None, run.outcome
            return number + 1
        last = row
        at += 1
    if last is None or calls[at].name != "exit_group":
        message = f"more calls than were explained: {calls[at]}"
        raise DifferenceError(message)
    return ended(run, last, len(run.rows))


def waits(row: Row) -> bool:
    """Whether a child waits for its parent, and may hear that it has failed."""
    return str(row["text"]).startswith("wait for the parent: ")


def asked(row: Row) -> Row | None:
    """The row, if it is one in which a child asks or waits."""
    return row if waits(row) or "parent" in row else None


def waiting(calls: list[Seen]) -> int:
    """How many calls a child makes to tell its parent, and to wait."""
    return sum(1 for _ in itertools.takewhile(lambda call: call.name in WAITING, calls))


def untraceable(row: Row) -> bool:
    """Whether from here on a tracer without privilege sees no strings."""
    loads = row["step"] == "load_first_stage()" and row["syscall"] == "execveat"
    return loads or (row["syscall"], row["args"][:2]) == ("prctl", [lib.PR_SET_DUMPABLE, 0])


def without_own(calls: list[Seen]) -> Iterator[Seen]:
    """The calls of a child but those that the first stage makes by itself."""
    number = 0
    while number < len(calls):
        call = calls[number]
        yield call
        number += 1
        following = [each.name for each in calls[number:]]
        if call.name == "execveat" and following[: len(OF_STAGE)] == [*OF_STAGE]:
            number += len(OF_STAGE)
        if following[1:2] == ["clone"]:
            assert following[0] == AROUND_CLONE
            yield calls[number + 1]
            assert following[2] == AROUND_CLONE
            number += 3


def load(row: Row, registers: dict[str, int], ends: list[int]) -> None:
    """A register that is loaded from scratch has what the last pipe2 or recvmsg put there."""
    loaded = LOADED.match(row["text"])
    if loaded and row["step"] != "load_first_stage()":  # there it is bytes of a number
        if not ends:
            message = f"{row['text']}: no call has made it"
            raise DifferenceError(message)
        registers[loaded[1]] = ends.pop(0)


def ended(run: Run, last: Row, count: int) -> int:
    """The child gave up: the error must name what it did last, or another candidate."""
    error = run.outcome.error
    assert error is not None, run
    if "candidate" in last:
        assert error["step_number"] == last["step_number"]
    else:
        assert (error["step_number"], error["arguments"]) == (last["step_number"], last["text"])
    return count


def compare(row: Row, call: Seen, registers: dict[str, int], *, unreadable: bool) -> None:
    """Whether each argument is the same."""
    if call.name != row["syscall"]:
        refuse(row, call, "another call")
    explained, seen = row["args"], call.arguments
    unreadable = unreadable or too_long(row)
    if len(explained) > len(seen) and call.name not in SHORTENED:
        refuse(row, call, "more arguments")
    for one, other in zip(explained, seen, strict=False):
        if not same(one, other, registers, unreadable=unreadable):
            refuse(row, call, f"argument {one!r} is {other!r}")
    if any(seen[len(explained) :]):
        refuse(row, call, "fewer arguments")


def too_long(row: Row) -> bool:
    """Whether strace shows the address of a name instead of the name."""
    return row["syscall"] in HOST_NAMES and len(os.fsencode(row["args"][0])) > LONGEST_HOST_NAME


def same(explained: object, seen: object, registers: dict[str, int], *, unreadable: bool) -> bool:
    """Whether an argument as explained is what was seen."""
    if isinstance(seen, bytes):
        return isinstance(explained, str) and os.fsencode(explained) == seen
    if isinstance(seen, list) and isinstance(explained, list):
        return [os.fsencode(text) for text in explained] == seen
    if isinstance(explained, str) and explained.startswith("$") and isinstance(seen, int):
        if explained in DRIVERS_OWN:
            registers.setdefault(explained, seen)
        explained = registers.get(explained)
    if isinstance(explained, int) and isinstance(seen, int):
        return (explained - seen) % (1 << 32 if -(1 << 31) <= seen < 1 << 32 else 1 << 64) == 0
    if unreadable and isinstance(seen, int):
        return isinstance(explained, str | list)
    return isinstance(explained, str) and explained.startswith("&") and seen != 0


# ---- running them ----


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, built: Path) -> tuple[Path, Path]:
    """Where the programs may work, and the program `see`."""
    if reason := stracing.missing_strace():
        pytest.skip(reason)
    path = tmp_path_factory.mktemp("rooms")
    path.chmod(0o711)
    return path, built / "see"


def watch(worker: Worker, prepared: list[tuple[list[Row], dict[str, int]]]) -> list[Run]:
    """Spawn what was prepared, and see it done."""
    with worker.watched() as seen:
        outcomes: list[Outcome] = worker.run(spawn_ready)
        calls = seen()
    assert worker.run(finish) == {}
    clones = [call.result or -1 for call in calls[worker.pid] if call.name in {"clone", "clone3"}]
    children = iter([pid for pid in clones if pid > 0])
    runs = []
    for (rows, slots), outcome in zip(prepared, outcomes, strict=True):
        if outcome.error and outcome.error["phase"] == "clone":
            continue
        pid = next(children)
        assert outcome.pid in {0, *[made for made in calls if made >= pid]}
        runs.append(Run(rows, followed(calls, pid), outcome, slots))
    return runs


# ---- every step ----


@pytest.fixture(scope="module")
def runs(places: tuple[Path, Path]) -> dict[str, Run]:
    """Each case that can be tried here, but those whose clone fails."""
    found: dict[str, Run] = {}
    able = [case for case in CASES if not missing_of(case)]
    for refused in {tuple(case.refused.items()) for case in able}:
        worker = warm_worker(*places, begin, dict(refused))
        try:
            cases = [case for case in able if tuple(case.refused.items()) == refused]
            for case in cases:
                rows = worker.run(prepare, of_case, (str(case),), *places)
                assert isinstance(rows, list), rows
                for run in watch(worker, [(rows, {})]):
                    found[str(case)] = run
        finally:
            worker.close()
    return found


@pytest.mark.usefixtures("needs")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_explained_is_what_strace_sees(case: Case, runs: dict[str, Run]) -> None:
    if str(case) not in runs:
        assert "clone3" in case.refused or "cgroup" in case.step, "its clone failed"
        return
    compared(runs[str(case)])


def test_together_the_cases_run_every_step_that_makes_calls(runs: dict[str, Run]) -> None:
    run = {
        row["step"].partition("(")[0]
        for case in runs.values()
        for row in case.rows[: compared(case)]
    }
    out_of_reach = {case.step for case in CASES if missing_of(case)}
    of_the_clone = {kind.name for kind in KINDS.values() if kind.phase == "clone"}
    assert run >= set(KINDS) - out_of_reach - of_the_clone - WITHOUT_CASES


def changed(row: Row) -> Iterator[Row]:
    """The row with one thing of it different."""
    yield {**row, "syscall": "acct"}
    for number, value in enumerate(row["args"][:3] if row["syscall"] in SHORTENED else row["args"]):
        other: object = f"{value}x"
        if isinstance(value, int):
            other = value + 1
        elif isinstance(value, list):
            other = [*value, "x"]
        elif value.startswith("&"):
            other = 7
        yield {**row, "args": [*row["args"][:number], other, *row["args"][number + 1 :]]}


def test_any_other_explanation_would_be_noticed(runs: dict[str, Run]) -> None:
    tried = 0
    for case in runs.values():
        count = compared(case)
        for number, row in enumerate(case.rows[:count]):
            if (
                "syscall" not in row
                or too_long(row)
                or (os.geteuid() and GUARDED.search(str(case.rows)))
            ):
                continue
            before, after = case.rows[:number], case.rows[number + 1 :]
            wrong = [before + after, *([*before, other, *after] for other in changed(row))]
            if number < count - 1:
                wrong.append([*before, row, row, *after])
            for rows in wrong:
                if rows != case.rows and not equal_calls(rows, case.rows):
                    assert not agrees(case._replace(rows=rows)), [
                        row for row in rows if row not in case.rows
                    ]
                    tried += 1
    assert tried > 1000


def agrees(run: Run) -> bool:
    """Whether an explanation is what was seen."""
    try:
        compared(run)
    except AssertionError:
        return False
    return True


def equal_calls(rows: list[Row], others: list[Row]) -> bool:
    """Whether two explanations say the same but for what one cannot see of an address."""
    return [row.get("args") for row in rows] == [row.get("args") for row in others]


# ---- any declaration ----

OPEN = (0, 1, 2, *range(3, 13), 20, 33)
WORDS = st.text(string.printable.replace("\0", "") + "é\udc80\U0001f600", min_size=1, max_size=12)
NAMES = WORDS.filter(lambda text: "/" not in text)
SIGNALS = st.lists(
    st.sampled_from(sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})).map(int),
    max_size=5,
)
PATHS = st.sampled_from(["/", "/proc", "/tmp", "@", "/proc/self/../..", "@/./..", "/$0"])


#: prctl as a declaration has it.
ATTRIBUTES = [("SET_CHILD_SUBREAPER", 1), (lib.PR_SET_TIMERSLACK, 1 << 40)]
#: Capabilities that a program keeps over its exec.
INHERITED = {name: ["chown"] for name in ("permitted", "inheritable", "ambient")}
#: Stands for a descriptor of /bin/true, which only the worker can open.
BY_DESCRIPTOR = "=descriptor"


def begin_open() -> None:
    """Have the descriptors of `OPEN`."""
    begin()
    for fd in OPEN:
        if fd > 2:
            os.dup2(2, fd)


#: A step as data: its name, arguments and keywords.
Given = tuple[str, tuple[Any, ...], dict[str, Any]]


@st.composite
def openings(draw: st.DrawFn) -> tuple[list[Given], list[str]]:  # noqa: C901 - a branch a step
    """Steps that open things, in an order of their own, and the slots that they make."""
    steps: list[Given] = []
    slots: list[str] = []

    def source() -> int | Slot:
        one: int | Slot = draw(st.sampled_from([*OPEN, *map(Slot, slots)]))
        return one

    def new() -> str:
        slots.append(f"s{len(slots)}")
        return slots[-1]

    for kind in draw(st.lists(st.sampled_from(OPENERS), max_size=6)):
        arguments: tuple[Any, ...] = ()
        keywords: dict[str, Any] = {}
        if kind == "open_file":
            flags = draw(st.sampled_from([os.O_RDONLY, os.O_RDWR | os.O_CREAT, os.O_PATH]))
            arguments = (
                f"@/{draw(NAMES)}" if flags & os.O_CREAT else "/dev/null",
                flags,
                draw(st.integers(0, 0o777)),
            )
            if flags != os.O_PATH and draw(st.booleans()):
                keywords["resolve"] = draw(st.sampled_from([0, lib.RESOLVE_NO_SYMLINKS]))
            keywords["name"] = new()
        elif kind == "open_pipe":
            arguments = (new(), new())
        elif kind == "open_memory":
            arguments, keywords = (draw(WORDS),), {"name": new()}
        elif kind == "open_socket":
            arguments, keywords = (socket.AF_UNIX, socket.SOCK_STREAM), {"name": new()}
        elif kind == "duplicate":
            arguments = (source(),)
            keywords = {"at_least": draw(st.integers(0, 60)), "name": new()}
        elif kind == "write":
            arguments = (source(), draw(st.binary(max_size=50)))
        elif kind == "write_file":
            arguments = (f"@/{draw(NAMES)}", draw(st.binary(max_size=50)), os.O_WRONLY | os.O_CREAT)
        elif kind == "set_socket_option":
            steps.append(("open_socket", (socket.AF_UNIX, socket.SOCK_DGRAM), {"name": new()}))
            arguments = (
                Slot(slots[-1]),
                socket.SOL_SOCKET,
                socket.SO_SNDBUF,
                draw(st.integers(-9, 1 << 30)),
            )
        elif kind == "control":
            arguments = (source(), 0x5421, b"\1\0\0\0")  # FIONBIO
        elif kind == "system_call":
            arguments = draw(st.sampled_from(OTHER_CALLS))
            keywords["tolerate"] = (errno.EBADF, errno.EINVAL)
        steps.append((kind, arguments, keywords))
    return steps, slots


#: Calls that no step of their own is about.
OTHER_CALLS: list[tuple[Any, ...]] = [
    ("getppid",),
    ("getpriority", 0, 0),
    ("getrandom", 0, 0, -1),
    ("mkdirat", -1, b"x\0", 0o700),
    ("personality", 0xFFFFFFFF),
    ("umask", 0o22),
]
OPENERS = (
    "control", "duplicate", "open_file", "open_memory", "open_pipe", "open_socket",
    "set_socket_option", "system_call", "write", "write_file",
)  # fmt: skip


def vectors(slots: list[str]) -> st.SearchStrategy[Any]:
    """Vectors of descriptors: swaps, cycles, slots."""
    sources = st.sampled_from([*OPEN, *map(Slot, slots)])
    swaps = st.permutations(OPEN[3:9]).map(lambda order: dict(zip(OPEN[3:9], order, strict=True)))
    return st.one_of(
        st.dictionaries(st.integers(0, 15), sources, max_size=8),
        swaps,
        st.sampled_from([INHERIT, {}]),
    )


@st.composite
def declarations(draw: st.DrawFn) -> dict[str, Any]:
    """A declaration as data that can be sent to the worker."""
    first, made = draw(openings())
    inputs = draw(st.sampled_from([{}, {"in": 4}, {"in": 12, "other": 33}]))
    ordinary: dict[str, st.SearchStrategy[Any]] = {
        "affinity": st.just(sorted(os.sched_getaffinity(0))),
        "cwd": PATHS,
        "fds": vectors([*made, *inputs]),
        "ioprio": st.tuples(st.sampled_from(["be", "idle"]), st.integers(0, 7)),
        "nice": st.integers(0, 19),
        "no_new_privs": st.booleans(),
        "oom_score_adj": st.integers(0, 1000),
        "pdeathsig": st.sampled_from(["TERM", 9]),
        "personality": st.sampled_from([0, ["addr_no_randomize"], ["uname26", "sticky_timeouts"]]),
        "pgid": st.just(0),
        "prctl": st.lists(st.sampled_from(ATTRIBUTES), max_size=2),
        "rlimits": st.dictionaries(
            st.sampled_from(["core", "cpu", "nofile", "msgqueue", "sigpending"]),
            st.one_of(st.integers(40, 100), st.tuples(st.integers(40, 50), st.integers(50, 90))),
        ),
        "scheduler": st.sampled_from(["batch", "idle", ("other", 0)]),
        "setsid": st.booleans(),
        "sigdefault": SIGNALS,
        "sigignore": SIGNALS,
        "sigmask": SIGNALS,
        "timer_slack_ns": st.integers(0, 1 << 50),
        "umask": st.integers(0, 0o777),
        "write_files": st.dictionaries(
            st.sampled_from(["/proc/self/comm", "/dev/null"]), st.binary(max_size=200), max_size=2
        ),
    }  # fmt: skip
    ids = st.integers(0, 1 << 31)
    if os.geteuid() == 0:
        ordinary |= {
            "uid": st.one_of(ids, st.tuples(ids, ids, ids)),
            "gid": st.one_of(ids, st.tuples(ids, ids, st.none())),
            "groups": st.lists(ids, max_size=5),
            "root": st.sampled_from(["/", "/", "/", "@"]),
            "capabilities": st.sampled_from([[], ["kill"], INHERITED]),
        }  # fmt: skip
    else:
        ordinary |= {
            "uid": st.just(os.getuid()),
            "gid": st.just(os.getgid()),
            "capabilities": st.just([]),
        }
    fields = draw(st.fixed_dictionaries({}, optional=ordinary))
    if os.geteuid() and fields.keys() & {"uid", "gid"}:
        fields["groups"] = "keep"
    if "setsid" in fields:
        fields.pop("pgid", None)  # a session's leader leads its group
    if not missing("uts") and draw(st.booleans()):
        fields["hostname"] = draw(WORDS)
        fields["domainname"] = draw(WORDS)
        fields["namespaces"] = ["uts"]
        if os.geteuid():
            fields |= {"namespaces": ["user", "uts"], "uid_map": 0, "gid_map": 0}
            fields.pop("gid", None)
            fields.pop("uid", None)
    search = st.lists(
        st.sampled_from(["/absent", "@", "/usr/bin", "/bin", "", "/proc/version"]), max_size=4
    )
    env = draw(st.dictionaries(NAMES.filter(lambda name: "=" not in name), WORDS, max_size=4))
    env["PATH"] = ":".join(draw(search))
    if draw(st.booleans()):
        fields["env"] = env
    argv = [
        draw(st.sampled_from(["true", "/bin/true", "absent", "./true"])),
        *draw(st.lists(WORDS, max_size=4)),
    ]
    if draw(st.booleans()):
        fields["executable"] = draw(
            st.sampled_from(["/bin/true", "/bin/absent", "@", BY_DESCRIPTOR])
        )
    given = {
        slot.name for slot in dict_values(fields.get("fds")) if isinstance(slot, Slot)
    } & inputs.keys()
    return {
        "argv": argv,
        "fields": fields,
        "first": first,
        "slots": {name: inputs[name] for name in given},
    }


def dict_values(value: object) -> list[object]:
    """A mapping's values; none of anything else."""
    return list(value.values()) if isinstance(value, dict) else []


def of_declaration(room: Room, data: dict[str, Any]) -> tuple[Program, dict[str, int]]:
    """Its program, with `@` for the room's own directory."""

    def here(value: Any) -> Any:
        if isinstance(value, str) and value.startswith("@"):
            return f"{room.path}{value[1:]}"
        if isinstance(value, dict):
            return {here(key): here(part) for key, part in value.items()}
        return value

    fields = {name: here(value) for name, value in data["fields"].items()}
    first = [
        KINDS[kind](*map(here, arguments), **keywords)
        for kind, arguments, keywords in data["first"]
    ]
    if fields.get("executable") == BY_DESCRIPTOR:
        fields["executable"] = room.open("/bin/true")
    spec = Spec(data["argv"], **fields)
    return (Program([*first, *spec.steps()]) if first else spec.program()), data["slots"]


@pytest.fixture(scope="module")
def spawner(places: tuple[Path, Path]) -> Iterator[tuple[Worker, Path, Path]]:
    """A process with the descriptors of `OPEN`, and where its programs work."""
    worker = warm_worker(*places, begin_open)
    yield worker, *places
    worker.close()


@settings(
    max_examples=40, print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(data=st.lists(declarations(), min_size=1, max_size=12))
def test_any_declaration_is_explained_as_strace_sees_it(
    data: list[dict[str, Any]], spawner: tuple[Worker, Path, Path]
) -> None:
    worker, *places = spawner
    prepared = []
    for declaration in data:
        rows = worker.run(prepare, of_declaration, (declaration,), *places)
        if isinstance(rows, list):
            prepared.append((rows, declaration["slots"]))
    for run in watch(worker, prepared):
        compared(run)
