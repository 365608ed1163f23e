"""Keep programs running: sleep until one of them ends, and start that one again.

A handle is a pidfd, which becomes readable at the end of its process and of no other, so `poll`
waits for many children at once: without SIGCHLD, without polling, and without reaping a child that
somebody else in this process has started. At the end nothing is left, also after an exception.
"""

from __future__ import annotations

import contextlib
import select
import sys

import clonekit

PROGRAMS = {
    "steady": clonekit.Spec(["sh", "-c", "echo steady: done"]),
    "failing": clonekit.Spec(["sh", "-c", "echo failing: no luck; exit 3"]),
    "crashing": clonekit.Spec(["sh", "-c", "kill -SEGV $$"], rlimits={"core": 0}),
}
MOST_STARTS = 3

programs = {name: spec.program() for name, spec in PROGRAMS.items()}
starts = dict.fromkeys(programs, 0)
running: dict[int, tuple[str, clonekit.Process]] = {}
poller = select.poll()

with contextlib.ExitStack() as children:

    def start(name: str) -> None:
        """Spawn the program again from what was compiled once, and listen for its end."""
        starts[name] += 1
        process = children.enter_context(programs[name].spawn())
        running[process.fileno()] = name, process
        poller.register(process, select.POLLIN)

    for name in programs:
        start(name)
    while running:
        for fd, _ in poller.poll():
            name, process = running.pop(fd)
            poller.unregister(fd)
            ended = process.wait()
            process.close()
            again = ended.returncode != 0 and starts[name] < MOST_STARTS
            print(f"{name}: {ended}, {'starting it again' if again else 'left alone'}", flush=True)
            if again:
                start(name)
sys.exit(0)
