"""The vector of descriptors: the program has exactly these."""

from __future__ import annotations

from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib
from clonekit.records import Call, Fd, Slot
from clonekit.steps.step import Option, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from clonekit.records import Records

#: `fds=INHERIT`: the program has every descriptor that is not close-on-exec, as after fork;
#: `fds={1: log, ...: INHERIT}`: the same beside those that are named.
INHERIT = "inherit"

HIGHEST = (1 << 32) - 1
MOST = 1 << 20


@step(phase="table")
def own_table(above: int | Slot) -> Records:
    """Take a descriptor table of the child's own, without what is `above` or higher: close_range.

    The child shares the parent's table until then, so this is every program's first call. The
    cost follows the highest descriptor that is kept, not the number that is open.

    Raises: ENOMEM. Since: Linux 5.9. See: close_range(2), CLOSE_RANGE_UNSHARE.
    """
    yield Call("close_range", above, HIGHEST, lib.CLOSE_RANGE_UNSHARE)


def parse_fd(text: str) -> tuple[int, int] | str | dict[int, object]:
    """`7=3`: the program's 7 is our 3; `7` alone is our 7; `inherit`; `none`."""
    if text in (INHERIT, "none"):
        return INHERIT if text == INHERIT else {}
    target, _, source = text.partition("=")
    return int(target), int(source or target)


@step(phase="vector", field="fds", lasting=True, option=Option("TARGET[=SOURCE]", parse_fd, dict))
def place_descriptors(
    fds: Mapping[int, object] | str,
    later: Iterable[Fd] = (),
    *,
    tidy_below: int | None = None,
    base: int = 0,
) -> Records:
    """Give the program exactly these descriptors: dup3, fcntl and close_range.

    `fds` maps the program's numbers to ours (a number, an object with `fileno()`, or a Slot).
    Numbers may swap. Each loses close-on-exec; all others are closed. `fds="inherit"` keeps
    whatever is not close-on-exec, `{1: log, ...: "inherit"}` beside what is named. Without it the
    program has those of our 0, 1 and 2 that are not close-on-exec.

    The compiler gives the rest: `later` are descriptors that steps after this one use (they are
    put above the vector and from `base` up, close-on-exec); nothing is open from `tidy_below` up,
    where that is known.

    Raises: EBADF for a number above RLIMIT_NOFILE. See: dup(2), close_range(2).
    """
    if fds == INHERIT:
        return
    moves = targets_of(fds)
    if inherits(fds):
        yield from parallel_move(moves, ())
        return
    base = max(base, max(moves, default=-1) + 1)
    private = {base + n: fd for n, fd in enumerate(later)}
    top = base + len(private)
    calls = parallel_move({**moves, **private}, frozenset(private))
    yield from calls
    used = sorted([*moves, *private])
    gaps = [(low + 1, high - 1) for low, high in zip([-1, *used], used, strict=False)]
    if tidy_below is None or tidy_below > top or any(call.to for call in calls):
        gaps.append((top, HIGHEST))
    for low, high in gaps:
        if low <= high:
            yield Call("close_range", low, high, 0)


def inherits(fds: object) -> bool:
    """Whether the program has what is not close-on-exec, beside what is named."""
    return fds == INHERIT or (hasattr(fds, "get") and fds.get(...) is not None)


def targets_of(fds: object) -> dict[int, Fd]:
    """The vector, checked."""
    if not hasattr(fds, "items"):
        msg = f"fds is {fds!r}; give a mapping of the program's numbers to ours, or {INHERIT!r}"
        raise DeclarationError(msg)
    moves = {}
    for target, source in fds.items():
        if target is ...:
            if source != INHERIT:
                msg = f"fds: ... is {source!r}; only {INHERIT!r} can be said of all the others"
                raise DeclarationError(msg)
            continue
        if not isinstance(target, int) or isinstance(target, bool) or not 0 <= target < MOST:
            msg = f"fds: {target!r} cannot be a descriptor's number; use 0 to {MOST - 1}"
            raise DeclarationError(msg)
        moves[target] = Fd(source)
    return moves


def parallel_move(moves: Mapping[int, Fd], private: Container[int]) -> list[Call]:
    """All the moves as if at once, with the fewest calls for numbers that are known.

    A descriptor in a slot can have any number, a target's too: it is lifted above them first. In
    a cycle one descriptor needs a second place: a copy that was made anyway, or a lifted one.

    What is in its place already comes first: if it is open, nothing is lifted to its number, so
    that this may be the highest that RLIMIT_NOFILE allows; if it is not, that is the error.
    """
    cloexec = {to: to in private for to in moves}
    calls = [
        Call("fcntl", to, lib.F_SETFD, lib.FD_CLOEXEC if cloexec[to] else 0)
        for to, fd in moves.items()
        if fd.of == to
    ]
    moving = {to: fd for to, fd in moves.items() if fd.of != to}
    above = max(moving, default=-1) + 1

    def lift(source: Fd | int) -> Slot:
        lifted = Slot()
        calls.append(Call("fcntl", source, lib.F_DUPFD_CLOEXEC, above, to=lifted))
        return lifted

    left: dict[int, int | Slot] = {}
    lifted: dict[Fd, Slot] = {}
    for to, fd in moving.items():
        if isinstance(fd.of, Slot):
            if fd not in lifted:
                lifted[fd] = lift(fd)
            left[to] = lifted[fd]
        else:
            left[to] = fd.of
    copies: dict[int | Slot, int] = {}
    while left:
        needed = set(left.values())
        ready = next((to for to in left if to not in needed), None)
        if ready is not None:
            source = left.pop(ready)
            calls.append(Call("dup3", source, ready, lib.O_CLOEXEC if cloexec[ready] else 0))
            copies.setdefault(source, ready)
            continue
        copied = next((to for to, source in left.items() if source in copies), None)
        if copied is not None:
            left[copied] = copies[left[copied]]
        else:
            to, source = next(iter(left.items()))
            left[to] = lift(source)  # type: ignore[arg-type] # slots are never in a cycle
    return calls
