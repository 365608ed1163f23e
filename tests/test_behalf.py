"""Files opened on behalf of a process: which they are, and which they never are."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from supervised import served

from clonekit.behalf import OPENING_CALLS, Opening
from clonekit.linux.abi import NUMBERS
from clonekit.request import Request

pytestmark = pytest.mark.usefixtures("no_hang", "nothing_left")

#: From here on, calls that open are answered: Python has all that it needs.
CODE = """
def show(fd):
    return os.read(fd, 99) if isinstance(fd, int) else fd
def path(text):
    keep.append(ctypes.create_string_buffer(os.fsencode(text)))
    return ctypes.addressof(keep[-1])
keep = []
AT = -100
def openat(name, flags=0, mode=0, at=AT):
    return call(nr["openat"], at, path(name), flags, mode)
def openat2(name, flags=0, mode=0, resolve=0, at=AT, size=24, more=0):
    how = (ctypes.c_uint64 * 4)(flags, mode, resolve, more)
    return call(nr["openat2"], at, path(name), ctypes.addressof(how), size)
call(nr["getpgid"], 5_000_000)
"""


class Supervisor:
    """Lets calls continue until the program says that it begins, then opens what it names."""

    def __init__(self, path: Callable[[Opening], str | bytes | None] = lambda _: None) -> None:
        self.path = path
        self.begun = False
        self.opened: list[bytes] = []

    def __call__(self, request: Request) -> None:
        if request.call == "getpgid":
            self.begun = True
        if not self.begun or request.call == "getpgid":
            request.continue_()
            return
        opening = Opening(request)
        self.opened.append(opening.path)
        opening.answer(self.path(opening))


def opened(
    code: str, supervisor: Supervisor | None = None, prepare: str = "", **fields: Any
) -> list[str]:
    """What the program prints, whose files are opened for it."""
    names = (*OPENING_CALLS, "getpgid")
    return served(
        f"import fcntl\n{prepare}\n{CODE}\n{code}",
        supervisor or Supervisor(),
        names=names,
        **fields,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("top")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/file").write_text("sub")
    (tmp_path / "sub/link").symlink_to("../file")
    (tmp_path / "sub/abs").symlink_to("/file")
    (tmp_path / "out").symlink_to("/../../../../etc/passwd")
    (tmp_path / "dangling").symlink_to("made")
    return tmp_path


def test_names_mean_what_they_mean_to_the_process(tree: Path) -> None:
    code = f"""
os.chdir("{tree}/sub")
at = os.dup(fd) if (fd := openat("{tree}", os.O_DIRECTORY | os.O_RDONLY)) else 0
print(show(openat("{tree}/file")), show(openat("file")), show(openat("../file")))
print(show(openat("link")), show(openat("file", at=at)), show(openat("sub/link", at=at)))
print(openat("none"), openat("file/none"), openat(""), openat("file", at=99), openat("x", at=0))
"""
    assert opened(code) == [
        "b'top' b'sub' b'top'",
        "b'top' b'top' b'top'",
        "ENOENT ENOTDIR ENOENT EBADF ENOTDIR",
    ]


@pytest.mark.skipif("open" not in NUMBERS, reason="this architecture has only openat")
def test_the_older_calls_are_known(tree: Path) -> None:
    code = f"""
os.chdir("{tree}")
print(show(call(nr["open"], path("file"), 0, 0)))
fd = call(nr["creat"], path("new"), 0o640)
os.write(fd, b"written")
print(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE)
print(call(nr["open"], path("new"), os.O_CREAT | os.O_EXCL, 0))
"""
    assert opened(code) == ["b'top'", str(os.O_WRONLY), "EEXIST"]
    assert (tree / "new").read_text() == "written"
    assert stat.S_IMODE((tree / "new").stat().st_mode) & ~0o640 == 0


def test_openat2_keeps_its_own_bounds(tree: Path) -> None:
    beneath, in_root, no_links = 0x08, 0x10, 0x04
    code = f"""
