"""The program has exactly the descriptors that were listed, whatever their numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clonekit import INHERIT, DeclarationError, Program, Slot, spawn
from clonekit.steps import close_descriptor, duplicate, execute, open_pipe, place_descriptors

LOW = 40  # sources are ours from here up
SOURCES = 8


@pytest.fixture(scope="module")
def see(built: Path) -> str:
    return str(built / "see")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[int]]:
    """Descriptors of different files, at numbers that a vector may name too."""
    directory = tmp_path_factory.mktemp("sources")
    fds = []
    for n in range(SOURCES):
        fd = os.open(directory / str(n), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fds.append(os.dup2(fd, LOW + n, inheritable=bool(n % 2)))
        os.close(fd)
    yield fds
    for fd in fds:
        os.close(fd)


def expected(vector: dict[int, int]) -> list[str]:
    """The vector as arguments of `see`."""
    files = {to: os.fstat(source) for to, source in vector.items()}
    return [f"{to}:{file.st_dev}:{file.st_ino}" for to, file in files.items()] or ["-"]


def exact(see: str, vector: dict[int, int], given: dict[int, object], **slots: int) -> bool:
    """Whether a program that is given this vector sees just that one."""
    program = Program([place_descriptors(given), execute([see, *expected(vector)])])
    return program.spawn(**slots).wait().status == 0


numbers = st.one_of(
    st.integers(0, 6), st.integers(LOW - 2, LOW + SOURCES + 2), st.integers(100, 300)
)
vectors = st.dictionaries(numbers, st.integers(0, SOURCES - 1), max_size=12)


@settings(max_examples=300)
@given(vector=vectors)
def test_exec_sees_exactly_the_listed_fds(
    see: str, sources: list[int], vector: dict[int, int]
) -> None:
    fds = {to: sources[n] for to, n in vector.items()}
    assert exact(see, fds, fds)


@settings(max_examples=300)
@given(vector=vectors, slotted=st.sets(st.integers(0, SOURCES - 1)))
def test_slots_and_numbers_mix_in_one_vector(
    see: str, sources: list[int], vector: dict[int, int], slotted: set[int]
) -> None:
    fds = {to: sources[n] for to, n in vector.items()}
    mixed = {to: Slot(f"s{n}") if n in slotted else sources[n] for to, n in vector.items()}
    used = {f"s{n}": sources[n] for n in vector.values() if n in slotted}
    assert exact(see, fds, mixed, **used)


@settings(max_examples=100)
@given(order=st.permutations(range(SOURCES)))
def test_numbers_swap_and_turn_in_cycles(see: str, sources: list[int], order: list[int]) -> None:
    vector = {LOW + to: sources[n] for to, n in enumerate(order)}
    assert exact(see, vector, vector)


def test_a_control_sees_what_is_not_listed(see: str, sources: list[int]) -> None:
    more = {0: sources[0], 1: sources[1]}
    assert not exact(see, {0: sources[0]}, more)
    assert not exact(see, {**more, 2: sources[2]}, more)
    assert not exact(see, {0: sources[1], 1: sources[0]}, more)


def test_no_descriptor_at_all(see: str) -> None:
    assert exact(see, {}, {})


def test_without_a_vector_the_program_has_ours_of_0_1_2(see: str) -> None:
    opened = {fd: fd for fd in range(3) if is_open(fd)}
    assert spawn([see, *expected(opened)]).wait().status == 0


def test_what_is_close_on_exec_is_nobodys_stdio(see: str, sources: list[int]) -> None:
    saved = os.dup(0)
    try:
        os.dup2(sources[0], 0, inheritable=False)
        opened = {fd: fd for fd in (1, 2) if is_open(fd)}
        assert spawn([see, *expected(opened)]).wait().status == 0
        os.set_inheritable(0, True)  # noqa: FBT003 - it has no name
        assert spawn([see, *expected({0: 0, **opened})]).wait().status == 0
    finally:
        os.dup2(saved, 0)
        os.close(saved)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_inherit_keeps_what_is_not_close_on_exec(see: str, sources: list[int]) -> None:
    opened = map(int, os.listdir("/proc/self/fd"))
    inheritable = {fd: fd for fd in opened if is_open(fd) and os.get_inheritable(fd)}
    assert sources[1] in inheritable
    assert sources[0] not in inheritable
    assert spawn([see, *expected(inheritable)], fds=INHERIT).wait().status == 0


@settings(max_examples=100)
@given(vector=vectors)
def test_what_is_inherited_stands_beside_what_is_named(
    see: str, sources: list[int], vector: dict[int, int]
) -> None:
    named: dict[object, object] = {to: sources[n] for to, n in vector.items()}
    seen = expected(inherited_beside(vector, sources))
    assert spawn([see, *seen], fds={**named, ...: INHERIT}).wait().status == 0


def test_what_is_used_after_such_a_vector_is_kept_aside(see: str, sources: list[int]) -> None:
    vector: dict[object, object] = {0: sources[3], LOW: sources[1], LOW + 5: sources[0]}
    steps = [
        place_descriptors({**vector, ...: INHERIT}),
        duplicate(sources[0], name="first"),
        duplicate(sources[5], name="fifth"),
        execute([see, *expected(inherited_beside({0: 3, LOW: 1, LOW + 5: 0}, sources))]),
    ]
    assert Program(steps).spawn().wait().status == 0


def inherited_beside(vector: dict[int, int], sources: list[int]) -> dict[int, int]:
    opened = map(int, os.listdir("/proc/self/fd"))
    inheritable = {fd: fd for fd in opened if is_open(fd) and os.get_inheritable(fd)}
    return {**inheritable, **{to: sources[n] for to, n in vector.items()}}


@pytest.mark.parametrize(
    ("fds", "declaration", "words"),
    [
        ({...: 1}, {}, "only 'inherit'"),
        ({...: INHERIT}, {"coredump_filter": 3}, "name its descriptors"),
    ],
)
def test_what_cannot_be_inherited_beside(
    fds: dict[object, object], declaration: dict[str, object], words: str
) -> None:
    with pytest.raises(DeclarationError, match=words):
        spawn(["true"], fds=fds, **declaration)


def test_what_later_steps_use_does_not_reach_the_program(see: str, sources: list[int]) -> None:
    vector = {0: sources[3], 3: sources[0], LOW: sources[1]}
    steps = [
        open_pipe("r", "w"),
        place_descriptors(vector),
        duplicate(Slot("r"), name="again"),
        close_descriptor(Slot("w")),
        duplicate(sources[5], name="fifth"),
        execute([see, *expected(vector)]),
    ]
    assert Program(steps).spawn().wait().status == 0


def test_the_parents_own_descriptors_stay_as_they_are(see: str, sources: list[int]) -> None:
    def table() -> dict[str, tuple[str, bool]]:
        own = {}
        for name in os.listdir("/proc/self/fd"):
            if is_open(int(name)):
                own[name] = os.readlink(f"/proc/self/fd/{name}"), os.get_inheritable(int(name))
        return own

    before = table()
    vector = dict(zip(sources, reversed(sources), strict=True))
    assert exact(see, vector, vector)
    assert table() == before


def test_a_number_as_high_as_the_limit_allows(see: str, sources: list[int]) -> None:
    import resource

    highest = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 20) - 1
    vector = {highest: sources[0], 0: sources[1]}
    assert exact(see, vector, vector)
