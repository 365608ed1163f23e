"""What ends with the block of a `with` statement."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


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