os.chdir("{tree}/sub")
print(show(openat2("file")), openat2("link", resolve={no_links}))
print(show(openat2("file", resolve={beneath})), openat2("../file", resolve={beneath}))
print(show(openat2("../../file", resolve={in_root})), show(openat2("abs", resolve={in_root})))
print(openat2("file", size=8), openat2("file", size=5000), openat2("file", size=32, more=1))
"""
    assert opened(code) == [
        "b'sub' ELOOP", "b'sub' EXDEV", "b'sub' b'sub'", "EINVAL EINVAL E2BIG",
    ]  # fmt: skip


def test_a_descriptor_has_the_flags_that_were_asked_for(tree: Path) -> None:
    code = f"""
os.chdir("{tree}")
for flags in (os.O_RDWR | os.O_APPEND, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK):
    fd = openat("file", flags)
    kept = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK
    print(fcntl.fcntl(fd, fcntl.F_GETFL) & kept == flags & kept, fcntl.fcntl(fd, fcntl.F_GETFD))
print(openat("out", os.O_NOFOLLOW), openat("file", os.O_DIRECTORY), openat("sub", os.O_WRONLY))
print(openat("file", os.O_PATH))
"""
    assert opened(code) == ["True 0", "True 1", "ELOOP ENOTDIR EISDIR", "ENOTSUP"]


def test_files_are_made(tree: Path) -> None:
    code = f"""
os.chdir("{tree}/sub")
new = os.O_CREAT | os.O_WRONLY
for name, flags in (("new", new), ("new", new | os.O_TRUNC), ("file", new | os.O_APPEND)):
    print(os.write(openat(name, flags, 0o600), b"more"))
print(openat("file", new | os.O_EXCL, 0o600), openat("none/new", new, 0o600))
fd = openat(".", os.O_TMPFILE | os.O_RDWR, 0o600)
print(fd if isinstance(fd, str) else os.fstat(fd).st_nlink)
"""
    lines = opened(code)
    assert lines[:4] == ["4", "4", "4", "EEXIST ENOENT"]
    assert lines[4] in {"0", "ENOTSUP"}  # of the file system
    assert (tree / "sub/new").read_text() == "more"
    assert (tree / "sub/file").read_text() == "submore"


def test_no_file_that_is_made_sets_our_ids(tree: Path) -> None:
    code = f"openat('{tree}/new', os.O_CREAT | os.O_WRONLY, 0o6755)"
    opened(code, prepare="os.umask(0)")
    assert (tree / "new").stat().st_mode & (stat.S_ISUID | stat.S_ISGID) == 0


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_RDWR | os.O_NONBLOCK])
def test_a_lease_holds_nobody_up(tree: Path, flags: int) -> None:
    prepare = f"""
import signal
signal.signal(signal.SIGIO, signal.SIG_IGN)
leased = os.open("{tree}/file", os.O_RDWR)
fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)
"""
    code = f"""
print(openat("{tree}/file", {flags}))
os.close(leased)
print(fcntl.fcntl(openat("{tree}/file", {flags}), fcntl.F_GETFL) & os.O_NONBLOCK)
"""
    assert opened(code, prepare=prepare) == ["EAGAIN", str(flags & os.O_NONBLOCK)]


def test_no_name_leads_out_of_the_root(tree: Path) -> None:
    code = """
print(show(openat("/file")), show(openat("../../file")), show(openat("sub/abs")))
print(openat("/out"), openat("/../etc/passwd"), openat("sub/../../../etc/passwd"))
os.chdir("sub")
print(show(openat("file")), show(openat("../../../file")), show(openat("link")))
"""
    fields = {} if os.geteuid() == 0 else {"namespaces": ["user"], "uid_map": 0, "gid_map": 0}
    prepare = f"os.chroot('{tree}'); os.chdir('/')"
    assert opened(code, prepare=prepare, **fields) == [
        "b'top' b'top' b'top'", "ENOENT ENOENT ENOENT", "b'sub' b'top' b'top'",
    ]  # fmt: skip


def test_a_directory_outside_of_the_root_is_no_start(tree: Path) -> None:
    code = 'print(openat("file"), openat("../file"), show(openat("/file")))'
    fields = {} if os.geteuid() == 0 else {"namespaces": ["user"], "uid_map": 0, "gid_map": 0}
    prepare = f"os.chdir('{tree}'); os.chroot('{tree}/sub')"
    assert opened(code, prepare=prepare, **fields) == ["EXDEV EXDEV b'sub'"]


def test_a_start_is_the_directory_itself_wherever_it_was_moved(tree: Path) -> None:
    code = f"""
