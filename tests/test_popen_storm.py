"""20,000 children with a user, limits, a session and pipes, while other threads hold every lock."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
import threading
from pathlib import Path

import pytest
from test_storm import beside, open_files

import clonekit

COUNT = 20_000
SPAWNERS = 4
NOBODY = 65534


def allocates(stop: threading.Event) -> None:
    """The allocator's locks, and the collector."""
    while not stop.is_set():
        blocks = [bytearray(size) for size in range(1, 1 << 20, 50_000)]
        blocks.append(bytearray(len(blocks)))
        gc.collect(0)
        stop.wait(0.0005)


def imports(stop: threading.Event, name: str) -> None:
    """The locks of the import system."""
    while not stop.is_set():
        sys.modules.pop(name, None)
        importlib.import_module(name)
        stop.wait(0.0005)


def logs(stop: threading.Event, path: Path) -> None:
    """The locks of logging and of files."""
    logger = logging.getLogger(__name__)
    handler = logging.FileHandler(path)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        while not stop.is_set():
            logger.warning("here is %s", threading.current_thread().name)
            stop.wait(0.0005)
    finally:
        logger.removeHandler(handler)
        handler.close()


@pytest.mark.usefixtures("no_hang")
def test_twenty_thousand_children_neither_hang_nor_leak(tmp_path: Path) -> None:
    user = NOBODY if os.geteuid() == 0 else os.geteuid()
    group = NOBODY if os.geteuid() == 0 else os.getegid()
    wrong: list[object] = []
    done = [0] * SPAWNERS

    def spawn(number: int) -> None:
        for n in range(COUNT // SPAWNERS):
            told = f"{number} {n}".encode()
            process = clonekit.Popen(
                ["/bin/cat"],
                stdin=clonekit.PIPE,
                stdout=clonekit.PIPE,
                user=user,
                group=group,
                rlimits={"nofile": 64, "core": 0},
                start_new_session=True,
            )
            out, _ = process.communicate(told, timeout=600)
            if out != told or process.returncode:
                wrong.append((process.returncode, out, told))
            done[number] += 1

    gc.collect()
    descriptors = open_files()
    log = tmp_path / "log"
    with beside(
        (allocates,), (allocates,), (imports, "colorsys"), (imports, "quopri"), (logs, log),
        (logs, log),
    ):  # fmt: skip
        threads = [threading.Thread(target=spawn, args=(n,)) for n in range(SPAWNERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    gc.collect()
    assert wrong == []
    assert sum(done) == COUNT
    assert open_files() == descriptors
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
