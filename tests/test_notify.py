"""A supervisor of calls: what it is told, and what it answers."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from supervised import served, target

from clonekit.linux.abi import NUMBERS
from clonekit.linux.seccomp import AUDIT_ARCH
from clonekit.notify import Request

pytestmark = pytest.mark.usefixtures("no_hang", "nothing_left")


def test_a_request_says_who_calls_what() -> None:
    seen: list[Request] = []

    def handler(request: Request) -> None:
        seen.append(request)
        request.result(7)

    code = "print(os.getpid(), call(nr['getpgid'], -1, 2, 3, 4, 5, 6))"
    (line,) = served(code, handler)
    (request,) = seen
    assert line == f"{request.pid} 7"
    assert (request.call, request.number) == ("getpgid", NUMBERS["getpgid"])
    assert request.architecture == AUDIT_ARCH
    assert request.arguments == ((1 << 64) - 1, 2, 3, 4, 5, 6)
    assert request.instruction_pointer > 0
    assert request.answered


def test_the_number_is_that_of_the_calling_thread() -> None:
    seen: list[int] = []

    def handler(request: Request) -> None:
        seen.append(request.pid)
        request.result()

    code = """
def work():
    print(threading.get_native_id(), flush=True)
    call(nr["getpgid"], 0)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    lines = served(code, handler)
    assert [str(pid) for pid in seen] == lines


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (lambda request: request.errno(errno.EDOM), "EDOM"),
        (lambda request: request.result(1 << 40), str(1 << 40)),
        (lambda request: request.result(), "0"),
        (lambda request: request.result(-errno.EXDEV), "EXDEV"),
        (lambda request: request.continue_(), "ESRCH"),
        (repr, "EPERM"),
    ],
    ids=["errno", "result", "0", "negative", "continue", "unanswered"],
)
def test_a_call_gives_what_was_answered(answer: Callable[[Request], object], result: str) -> None:
    assert served("print(call(nr['getpgid'], 5_000_000))", answer) == [result]


def test_a_call_that_continues_is_made(tmp_path: Path) -> None:
    code = f"os.mkdir('{tmp_path}/made', dir_fd=os.open('/', os.O_RDONLY))"
    served(code, lambda request: request.continue_())
    assert (tmp_path / "made").is_dir()


def test_an_answer_is_given_once() -> None:
    def handler(request: Request) -> None:
        request.result(3)
        for again in (request.result, request.continue_, lambda: request.errno(1)):
            with pytest.raises(ValueError, match="has been answered"):
                again()
        with pytest.raises(ValueError, match="has been answered"):
            request.add_fd(0)

    assert served("print(call(nr['getpgid'], 0))", handler) == ["3"]


@pytest.mark.parametrize("number", [0, -1, 4096])
def test_what_is_no_errno_is_refused(number: int) -> None:
    def handler(request: Request) -> None:
        with pytest.raises(ValueError, match="no errno"):
            request.errno(number)
        request.result()

    served("call(nr['getpgid'], 0)", handler)


def test_an_oserror_of_the_handler_is_the_call_s() -> None:
    def handler(_: Request) -> None:
        os.stat("/nonexistent")

    assert served("print(call(nr['getpgid'], 0))", handler) == ["ENOENT"]


def test_another_exception_refuses_the_call_and_passes_through() -> None:
    def handler(_: Request) -> None:
        raise KeyError

    with target("print(call(nr['getpgid'], 0))") as made:
        with pytest.raises(KeyError):
            made.listener.serve(handler)
        assert made.printed() == ["EPERM"]
