"""A supervisor that rewrites paths on open: what a program calls /etc/hostname is another file.

The program's calls that open files wait for us. We read the path that it gives, and where one of
ours stands for it we open that on the program's behalf and hand the descriptor over; every other
call continues. This shows a program other files. It forbids none: what continues is read by the
kernel once more, and may have changed. Usage: rewrite_opens.py [SHOWN=REAL... -- PROGRAM ARG...]
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from clonekit import Filter, spawn
from clonekit.behalf import OPENING_CALLS, Opening
from clonekit.notify import Listener, Request


def rewritten(path: bytes, files: dict[bytes, bytes]) -> bytes | None:
    """The file that stands for this one, or for a directory above it."""
    for shown, real in files.items():
        if path == shown or path.startswith(shown + b"/"):
            return real + path.removeprefix(shown)
    return None


def run(argv: list[str], files: dict[bytes, bytes]) -> int:
    """Run a program that sees these files in place of others."""
    told: set[bytes] = set()

    def answer(request: Request) -> None:
        opening = Opening(request)
        real = rewritten(opening.path, files)
        if real is None:
            request.continue_()
            return
        opening.answer(real)
        if opening.path not in told:
            told.add(opening.path)
            print(f"{os.fsdecode(opening.path)} is {os.fsdecode(real)}", flush=True)

    with Listener() as listener:
        opens = Filter("ALLOW").notify(*OPENING_CALLS, to=listener)
        with spawn(argv, no_new_privs=True, seccomp=opens) as process:
            listener.serve(answer)
            return process.wait().status or 0


def main(words: list[str]) -> int:
    """What the command line says, or a demonstration."""
    if "--" in words:
        at = words.index("--")
        pairs = [os.fsencode(word).partition(b"=") for word in words[:at]]
        return run(words[at + 1 :], {shown: real for shown, _, real in pairs})
    with tempfile.TemporaryDirectory() as directory:
        name = Path(directory, "name")
        name.write_text("aquarium\n")
        shell = "cat /etc/hostname; cat /etc/none/other 2>&1; wc -l </etc/none/many"
        Path(directory, "many").write_text("one\ntwo\nthree\n")
        files = {b"/etc/hostname": os.fsencode(name), b"/etc/none": os.fsencode(directory)}
        return run(["sh", "-c", shell], files)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
