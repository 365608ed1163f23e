"""The pages that are made from the source are as it would make them now."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from clonekit.phases import PHASES
from clonekit.spec import FIELDS
from clonekit.steps.step import KINDS

ROOT = Path(__file__).parent.parent
PAGES = runpy.run_path(str(ROOT / "docs/generate.py"))["pages"]()


def test_pages_are_up_to_date() -> None:
    for path, text in PAGES.items():
        assert path.read_text(encoding="utf-8") == text, "run: python docs/generate.py"


def test_reference_names_every_step_field_and_phase() -> None:
    text = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    for name in KINDS:
        assert f"| `{name}(" in text
    for field in FIELDS:
        assert f"| `{field}` |" in text
    for phase in PHASES:
        assert f"\n## {phase}\n" in text


def test_hazards_page_has_every_hazard_of_the_source() -> None:
    page = (ROOT / "docs/hazards.md").read_text(encoding="utf-8")
    sources = {"machine.c": "H", "parent.c": "P", "traced.c": "T", "stage.c": "S"}
    for source, letter in sources.items():
        text = (ROOT / "cdefs" / source).read_text(encoding="utf-8")
        numbers = re.findall(rf"^ \* ({letter}\d+) ", text, re.MULTILINE)
        assert numbers
        rows = re.findall(rf"^\| ({letter}\d+) ", page, re.MULTILINE)
        assert rows == numbers
