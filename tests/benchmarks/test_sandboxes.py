"""The full sandbox, from the call to the end of a program that does nothing: ours and others'."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import containers
import pytest
from rootfs import make_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

HERE = Path(__file__).resolve().parent
CDEFS = HERE.parents[1] / "cdefs"
TURNS = 10
ROUNDS = 20
IN_TURNS = "full sandbox, as root" if os.geteuid() == 0 else "full sandbox, unprivileged"
IN_A_LOOP = f"{IN_TURNS}, in a loop"
WAYS = {"turns": IN_TURNS, "loop": IN_A_LOOP}
NAMES = (
    "clone3",
    "clonekit_compiled",
    "clonekit_one_shot",
    "bwrap",
    "bwrap_as_pid_1",
    "crun",
    "crun_without_cgroup",
    "runc",
)


@pytest.fixture(scope="module")
def work() -> Iterator[Path]:
    """A directory that whoever is root in a namespace of ours may enter."""
    directory = Path(tempfile.mkdtemp(prefix="clonekit-benchmark-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def entrance() -> list[str]:
    """What stands before the command of the process that runs all of them."""
    if shutil.which("bwrap") is None:
        pytest.skip("no bwrap: apt-get install bubblewrap")
    return max(containers.entrance(("crun",)), containers.entrance(("runc",)), key=len)


@pytest.fixture(scope="module")
def scene(work: Path) -> dict[str, str]:
    """The root, with the target as `true`; and the C contestant."""
    compiler = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror"]
    target, sandbox = work / "true", work / "sandbox.so"
    small = ["-static", "-nostdlib", "-Wl,-z,noseparate-code", "-Wl,--build-id=none"]
    subprocess.run([*compiler, *small, HERE / "target.c", "-o", target], check=True)
    shared = ["-shared", "-fPIC", f"-I{CDEFS}"]
    subprocess.run([*compiler, *shared, HERE / "sandbox.c", "-o", sandbox], check=True)
    root = make_root(work / "root", target)
    return {"root": str(root), "sandbox": str(sandbox), "work": str(work)}


@pytest.fixture(scope="module")
def cgroup() -> Iterator[int]:
    """A descriptor for a group of cgroup2 of our own; -1 without the privilege to make one."""
    top = containers.UNIFIED if containers.UNIFIED.is_dir() else containers.CGROUPS
    group = top / f"clonekit-benchmark-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        yield -1
        return
    fd = os.open(group, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    yield fd
    os.close(fd)
    group.rmdir()


class Actor:
    """A process that runs all of them; a command may stand before its own."""

    def __init__(self, before: Sequence[object], scene: dict[str, str], cgroup: int) -> None:
        order = json.dumps({**scene, "cgroup": cgroup})
        self.process = subprocess.Popen(
            [*map(str, before), sys.executable, HERE / "runtimes.py", order],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            pass_fds=[cgroup] if cgroup >= 0 else [],
        )  # fmt: skip

    def play(self, names: Sequence[str], count: int, *, loop: bool = False) -> dict[str, list[int]]:
        """The nanoseconds of each contestant."""
        assert self.process.stdin
        assert self.process.stdout
        question = {"names": names, "count": count, "loop": loop}
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer: dict[str, list[int]] = json.loads(self.process.stdout.readline())
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.process.__exit__(*raised)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def samples(
    wanted: list[dict[str, Any]], entrance: list[str], scene: dict[str, str], cgroup: int
) -> dict[tuple[str, str], list[float]]:
    """The seconds of every run: in turns, in a new order each round, or each in a loop."""
    asked = [(entry["way"], entry["name"]) for entry in wanted if "way" in entry]
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in asked}
    with Actor(entrance, scene, cgroup) as actor:
        for _ in range(TURNS):
            for way, group in WAYS.items():
                names = [key[1] for key in asked if key[0] == way]
                times = actor.play(names, ROUNDS, loop=group == IN_A_LOOP)
                for name in names:
                    taken[way, name] += [time / 1e9 for time in times[name]]
    return taken


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", WAYS)
def test_full_sandbox(
    way: str,
    name: str,
    samples: dict[tuple[str, str], list[float]],
    play: Callable[[str, Sequence[float]], None],
) -> None:
    """Seven namespaces, one id, a read-only root, /proc, /dev, /tmp and a filter of 20 rules."""
    play(WAYS[way], samples[way, name])


def calls_of(
    name: str, traces: Path, before: Sequence[str], scene: dict[str, str], cgroup: int
) -> list[str]:
    """The calls of a contestant's last child until its program begins, by name, in their order."""
    strace = ["strace", "--follow-forks", "--output-separately", "-o", traces / name]
    with Actor([*before, *strace], scene, cgroup) as actor:
        actor.play([name], 1)
    begun = [path.read_text() for path in sorted(traces.iterdir(), key=trace_number)]
    last = next(text for text in reversed(begun) if 'execve("/bin/true"' in text)
    return [line.partition("(")[0] for line in last.partition("execve(")[0].splitlines()]


def trace_number(path: Path) -> int:
    """The number of the process that a trace is of."""
    return int(path.suffix[1:])


def test_c_makes_the_calls_of_our_program(
    tmp_path: Path, entrance: list[str], scene: dict[str, str], cgroup: int
) -> None:
    if shutil.which("strace") is None:
        pytest.skip("no strace: apt-get install strace")
    called = []
    for name in ("clone3", "clonekit_compiled"):
        traces = tmp_path / name
        traces.mkdir()
        called.append(calls_of(name, traces, entrance, scene, cgroup))
    in_c, ours = called
    assert in_c == ours
    assert len(ours) > 50
