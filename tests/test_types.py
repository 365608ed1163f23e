"""Who checks types loses nothing by the change of an import, and has our keywords beside."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import clonekit
from clonekit.popen import OF_DECLARATION

ROOT = Path(__file__).parents[1]
STUB = ast.parse((ROOT / "clonekit/signatures.pyi").read_text(encoding="utf-8"))
#: What each function has beside the parameters of Popen; and what it sets itself.
BESIDE = {
    "run": {"input", "capture_output", "timeout", "check"},
    "call": {"timeout"},
    "check_call": {"timeout"},
    "check_output": {"input", "timeout"},
}
SET = {"check_output": {"stdout"}}


def test_uses_of_subprocess_have_the_same_types_here_and_fields_are_keywords(
    tmp_path: Path,
) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    ours, fields = ROOT / "tests/typed_uses.py", ROOT / "tests/typed_fields.py"
    stock = tmp_path / "stock.py"
    stock.write_text(ours.read_text().replace("clonekit", "subprocess"))
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary"]
    found = subprocess.run(
        [*command, "--cache-dir", tmp_path, stock, ours, fields],
        check=False, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert found.stdout == ""
    assert found.returncode == 0


def test_a_type_checker_knows_each_field() -> None:
    fields = next(
        node.value
        for node in STUB.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "Fields"
    )
    assert isinstance(fields, ast.Call)
    assert (
        ast.literal_eval(ast.unparse(fields.args[1]).replace("Any", "0")).keys() == OF_DECLARATION
    )


def told_of(name: str, inside: list[ast.stmt]) -> list[list[str]]:
    """The names of the parameters in each of a function's signatures."""
    defined = [each for each in inside if isinstance(each, ast.FunctionDef) and each.name == name]
    return [[each.arg for each in (*it.args.args, *it.args.kwonlyargs)] for it in defined]


def annotated(kind: str) -> set[str]:
    """The keywords of a class of these."""
    body = class_of(kind).body
    return {ast.unparse(each.target) for each in body if isinstance(each, ast.AnnAssign)}


def class_of(name: str) -> ast.ClassDef:
    """A class of the stub."""
    return next(each for each in STUB.body if isinstance(each, ast.ClassDef) and each.name == name)


def test_a_type_checker_knows_each_parameter() -> None:
    stock = inspect.signature(subprocess.Popen)
    places = [name for name, it in stock.parameters.items() if it.kind is it.POSITIONAL_OR_KEYWORD]
    of_popen = {*stock.parameters, "spec"}
    for told in told_of("__init__", class_of("Popen").body):
        assert {*told} | annotated("Keywords") == {"self"} | of_popen
        assert told[1:4] == places[:3]
    for name, beside in BESIDE.items():
        for told in told_of(name, STUB.body):
            assert {*told} | annotated("Keywords") == of_popen - SET.get(name, set()) | beside


def test_who_inspects_a_popen_is_told_all_its_parameters() -> None:
    class Like(clonekit.Popen):
        """One with the same."""

    class Unlike(clonekit.Popen):
        def __init__(self, program: str) -> None:
            super().__init__([program])

    ours = inspect.signature(clonekit.Popen).parameters
    for name, stock in inspect.signature(subprocess.Popen).parameters.items():
        assert ours[name].kind is stock.kind
        assert ours[name].default == (None if name == "args" else stock.default)
    assert ours.keys() - inspect.signature(subprocess.Popen).parameters == OF_DECLARATION | {"spec"}
    assert inspect.signature(Like).parameters == ours
    assert list(inspect.signature(Unlike).parameters) == ["program"]
    with Unlike("true") as process:
        assert not hasattr(process, "__signature__")


@pytest.mark.parametrize("name", [*BESIDE, "getoutput", "getstatusoutput"])
def test_who_inspects_a_function_is_told_what_that_of_subprocess_takes(name: str) -> None:
    assert inspect.signature(getattr(clonekit, name)) == inspect.signature(
        getattr(subprocess, name)
    )


def test_a_popen_may_be_subscripted_and_inherited_so() -> None:
    class Own(clonekit.Popen[bytes]):
        """One of bytes."""

    assert clonekit.Popen[str].__origin__ is clonekit.Popen  # type: ignore[attr-defined]
    with Own(["echo", "a"], stdout=clonekit.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"a\n"
