"""CPython's own tests that cannot pass, and why: what they test is what this library replaces."""

from __future__ import annotations

#: How a program comes to use this library: `clonekit.install()`, or `import clonekit as subprocess`.
INSTALLED, IMPORTED = "installed", "imported"
EITHER = (INSTALLED, IMPORTED)

#: Each reason, where it holds, and the tests: module and method, whatever class that stands in.
BY_DESIGN: list[tuple[str, tuple[str, ...], list[str]]] = []


def expected(mode: str) -> dict[str, str]:
    """The tests that fail in a mode, each with its reason."""
    return {
        test: reason for reason, modes, tests in BY_DESIGN if mode in modes for test in tests
    }
