"""A supervisor of calls: the memory of its targets, and descriptors for them."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
from supervised import served

from clonekit.notify import Request

pytestmark = pytest.mark.usefixtures("no_hang", "nothing_left")

#: Two pages, of which the second may be taken away: `pages()` gives where they are.
MAP = """
libc.mmap.restype = ctypes.c_long
libc.mmap.argtypes = [ctypes.c_long] * 6
def pages(second):
    at = libc.mmap(0, 8192, 3, 0x22, -1, 0)
    if not second:
        libc.munmap(ctypes.c_long(at + 4096), ctypes.c_long(4096))
    return at
"""


def test_memory_is_read_and_written() -> None:
    def handler(request: Request) -> None:
        address, size = request.arguments[:2]
        assert request.read(address, size) == bytes(range(size))
        request.write(address + 1, b"\xff\xfe")
        request.write(address + 4, memoryview(b"\xfd"))
        assert request.read(address, 5) == b"\0\xff\xfe\3\xfd"
        request.result()

    code = """
buffer = ctypes.create_string_buffer(bytes(range(9)), 9)
call(nr["getpgid"], ctypes.addressof(buffer), 9)
print(buffer.raw)
"""
    assert served(code, handler) == [repr(b"\0\xff\xfe\3\xfd\5\6\7\x08")]


@pytest.mark.parametrize("before_the_end", [0, 1, 5, 6, 7, 4096])
def test_a_string_is_read_to_its_end_and_over_a_page(before_the_end: int) -> None:
    seen = []

    def handler(request: Request) -> None:
        seen.append(request.read_string(request.arguments[0]))
        request.result()

    code = f"""
at = pages(True) + 4096 - {before_the_end}
ctypes.memmove(ctypes.c_void_p(at), b"string\\0", 7)
call(nr["getpgid"], at)
"""
    served(MAP + code, handler)
    assert seen == [b"string"]


def test_a_string_may_end_where_memory_ends() -> None:
    seen = []

    def handler(request: Request) -> None:
        seen.append(request.read_string(request.arguments[0]))
        seen.append(request.read(request.arguments[0], 7))
        request.read(request.arguments[0], 8)  # EFAULT

    code = """
at = pages(False) + 4096 - 7
ctypes.memmove(ctypes.c_void_p(at), b"string\\0", 7)
print(call(nr["getpgid"], at))
"""
    assert served(MAP + code, handler) == ["EFAULT"]
    assert seen == [b"string", b"string\0"]


@pytest.mark.parametrize("address", [0, 8, -1, -4096, 1 << 63, (1 << 63) - 1, 1 << 47])
def test_what_is_no_memory_is_efault(address: int) -> None:
    def handler(request: Request) -> None:
        where = request.arguments[0]
        for touch in (
            lambda: request.read(where, 4),
            lambda: request.read_string(where),
            lambda: request.write(where, b"data"),
        ):
            with pytest.raises(OSError, match=r"no memory|not all|Bad address") as caught:
                touch()
            assert caught.value.errno == errno.EFAULT
        request.read(where, 1)

    assert served(f"print(call(nr['getpgid'], {address}))", handler) == ["EFAULT"]


@pytest.mark.parametrize("size", [1 << 46, 1 << 62, 1 << 63])
def test_a_size_for_which_there_is_no_room_does_not_end_the_supervisor(size: int) -> None:
    code = f"print(call(nr['getpgid'], 4096, {size}), call(nr['getpgid'], 4096, {size}))"
    assert served(code, lambda it: it.read(*it.arguments[:2])) == ["ENOMEM ENOMEM"]


def test_a_string_that_never_ends_is_too_long() -> None:
    def handler(request: Request) -> None:
        request.read_string(request.arguments[0], 8)

    code = """
for text in (b"seven..", b"eight..."):
    buffer = ctypes.create_string_buffer(text)
    print(call(nr["getpgid"], ctypes.addressof(buffer)))
"""
    assert served(code, handler) == ["EPERM", "ENAMETOOLONG"]


OPEN = """
def show(fd):
    if not isinstance(fd, int):
        return fd
    import fcntl
    return fd, os.read(fd, 99), bool(fcntl.fcntl(fd, fcntl.F_GETFD))
"""


@pytest.mark.parametrize("cloexec", [True, False])
def test_a_descriptor_is_the_result_in_one_step(tmp_path: Path, cloexec: bool) -> None:  # noqa: FBT001
    (tmp_path / "file").write_text("ours")

    def handler(request: Request) -> None:
        with open(tmp_path / "file", "rb") as file:
            given.append(request.add_fd(file, cloexec=cloexec))
        assert request.answered

    given: list[int] = []
    assert served(f"{OPEN}\nprint(show(call(nr['getpgid'], 0)))", handler) == [
        repr((given[0], b"ours", cloexec))
    ]


def test_a_descriptor_gets_the_number_that_was_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("ours")

    def handler(request: Request) -> None:
        with open(tmp_path / "file", "rb") as file:
            assert request.add_fd(file.fileno(), number=77) == 77

    code = f"{OPEN}\nos.dup2(2, 77)\nprint(show(call(nr['getpgid'], 0)))"
    assert served(code, handler) == [repr((77, b"ours", True))]


def test_a_descriptor_may_come_before_the_answer(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("ours")

    def handler(request: Request) -> None:
        with open(tmp_path / "file", "rb") as file:
            numbers = [request.add_fd(file, send=False) for _ in range(2)]
        assert not request.answered
        request.result(numbers[1])
        assert numbers[1] == numbers[0] + 1

    (line,) = served(f"{OPEN}\nprint(show(call(nr['getpgid'], 0)))", handler)
    assert line.endswith("b'ours', True)")


def test_a_descriptor_beyond_the_limit_of_the_process_is_its_own_error() -> None:
    def handler(request: Request) -> None:
        request.add_fd(0)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (3, {hard}))
result = call(nr["getpgid"], 0)
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
print(result)
"""
    assert served(code, handler) == ["EMFILE"]


def test_a_descriptor_that_we_do_not_have_is_an_error_and_no_answer() -> None:
    def handler(request: Request) -> None:
        with pytest.raises(OSError, match="Bad file descriptor"):
            request.add_fd(999_999)
        assert not request.answered
        request.result(6)

    assert served("print(call(nr['getpgid'], 0))", handler) == ["6"]


def test_no_memory_of_a_process_stays_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    counts = []

    def handler(request: Request) -> None:
        request.read(request.instruction_pointer, 1)
        counts.append(len(os.listdir("/proc/self/fd")))
        request.result()
        counts.append(len(os.listdir("/proc/self/fd")))

    served("call(nr['getpgid'], 0); call(nr['getpgid'], 0)", handler)
    assert counts[0] == counts[1] + 1 == counts[2]
    assert len(os.listdir("/proc/self/fd")) == before
