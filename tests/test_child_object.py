"""The child's object: what the compiler made of cdefs/machine.c, and what of it was shipped."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

import clonekit._machine

ROOT = Path(__file__).resolve().parent.parent
OBJECT = ROOT / "build/child/machine.o"
SHIPPED = Path(clonekit._machine.__file__)
CROSS = "aarch64-linux-gnu-"
STRICT = ["-Wall", "-Wextra", "-Werror"]
FUNCTIONS = ("ck_child", "ck_clone")
MOST_LINES = 300
#: The parent's side; fork.c is part of what cffi writes.
PARENTS = sorted(
    path.name for path in (ROOT / "cdefs").glob("*.c") if path.name not in {"machine.c", "fork.c"}
)

#: What the child's object must not hold, and what it looks like.
TLS_RELOCATION = re.compile(r"\bR_\w*(?:TLS|TPOFF|TPREL|DTPMOD|DTPREL|DTPOFF)\w*")
TLS_ACCESS = re.compile(r"%[fg]s\b|\b(?:rd|wr)[fg]sbase\b|\btpidr\w*")
INDIRECT = re.compile(r"\t(?:notrack )?l?(?:call|jmp)\w*\s+\*|\t(?:blr|br|bra\w+|blra\w+)\s")
GOT_RELOCATION = re.compile(r"\bR_\w*GOT\w*")


def run(*command: str | Path, text: str = "") -> str:
    """What a tool of the compiler prints; its complaint, if it fails."""
    environment = {"LC_ALL": "C", "PATH": PATH}
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PATH = "/usr/local/bin:/usr/bin:/bin"
COMPILER = (sysconfig.get_config_var("CC") or "cc").split()[0]


def child_flags() -> list[str]:
    """CHILD_FLAGS of setup.py."""
    return flags_of("CHILD_FLAGS")


def flags_of(name: str) -> list[str]:
    """A list of flags in setup.py."""
    for statement in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            flags: list[str] = ast.literal_eval(statement.value)
            return flags
    pytest.fail(f"setup.py has no {name}")


def faults(path: Path, tools: str = "") -> set[str]:
    """What an object holds that must not run on another thread's memory."""
    found = set()
    if run(f"{tools}nm", "--undefined-only", path).strip():
        found.add("undefined symbol")
    relocations = run(f"{tools}readelf", "--relocs", "--wide", path)
    code = run(f"{tools}objdump", "--disassemble", "--no-show-raw-insn", path)
    if TLS_RELOCATION.search(relocations) or TLS_ACCESS.search(code):
        found.add("thread-local access")
    if GOT_RELOCATION.search(relocations):
        found.add("global offset table")
    if INDIRECT.search(code):
        found.add("indirect call")
    for name, size, flags in sections(path, tools):
        if name.startswith(".gnu.lto_"):
            found.add("LTO")
        if "W" in flags and size:
            found.add("writable data")
    if re.search(r" C ", run(f"{tools}nm", path)):
        found.add("writable data")
    return found


def sections(path: Path, tools: str) -> list[tuple[str, int, str]]:
    """Name, size and flags of each section."""
    lines = run(f"{tools}readelf", "--section-headers", "--wide", path).splitlines()
    row = re.compile(r"\[ *\d+\] (\S+) +\S+ +\w+ \w+ ([0-9a-f]+) \w+ +([A-Z]*) +\d")
    return [
        (match[1], int(match[2], 16), match[3]) for line in lines if (match := row.search(line))
    ]


def instructions(path: Path, function: str) -> list[str]:
    """A function's code, with targets by name instead of by address."""
    size = next(
        int(fields[1], 16)
        for fields in map(str.split, run("nm", "--print-size", "--defined-only", path).splitlines())
        if fields[-1] == function and len(fields) == 4
    )
    text = run("objdump", "--disassemble", "--reloc", "--no-show-raw-insn", "--wide", path)
    text = re.sub(r"<[^>\n]+>\s+[0-9a-f]+: R_\w+\s+(\w+)\S*", r"<\1>", text)
    body = re.search(rf"^([0-9a-f]+) <{function}>:\n((?:.+\n)+)", text, re.MULTILINE)
    assert body, f"{path} has no {function}"
    start = int(body[1], 16)
    code: list[str] = []
    for line in body[2].splitlines():
        address, _, instruction = line.strip().partition(":\t")
        if start <= int(address, 16) < start + size:
            code.append(re.sub(r"\b[0-9a-f]+ (<[^>]+>)", r"\1", instruction).strip())
    return code


def test_childs_object_has_nothing_that_belongs_to_the_parent() -> None:
    assert OBJECT.exists(), "the build leaves the object that it links at build/child/machine.o"
    assert faults(OBJECT) == set()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_shipped_function_is_the_objects_own(function: str) -> None:
    built = instructions(OBJECT, function)
    assert len(built) > 10
    assert instructions(SHIPPED, function) == built


