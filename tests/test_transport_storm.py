"""Many children at once, others that reap them, and loops in many threads: nothing is mistaken."""

from __future__ import annotations

import pytest
from looping import alone

PRELUDE = """
import asyncio, os, random, resource, signal, sys, threading, time
from asyncio.subprocess import DEVNULL, PIPE
from clonekit import aio
make = asyncio.SelectorEventLoop
if sys.argv[1] == "uvloop":
    import uvloop
    make = uvloop.new_event_loop
heard = []
def run(work):
    with asyncio.Runner(loop_factory=make) as runner:
        runner.get_loop().set_exception_handler(lambda _, context: heard.append(context))
        return runner.run(work)
def open_fds():
    return len(os.listdir("/proc/self/fd"))
async def ended(status):
    process = await aio.create_subprocess_shell(f"exit {status}")
    return await process.wait()
def no_child():
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
run(ended(0))
before = open_fds()
"""
END = """
assert heard == [], heard
assert open_fds() == before, os.listdir("/proc/self/fd")
assert no_child()
print("done")
"""

THOUSAND = """
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
at_once = min(1000, (min(hard, 8192) - 100) // 6)
async def one(number, gate):
    process = await aio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE, stderr=PIPE)
    gate.release()
    await all_there.wait()
    text = b"%d " % number * 20000
    output, errors = await process.communicate(text)
    return output == text and errors == b"" and process.returncode == 0
async def main():
    global all_there
    for first in range(0, 1000, at_once):
        numbers = range(first, min(first + at_once, 1000))
        gate, all_there = asyncio.Semaphore(0), asyncio.Event()
        tasks = [asyncio.create_task(one(number, gate)) for number in numbers]
        for _ in numbers:
            await gate.acquire()
        assert threading.active_count() == 1
        all_there.set()
        assert all(await asyncio.gather(*tasks))
run(main())
"""

REAPED_BY_ANY = """
ends = True
def reap():
    while ends:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            time.sleep(0.0001)
reaper = threading.Thread(target=reap)
reaper.start()
async def main():
    for _ in range(60):
        statuses = [random.randrange(256) for _ in range(50)]
        found = await asyncio.gather(*map(ended, statuses))
        assert all(end in (status, 255) for end, status in zip(found, statuses))
try:
    run(main())
finally:
    ends = False
    reaper.join()
"""

REAPED_BY_THE_OBJECT = """
from queue import SimpleQueue
queue = SimpleQueue()
wrong = []
def wait():
    while (told := queue.get()) is not None:
        popen, status = told
        for call in random.choices((popen.wait, popen.poll, lambda: popen.wait(5)), k=3):
            if call() not in (status, None):
                wrong.append(status)
threads = [threading.Thread(target=wait) for _ in range(4)]
for thread in threads:
    thread.start()
async def one(status):
    process = await aio.create_subprocess_shell(f"exit {status}")
    for _ in range(random.randrange(3)):
        await asyncio.sleep(0)
    queue.put((process._transport.get_extra_info("subprocess"), status))
    return await process.wait() == status
async def main():
    for _ in range(60):
        statuses = [random.randrange(256) for _ in range(50)]
        assert all(await asyncio.gather(*map(one, statuses)))
try:
    run(main())
finally:
    for _ in threads:
        queue.put(None)
    for thread in threads:
        thread.join()
assert wrong == []
del threads[:]
"""

NUMBERS_AGAIN = """
# What closes a number lets the next child have it, in the same turn of the loop.
async def one(status):
    process = await aio.create_subprocess_shell(f"cat; exit {status}", stdin=PIPE, stdout=PIPE)
    if status % 3:
        assert await process.communicate(b"%d" % status) == (b"%d" % status, None)
    else:
        process.stdin.close()
    assert await process.wait() == status
async def chain(length):
    for _ in range(length):
        await one(random.randrange(256))
async def main():
    await asyncio.gather(*(chain(60) for _ in range(40)))
run(main())
"""

THREADS = """
async def one(status):
    process = await aio.create_subprocess_shell(f"cat; exit {status}", stdin=PIPE, stdout=PIPE)
    assert await process.communicate(b"%d" % status) == (b"%d" % status, None)
    return process.returncode == status
async def main():
    for _ in range(8):
        assert all(await asyncio.gather(*(one(random.randrange(256)) for _ in range(25))))
    done.append(True)
done = []
threads = [threading.Thread(target=run, args=(main(),)) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(done) == 6
"""
STORMS = {
    "a thousand at once": THOUSAND,
    "reaped by waitpid(-1)": REAPED_BY_ANY,
    "reaped by their object": REAPED_BY_THE_OBJECT,
    "numbers again": NUMBERS_AGAIN,
    "loops in threads": THREADS,
}


@pytest.mark.parametrize("name", STORMS)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_in_a_storm_every_child_has_its_own_end(name: str, loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    result = alone(f"{PRELUDE}\n{STORMS[name]}\nimport gc; gc.collect()\n{END}", loop)
    assert (result.stderr, result.stdout, result.returncode) == ("", "done\n", 0)
