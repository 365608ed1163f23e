"""Every line of docs/beside.md is an example, and it runs."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from parent_snapshot import children

from clonekit import Nascent, Process, Suspended
from clonekit.linux import landlock

PAGE = Path(__file__).parents[1] / "docs/beside.md"
ROW = re.compile(r"^\| (?!there \|)(.+?) \| `(.+?)` \|(.*)\|$", re.MULTILINE)


def sections() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """What each section makes first, and its lines: what is said there, and here."""
    found = {}
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        title, _, rest = section.partition("\n")
        block = re.search(r"^```python\n(.*?)^```$", rest, re.MULTILINE | re.DOTALL)
        assert block
        rows = [(row[1], row[2].replace("\\|", "|")) for row in ROW.finditer(rest)]
        found[title] = block[1], rows
    return found


SECTIONS = sections()


@pytest.mark.parametrize("title", SECTIONS)
def test_lines_run_in_this_order(title: str) -> None:
    if title == "Capsicum" and not landlock.abi():
        pytest.skip("this kernel has no Landlock")
    block, rows = SECTIONS[title]
    before = set(os.listdir("/proc/self/fd")), children()
    room: dict[str, Any] = {}
    exec(block, room)  # noqa: S102 - our own page
    try:
        for there, here in rows:
            try:
                with warnings.catch_warnings(action="ignore"):
                    exec(here, room)  # noqa: S102 - likewise
            except Exception as error:
                error.add_note(f"{there}: {here}")
                raise
    finally:
        while room:
            end(room.popitem()[1])
        gc.collect()  # what closes itself does so before its number is looked at
        for fd in set(os.listdir("/proc/self/fd")) - before[0]:
            close(int(fd))
    assert children() == before[1]


def end(value: object) -> None:
    """Leave nothing of what a line made."""
    if isinstance(value, Nascent | Suspended):
        value.kill()
    elif isinstance(value, Process):
        value.__exit__(None, None, None)


def close(fd: int) -> None:
    """Close what a line has opened, but for the listing's own."""
    with contextlib.suppress(OSError):
        os.close(fd)


def test_no_line_of_the_page_is_left_out() -> None:
    text = PAGE.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    heads = [line for line in lines if line.startswith("| there ")]
    assert len(lines) - len(heads) == sum(len(rows) for _, rows in SECTIONS.values())
    assert len(lines) > 60