def test_object_is_what_setup_py_compiles_now(tmp_path: Path) -> None:
    again = tmp_path / "machine.o"
    run(COMPILER, *child_flags(), "-I", ROOT / "cdefs", "-c", ROOT / "cdefs/machine.c", "-o", again)
    for function in FUNCTIONS:
        assert instructions(again, function) == instructions(OBJECT, function)


@pytest.mark.parametrize(
    ("fault", "source"),
    [
        ("undefined symbol", "void other(void); void f(void) { other(); }"),
        ("thread-local access", "static __thread int n; int f(void) { return n++; }"),
        ("writable data", "static int n = 1; int f(void) { return n++; }"),
        ("writable data", "int n; int f(void) { return n++; }"),
        ("indirect call", "void f(void (*g)(int)) { g(1); g(2); }"),
        ("indirect call", "void f(void (*g)(int)) { g(1); }"),
        ("global offset table", "extern int n; int f(void) { return n; }"),
    ],
)
@pytest.mark.parametrize("tools", ["", CROSS])
def test_inspection_finds(fault: str, source: str, tools: str, tmp_path: Path) -> None:
    compiler = f"{tools}gcc" if tools else COMPILER
    need(compiler)
    made = tmp_path / "wrong.o"
    run(compiler, "-fPIC", "-O2", "-x", "c", "-c", "-", "-o", made, text=source)
    assert fault in faults(made, tools)


def need(tool: str) -> None:
    """Skip where a compiler is not installed; CI installs both."""
    if shutil.which(tool, path=PATH) is None:
        pytest.skip(f"{tool} is not installed (Debian: gcc-aarch64-linux-gnu)")


def test_childs_object_for_aarch64_has_nothing_that_belongs_to_the_parent(tmp_path: Path) -> None:
    need(f"{CROSS}gcc")
    made = tmp_path / "machine.o"
    flags = [*child_flags(), *STRICT, "-I", str(ROOT / "cdefs")]
    run(f"{CROSS}gcc", *flags, "-c", ROOT / "cdefs/machine.c", "-o", made)
    assert faults(made, CROSS) == set()
    assert {f" T {name}\n" in run(f"{CROSS}nm", made) for name in FUNCTIONS} == {True}


def test_the_first_stage_for_aarch64_is_a_program_by_itself(tmp_path: Path) -> None:
    need(f"{CROSS}gcc")
    made = tmp_path / "stage"
    flags = [flag for flag in child_flags() if flag != "-fPIC"] + flags_of("STAGE_FLAGS")
    source = ROOT / "cdefs/stage.c"
    run(f"{CROSS}gcc", *flags, *STRICT, "-I", ROOT / "cdefs", source, "-o", made)
    segments = run(f"{CROSS}readelf", "--wide", "--program-headers", made)
    assert "INTERP" not in segments
    assert "DYNAMIC" not in segments
    assert " RWE " not in segments


@pytest.mark.parametrize("source", PARENTS)
def test_parents_part_compiles_for_aarch64_without_a_warning(source: str, tmp_path: Path) -> None:
    need(f"{CROSS}gcc")
    run(
        f"{CROSS}gcc", "-std=gnu11", "-O2", "-fPIC", *STRICT, "-I", ROOT / "cdefs",
        "-c", ROOT / "cdefs" / source, "-o", tmp_path / "parent.o",
    )  # fmt: skip


@pytest.mark.parametrize("source", ["machine.c", *PARENTS])
def test_analyzer_finds_nothing(source: str, tmp_path: Path) -> None:
    compiler = COMPILER if "Free Software Foundation" in run(COMPILER, "--version") else "gcc"
    need(compiler)
    flags = child_flags() if source == "machine.c" else ["-std=gnu11", "-O2", "-fPIC"]
    run(
        compiler, *flags, *STRICT, "-fanalyzer", "-I", ROOT / "cdefs",
        "-c", ROOT / "cdefs" / source, "-o", tmp_path / "analysed.o",
    )  # fmt: skip


def test_kinds_of_record_are_these() -> None:
    header = (ROOT / "cdefs/record.h").read_text()
    body = re.search(r"enum ck_kind \{(.*?)\};", header, re.DOTALL)
    assert body
    kinds = re.findall(r"^\s*(CK_\w+) =", body[1], re.MULTILINE)
    assert kinds == ["CK_CALL", "CK_MOVE", "CK_SET", "CK_WAIT"]


def test_machine_is_short() -> None:
    assert len((ROOT / "cdefs/machine.c").read_text().splitlines()) < MOST_LINES
