"""A supervisor of calls in asyncio."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest
from supervised import target

from clonekit import Filter, aio, spawn
from clonekit.notify import Listener, Request

pytestmark = pytest.mark.usefixtures("no_hang", "nothing_left")

#: As many threads, each of which makes one call with its own number.
THREADS = r"""
def work(n):
    result = call(nr['getpgid'], n)
    os.write(1, f'{n} {result}\n'.encode())
threads = [threading.Thread(target=work, args=[n]) for n in range(5)]
for each in threads: each.start()
for each in threads: each.join()
"""


def test_a_function_answers() -> None:
    with target("print(call(nr['getpgid'], 0))") as made:
        asyncio.run(aio.serve(made.listener, lambda request: request.result(4)))
        assert made.printed() == ["4"]


def test_calls_are_answered_at_once_by_coroutines() -> None:
    async def main(listener: Listener) -> None:
        waiting = asyncio.Barrier(5)

        async def handler(request: Request) -> None:
            await waiting.wait()  # for all the others
            request.result(request.arguments[0] + 10)

        await aio.serve(listener, handler)

    with target(THREADS) as made:
        asyncio.run(main(made.listener))
        assert sorted(made.printed()) == [f"{n} {n + 10}" for n in range(5)]


@pytest.mark.parametrize(
    ("error", "told"), [(FileNotFoundError(errno.ENOENT, "none"), "ENOENT"), (None, "EPERM")]
)
def test_an_oserror_or_no_answer_is_an_errno(error: OSError | None, told: str) -> None:
    async def handler(_: Request) -> None:
        await asyncio.sleep(0)
        if error:
            raise error

    with target("print(call(nr['getpgid'], 0))") as made:
        asyncio.run(aio.serve(made.listener, handler))
        assert made.printed() == [told]


def test_another_exception_ends_the_serving_and_refuses_what_waits() -> None:
    async def handler(request: Request) -> None:
        if request.arguments[0] == 0:
            raise KeyError
        await asyncio.sleep(1_000)

    with target(THREADS) as made:
        with pytest.raises(KeyError):
            asyncio.run(aio.serve(made.listener, handler))
        made.listener.close()
        lines = dict(line.split() for line in made.printed())
        assert lines.pop("0") == "EPERM"
        assert set(lines.values()) <= {"EPERM", "ENOSYS"}


def test_a_serving_that_is_cancelled_refuses_what_waits() -> None:
    async def main(listener: Listener) -> None:
        started = asyncio.Event()

        async def handler(_: Request) -> None:
            started.set()
            await asyncio.sleep(1_000)

        task = asyncio.create_task(aio.serve(listener, handler))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with target("print(call(nr['getpgid'], 0))") as made:
        asyncio.run(main(made.listener))
        assert made.printed() == ["EPERM"]


def test_a_serving_is_stopped_when_it_has_answered() -> None:
    async def main(listener: Listener) -> None:
        async def handler(request: Request) -> None:
            listener.stop()
            await asyncio.sleep(0)
            request.result(8)

        await aio.serve(listener, handler)

    with target("print(call(nr['getpgid'], 0)); call(nr['getpgid'], 0)") as made:
        asyncio.run(main(made.listener))
        made.listener.close()
        assert made.printed() == ["8"]


def test_the_loop_serves_the_exec_of_a_program_that_a_thread_spawns() -> None:
    seen = []

    def handler(request: Request) -> None:
        seen.append(request.read_string(request.arguments[0]))
        request.continue_()

    async def main() -> None:
        with Listener() as listener:
            made = Filter("ALLOW").notify("execve", to=listener)
            serving = asyncio.create_task(aio.serve(listener, handler))
            await asyncio.sleep(0)
            given = {"no_new_privs": True, "seccomp": made}
            process = await asyncio.to_thread(spawn, ["/bin/true"], **given)
            assert (await aio.wait(process)).status == 0
            await serving

    asyncio.run(main())
    assert seen == [b"/bin/true"]


def test_other_tasks_run_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "ticked"

    async def main(listener: Listener) -> None:
        async def tick() -> None:
            for _ in range(3):
                await asyncio.sleep(0.001)
            path.touch()

        task = asyncio.create_task(tick())
        await aio.serve(listener, lambda request: request.result())
        await task

    waits = f"while not os.path.exists({str(path)!r}): time.sleep(0.001)"
    with target(f"{waits}\nprint(call(nr['getpgid'], 0))") as made:
        asyncio.run(main(made.listener))
        assert made.printed() == ["0"]
