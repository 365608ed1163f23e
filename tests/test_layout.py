"""What holds the project together: floors, kinds of record, a case for every step."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from step_cases import CASES, WITHOUT_CASES

from clonekit.steps.step import KINDS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "clonekit"
MOST_LINES = 300

#: The floors, lowest first. A module imports, at its top, only from lower floors or its own.
FLOORS = (
    ("_machine",),
    ("errors", "linux", "stock"),
    ("preexec",),
    ("records", "rules", "addressing", "rtnl"),
    ("assembler",),
    ("behalf", "interface", "filters", "notify", "profiles", "request"),
    ("interfaces",),
    ("steps", "phases", "mounts", "trees", "landlock", "cgroup"),
    ("manners",),
    ("completion", "passing", "untraceable"),
    ("bridge",),
    ("arrange",),
    ("compiled",),
    ("process",),
    ("explain", "hints"),
    ("failure",),
    ("orders",),
    ("child",),
    ("injection",),
    ("stage",),
    ("suspended", "vforked"),
    ("driven",),
    ("staged",),
    ("program",),
    ("lasting", "prepared"),
    ("spec",),
    ("parameters",),
    ("entering", "popen", "waiting"),
    ("transport",),
    ("streamed",),
    ("aio", "installed", "network"),
    ("netns",),
    ("features", "shorthands", "job", "tables"),
    ("options",),
    ("cli", "__main__", "__init__"),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def floor_name(module: str) -> str:
    """The part of a module's name that has a floor."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported(body: list[ast.stmt]) -> list[str]:
    """The modules of the package that are imported when this one is."""
    names: list[str] = []
    for statement in body:
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith(
            "clonekit"
        ):
            names.append(statement.module or "")
        elif isinstance(statement, ast.Import):
            names += [each.name for each in statement.names if each.name.startswith("clonekit")]
    return names


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_a_module_imports_only_from_below(path: Path) -> None:
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert name in FLOOR, f"give {name} a floor"
    for module in imported(ast.parse(path.read_text()).body):
        if module == "clonekit" or name == "__init__":
            assert FLOOR[name] == len(FLOORS) - 1
            continue
        assert FLOOR[floor_name(module)] <= FLOOR[name], f"{name} imports {module}"


def test_kinds_of_record_are_these_four() -> None:
    header = (ROOT / "cdefs/record.h").read_text()
    kinds = re.search(r"enum ck_kind \{(.*?)\}", header, re.DOTALL)
    assert kinds is not None
    names = re.findall(r"^\s*(CK_\w+) = \d+", kinds[1], re.MULTILINE)
    assert names == ["CK_CALL", "CK_MOVE", "CK_SET", "CK_WAIT"]


def test_the_machine_is_small() -> None:
    assert len((ROOT / "cdefs/machine.c").read_text().splitlines()) < MOST_LINES


def test_the_machine_names_no_kernel_feature() -> None:
    code = re.sub(r"/\*.*?\*/", "", (ROOT / "cdefs/machine.c").read_text(), flags=re.DOTALL)
    assert set(re.findall(r"__NR_(\w+)", code)) == {"futex", "sched_yield", "exit_group"}
    assert "__NR_" not in (ROOT / "cdefs/run.h").read_text()


@pytest.mark.parametrize("step", sorted(KINDS.keys() - WITHOUT_CASES))
def test_a_step_has_a_case_that_succeeds_and_one_that_fails(step: str) -> None:
    outcomes = {bool(case.fails) for case in CASES if case.step == step}
    assert outcomes == {True, False}


def test_case_names_are_their_own() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
