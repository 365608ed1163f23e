"""A package's own tests, in a venv and a directory of their own, with `install()` and without."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from packages import Package

import clonekit

HERE = Path(__file__).parent
HANG = 1800  # seconds after which a command is taken for hung
OURS = ("PYTHON", "PYTEST", "VIRTUAL_ENV", "XDG_", "GIT_")  # variables that tests would follow
SHOWN = 4000  # letters of what a failed command says

#: Of each test: passed, failed or skipped; and what it said when it failed.
Outcomes = Mapping[str, tuple[str, str]]


class FailedError(Exception):
    """A command that the comparison needs has failed."""


class Run(NamedTuple):
    """Attributes: spawned, stock: the counts of `install()`, summed over all processes."""

    outcomes: Outcomes
    spawned: int
    stock: int

    @property
    def passed(self) -> set[str]:
        return {test for test, (outcome, _) in self.outcomes.items() if outcome == "passed"}


class Suite:
    """The tests of a package, in a directory that is there for them."""

    def __init__(self, package: Package, room: Path) -> None:
        self.package = package
        self.room = room
        self.source = room / "source"
        self.python = room / "venv/bin/python"
        paths = sysconfig.get_paths("venv", {"base": str(room / "venv")})
        self.site = Path(paths["purelib"])
        self.runs = 0

    async def prepare(self) -> None:
        """Fetch it, and make its venv."""
        package, room = self.package, self.room
        for directory in ("home", "tmp"):
            (room / directory).mkdir(parents=True)
        wanted = room / "wanted"
        wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
        pip = (sys.executable, "-m", "pip", "--quiet", f"--cache-dir={room.parent / 'cache'}")
        fetch = ("--no-deps", f"--no-binary={package.name}", f"--dest={room / 'fetched'}")
        await self._command(*pip, "download", *fetch, f"--requirement={wanted}")
        [archive] = (room / "fetched").iterdir()
        outer = room / "unpacked"
        outer.mkdir()
        await self._command("tar", "-xf", str(archive), "-C", str(outer), "--no-same-owner")
        [unpacked] = outer.iterdir()
        unpacked.rename(self.source)
        await self._command(sys.executable, "-m", "venv", "--without-pip", str(room / "venv"))
        there = (*pip, f"--python={self.python}", "install")
        await self._command(*there, str(archive), "cffi>=1.16", *package.needs)
        (self.site / "clonekit").symlink_to(Path(clonekit.__file__).parent)
        for module in ("noting.py", "beginning.py"):
            shutil.copy(HERE / module, self.site)
        (room / "home/.gitconfig").write_text("[user]\nname = Tester\nemail = tester@example.org\n")
        if package.tags:
            await self._command("git", "init", "--quiet", "--initial-branch=master")
            await self._command("git", "add", "--all")
            await self._command("git", "commit", "--quiet", "--message=As released")
            for tag in package.tags:
                await self._command("git", "tag", tag)

    async def run(self, *, installed: bool, beside: Sequence[str] = ()) -> Run:
        """Run its tests, or those that are in the same files as some."""
        self.runs += 1
        note = self.room / f"outcomes-{self.runs}"
        arguments = ["-q", "-p", "no:cacheprovider", "-p", "noting", f"--note={note}"]
        if beside:
            tests = self.room / f"beside-{self.runs}"
            tests.write_text(json.dumps(beside))
            arguments.append(f"--beside={tests}")
        hook = self.site / "beginning.pth"
        counts = self.site / "beginning.py.counts"
        if installed:
            hook.write_text("import beginning\n")
            counts.touch()
        try:
            command = (str(self.python), "-m", "pytest", *arguments, *self.package.tests)
            await self._command(*command, accepted=(0, 1))
            lines = counts.read_text().splitlines() if installed else []
        finally:
            hook.unlink(missing_ok=True)
            counts.unlink(missing_ok=True)
        pairs = [tuple(map(int, line.split())) for line in lines]
        spawned, stock = (sum(pair[column] for pair in pairs) for column in (0, 1))
        return Run(json.loads(note.read_text()), spawned, stock)

    async def _command(self, *argv: str, accepted: Sequence[int] = (0,)) -> None:
        """Run one in a session of its own. If it hangs or is given up, its group is killed."""
        environment = {**os.environ, "TMPDIR": str(self.room / "tmp")}
        if argv[0] != sys.executable:
            for name in [name for name in environment if name.startswith(OURS)]:
                del environment[name]
            environment["HOME"] = str(self.room / "home")
            environment["PATH"] = f"{self.python.parent}:{environment['PATH']}"
        log = self.room / "log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *argv,
                cwd=self.source if self.source.exists() else self.room,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(HANG):
                status: int | str = await process.wait()
        except TimeoutError:
            status = f"none in {HANG} s"
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if status not in accepted:
            said = log.read_text(errors="replace")[-SHOWN:]
            msg = f"status {status} of {' '.join(argv)}\n{said}"
            raise FailedError(msg)
