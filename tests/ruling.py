"""What tests of Landlock share: what is needed of the kernel, a script, two directories."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from step_cases import output

from clonekit.linux import FsAccess, landlock

ABI = landlock.abi()
needs_landlock = pytest.mark.skipif(not ABI, reason="no Landlock here, or not enabled")
needs_ports = pytest.mark.skipif(ABI < 4, reason=f"ports need Landlock ABI 4; here it is {ABI}")
needs_scopes = pytest.mark.skipif(ABI < 6, reason=f"scopes need Landlock ABI 6; here it is {ABI}")

SYSTEM = [path for path in ("/usr", "/bin", "/lib", "/lib64", "/dev") if Path(path).exists()]
PYTHON = [*SYSTEM, "/proc", sys.prefix, sys.base_prefix]
READ = FsAccess.READ_FILE | FsAccess.READ_DIR


def shell(script: str, *arguments: object, **declaration: object) -> str:
    """What a script prints that ends well, and must not gain privileges."""
    argv = ["sh", "-c", script, "sh", *map(str, arguments)]
    return output(argv, no_new_privs=True, **declaration)


@pytest.fixture
def rooms(tmp_path: Path) -> tuple[Path, Path]:
    """Two directories with a file each."""
    for name in ("open", "shut"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    return tmp_path / "open", tmp_path / "shut"
