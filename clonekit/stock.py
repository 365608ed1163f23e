"""The standard library's own Popen, as it was before this library: tracers may have been there."""

from __future__ import annotations

import subprocess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from subprocess import Popen as StockPopen
    from typing import Any
else:  # a tracer may have put a class of its own in place
    classes = (kind for kind in subprocess.Popen.__mro__ if kind.__module__ == "subprocess")
    StockPopen = next(classes, subprocess.Popen)

__all__ = ["PARAMETERS", "STOCK", "StockPopen"]
ANY_KEYWORD = 8  # inspect.CO_VARKEYWORDS


def parameters() -> frozenset[str]:
    """What it takes; nothing where a tracer has wrapped it and does not tell."""
    init: Any = StockPopen.__init__
    while hasattr(init, "__wrapped__"):
        init = init.__wrapped__
    code = init.__code__
    if code.co_flags & ANY_KEYWORD:
        return frozenset()
    return frozenset(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


PARAMETERS = parameters()
#: What it does with a child that it has made.
STOCK = dict(vars(StockPopen))
