"""What ends with the block of a `with` statement."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


#: This process: its number, in a list that each copy of us (fork) has another of.
_here = [os.getpid()]


def here() -> list[int]:
    """What remembers this process, for those who make something in it."""
    return _here


def is_here(maker: list[int]) -> bool:
    """Whether it is this process that is remembered, and no copy made in whatever way."""
    return maker is _here and maker[0] == os.getpid()


def _be_another() -> None:
    """A copy of us has made nothing yet."""
    global _here  # noqa: PLW0603 - of the process
    _here = [os.getpid()]


os.register_at_fork(after_in_child=_be_another)


class Block:
    """Something that is closed at its block's end, or ended as `_leave` says."""

    __slots__ = ()

    def _leave(self) -> None:
        """What is done at the block's end."""
        self.close()  # type: ignore[attr-defined] # of whoever does not say otherwise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()


class Owned(Block):
    """A block's something that is closed when it is forgotten, too, by the process that made it.

    A copy of us (fork) may have closed its descriptors by now, and have other files at their
    numbers: what it forgets is left open.
    """

    __slots__ = ("_maker",)

    _maker: list[int]

    def is_own(self) -> bool:
        """Whether this process has made it."""
        maker = self._maker
        return maker is _here and maker[0] == os.getpid()

    def __del__(self) -> None:
        if hasattr(self, "_maker") and self.is_own():
            self.close()  # type: ignore[attr-defined] # of whoever does not say otherwise