os.chdir("{tree}/sub")
print(show(openat("file")))
os.rename("{tree}/sub", "{tree}/moved")
os.mkdir("{tree}/sub")
print(show(openat("file")))
os.rmdir("{tree}/sub")
os.mkdir("{tree}/gone")
os.chdir("{tree}/gone")
os.rmdir("{tree}/gone")
print(openat("file"))
"""
    assert opened(code) == ["b'sub'", "b'sub'", "EXDEV"]


def test_files_of_proc_are_not_opened_for_another() -> None:
    code = """
for name in ("self/mem", "self/maps", "thread-self/environ", "self/fd/0", "self/root/etc/passwd"):
    print(openat("/proc/" + name))
os.chdir("/proc/self")
print(openat("mem", os.O_RDWR))
"""
    assert opened(code) == ["EACCES", "EACCES", "EACCES", "ELOOP", "ELOOP", "EACCES"]


def test_what_does_something_when_it_is_opened_is_not_opened(tree: Path) -> None:
    os.mkfifo(tree / "fifo")
    code = f"""
for flags in (os.O_RDONLY, os.O_WRONLY, os.O_CREAT | os.O_RDWR):
    print(openat("{tree}/fifo", flags, 0o600), openat("/dev/null", flags, 0o600))
print(openat("/dev/stdin"), openat("/dev/tty"))
"""
    lines = opened(code)
    assert lines[:3] == ["EACCES EACCES"] * 3
    assert set(lines[3].split()) <= {"EACCES", "ELOOP", "ENOENT"}


def test_a_link_that_leads_nowhere_is_not_made_a_file(tree: Path) -> None:
    code = f"print(openat('{tree}/dangling', os.O_CREAT | os.O_WRONLY, 0o600))"
    assert opened(code) == ["EEXIST"]
    assert not (tree / "made").exists()


def test_another_path_is_opened_instead(tree: Path) -> None:
    supervisor = Supervisor(lambda opening: opening.path.replace(b"/shown", b"/sub"))
    code = f"print(show(openat('{tree}/shown/file')), openat('{tree}/shown/none'))"
    assert opened(code, supervisor) == ["b'sub' ENOENT"]
    assert supervisor.opened == [os.fsencode(tree / "shown" / name) for name in ("file", "none")]


def test_another_call_opens_nothing() -> None:
    def handler(request: Request) -> None:
        with pytest.raises(ValueError, match="opens no file"):
            Opening(request)
        request.result()

    served("call(nr['getpgid'], 0)", handler)


def test_a_path_that_cannot_be_read_is_the_call_s_own_error() -> None:
    code = """
print(call(nr["openat"], AT, 8, 0, 0), openat("x" * 4096), openat("x/" * 2000))
print(call(nr["openat2"], AT, path("x"), 8, 24))
"""
    assert opened(code) == ["EFAULT ENAMETOOLONG ENOENT", "EFAULT"]


def test_a_path_that_another_thread_changes_opens_only_what_was_judged(tree: Path) -> None:
    judged: list[bytes] = []

    def judge(opening: Opening) -> None:
        judged.append(opening.path)
        if not opening.path.endswith(b"/sub/file"):
            raise PermissionError(errno.EACCES, "not this")

    code = f"""
texts = [os.fsencode("{tree}/sub/file"), os.fsencode("{tree}/./././file")]
keep.append(ctypes.create_string_buffer(len(texts[0]) + 9))
at = ctypes.addressof(keep[0])
def flip():
    while True:
        for text in texts:
            ctypes.memmove(at, text + bytes(1), len(text) + 1)
threading.Thread(target=flip, daemon=True).start()
seen = set()
for _ in range(2_000):
    fd = call(nr["openat"], AT, at, 0, 0)
    seen.add(show(fd))
    if isinstance(fd, int):
        os.close(fd)
print(b"top" in seen, seen <= {{b"sub", "EACCES", "ENOENT", "ENOTDIR"}}, len(seen) > 1, flush=True)
os._exit(0)
"""
    assert opened(code, Supervisor(judge)) == ["False True True"]
    assert len(set(judged)) > 1
