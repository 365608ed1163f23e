"""A declaration but for its argv, compiled: what many programs have in common."""

from __future__ import annotations

import os

from clonekit.program import Program
from clonekit.steps.execute import environment, environment_is_ours, paths_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from clonekit.compiled import Setup
    from clonekit.steps.execute import Text

MOST_PROGRAMS = 16
#: Characters of argv beyond which compiling it again costs little beside the rest of the spawn.
MOST_TEXT = 4096


class Prepared:
    """A setup, and the last programs that were made of it: by argv, path and environment."""

    __slots__ = ("_programs", "setup")

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._programs: dict[tuple[object, ...], Program] = {}

    def program(
        self, argv: Sequence[Text], executable: Any, env: Mapping[Text, Text] | None
    ) -> Program:
        """The program that it is with this argv: the one that was made of the same, or a new one.

        Raises: DeclarationError for these.
        """
        if env is not None or type(argv) is not list or not environment_is_ours():
            return Program.after(self.setup, argv, executable, env)
        try:
            text = "\0".join(argv)
        except TypeError:  # bytes, or paths
            text = None
        if text is None or len(text) > MOST_TEXT:
            return Program.after(self.setup, argv, executable, env)
        paths = None
        if executable is not None:  # an object may mean another path later
            several = type(executable) is tuple
            executable = tuple(map(os.fspath, executable)) if several else os.fspath(executable)
            paths = tuple(paths_of(argv[0], executable, env))
        # What has been made had no NUL, so nothing else is as many words and the same text.
        words = len(argv), text, paths, environment(None)
        same = self._programs.get(words)
        if same is None:
            same = Program.after(self.setup, argv, executable, env)
            if len(self._programs) >= MOST_PROGRAMS:
                self._programs.clear()
            self._programs[words] = same
        return same
