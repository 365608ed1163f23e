"""What the README shows is what happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CI = (ROOT / ".ci/run").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    """A page's blocks of code in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


EXAMPLES = blocks("python")
USES = blocks("python", (ROOT / "docs/uses.md").read_text(encoding="utf-8"))
COMMANDS = [line.split("   #")[0].strip() for block in blocks("sh") for line in block.splitlines()]


def run(command: list[str], directory: Path) -> str:
    """What it prints, when it succeeds."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "PATH": path, "PYTHONWARNINGS": "error"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("example", [*EXAMPLES, *USES], ids=range(len(EXAMPLES) + len(USES)))
def test_python_example_does_what_it_says(
    example: str, tmp_path: Path, need: Callable[[str], None]
) -> None:
    if '"user"' in example:
        need("user")
    if "/etc/shadow" in example:
        need("setuid")
        need("landlock")
    printed = run([sys.executable, "-c", example], tmp_path)
    for promised in re.findall(r"print\(.*\) +# ([^.\n]*)", example):
        assert promised in printed


def test_first_example_has_exactly_its_descriptors(
    tmp_path: Path, need: Callable[[str], None]
) -> None:
    need("user")
    run([sys.executable, "-c", EXAMPLES[0]], tmp_path)
    first, *fds = (tmp_path / "out.txt").read_text().splitlines()
    assert first == "I am 1"
    assert fds == ["0", "1", "2"]  # 0 is the directory that ls itself reads


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("clonekit ")])
def test_command_works(command: str, tmp_path: Path, need: Callable[[str], None]) -> None:
    if "user" in command or "run" in command:
        need("user")
    printed = run(["sh", "-c", command], tmp_path)
    if command.split()[1] in ("run", "trace"):
        assert printed
        assert ("aquarium" in command) == ("aquarium\n" in printed)


def test_ci_runs_the_commands_of_the_readme() -> None:
    commands = [command for command in COMMANDS if command.startswith("./setup")]
    assert len(commands) == 2
    for command in commands:
        assert command in CI


PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/hazards.md",
    "docs/beside.md",
    "docs/uses.md",
    "docs/preexec_fn.md",
)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target
