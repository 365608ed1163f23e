"""A root file system that holds busybox and nothing else."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

#: Where file systems are mounted, and what programs expect to find.
DIRECTORIES = ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp")
FILES = {"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n"}
PT_INTERP = 3


def is_static(path: str) -> bool:
    """Whether a program is loaded by the kernel alone: no header of its ELF file names a loader."""
    with open(path, "rb") as file:
        header = file.read(64)
        (offset,) = struct.unpack_from("<Q", header, 32)
        size, count = struct.unpack_from("<HH", header, 54)
        file.seek(offset)
        table = file.read(size * count)
    return all(struct.unpack_from("<I", table, n * size)[0] != PT_INTERP for n in range(count))


def busybox() -> str:
    """The path of a static busybox; without one, the test is skipped."""
    found = shutil.which("busybox")
    if found is None or not is_static(found):
        pytest.skip("no static busybox: apt-get install busybox-static")
    return found


def make_root(root: Path, *programs: Path) -> Path:
    """Fill a directory: busybox under all its names, and these programs beside it, in /bin.

    A program takes the place of busybox where it has one of its names.
    """
    source = busybox()
    for name in DIRECTORIES:
        (root / name).mkdir(parents=True)
        (root / name).chmod(0o755)
    root.chmod(0o755)
    (root / "tmp").chmod(0o1777)
    for name, text in FILES.items():
        (root / name).write_text(text)
    shutil.copy(source, root / "bin/busybox")
    for program in programs:
        shutil.copy(program, root / "bin")
    names = subprocess.run([source, "--list"], capture_output=True, text=True, check=True).stdout
    for name in names.split():
        if not (root / "bin" / name).exists():
            os.symlink("busybox", root / "bin" / name)
    return root
