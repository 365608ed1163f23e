"""Builds the child's machine as an object of its own, with flags that no other file may have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_ext import build_ext

# H2 of cdefs/machine.c: nothing that the compiler adds by itself may be left in the child.
CHILD_FLAGS = [
    "-std=gnu11", "-O2", "-fPIC", "-ffreestanding", "-fno-builtin", "-fno-stack-protector",
    "-fno-jump-tables", "-fno-tree-loop-distribute-patterns", "-fno-lto", "-fno-plt",
    "-fno-asynchronous-unwind-tables", "-fno-exceptions", "-fno-sanitize=all",
    "-fvisibility=hidden", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra",
]  # fmt: skip
CHILD_OBJECT = Path("build/child/machine.o")
#: The first stage is a program by itself, which cdefs/carried.c takes in.
STAGE = Path("build/child/stage")
STAGE_FLAGS = [
    "-fno-pie", "-no-pie", "-static", "-nostdlib", "-nostartfiles", "-Wl,--build-id=none",
    "-Wl,-z,noexecstack", "-Wl,-z,norelro", "-s",
]  # fmt: skip


class build_child(build_ext):  # noqa: N801 - setuptools' own style for commands
    """build_ext, with cdefs/machine.c compiled first and linked as it is."""

    def build_extension(self, ext: Any) -> None:
        """Compile the child's object and link it into the extension."""
        compiler = [word for word in self.compiler.compiler if not word.startswith(("-flto", "-g"))]
        CHILD_OBJECT.parent.mkdir(parents=True, exist_ok=True)
        self.spawn(
            [
                *compiler[:1],
                *CHILD_FLAGS,
                "-Icdefs",
                "-c",
                "cdefs/machine.c",
                "-o",
                str(CHILD_OBJECT),
            ]
        )
        stage_flags = [flag for flag in CHILD_FLAGS if flag != "-fPIC"] + STAGE_FLAGS
        self.spawn([*compiler[:1], *stage_flags, "-Icdefs", "cdefs/stage.c", "-o", str(STAGE)])
        ext.extra_objects = [str(CHILD_OBJECT)]
        super().build_extension(ext)


setup(cffi_modules=["cdefs/build.py:ffibuilder"], cmdclass={"build_ext": build_child})
