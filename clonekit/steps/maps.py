"""Maps of a new user namespace: written by the child, by its parent, or by newuidmap."""

from __future__ import annotations

import errno
import os

from clonekit.errors import DeclarationError
from clonekit.linux.abi import lib
from clonekit.linux.privilege import has_capability, is_privileged
from clonekit.records import Ask, Call, OwnMemory
from clonekit.steps.opening import write_file
from clonekit.steps.step import Option, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from clonekit.linux.id_map import IdMap
    from clonekit.records import Asking, Records

MOST_TOLD = 4096
#: Who else may write a map, and how its package is called.
PACKAGE = "uidmap"
HELPERS = {"uid": "newuidmap", "gid": "newgidmap"}


def parse_map(text: str) -> int | list[tuple[int, ...]]:
    """`0`, `0:1000`, or `0:1000:1,1:100000:65536`."""
    if text.isdecimal():
        return int(text)
    return [tuple(map(int, part.split(":"))) for part in text.split(",")]


OPTION = Option("INSIDE[:OUTSIDE[:COUNT]],...", parse_map)


@step(phase="maps", field="uid_map", asks=True, lasting=True, ours=True, option=OPTION)
def map_uid(inside: int | Sequence[object] | IdMap) -> Records:
    """The uids of the new user namespace: /proc/PID/uid_map.

    An id inside for our own (effective) uid, as `0`, or (inside, outside), is written by the child
    itself. Ranges, as `[(0, 1000, 1), (1, 100000, 65536)]` or an `IdMap`, are written by us if we
    have CAP_SETUID, else by newuidmap, which must be installed and finds our ranges in /etc/subuid.

    Raises: EPERM for ids that are not ours to give. See: user_namespaces(7), newuidmap(1).
    """
    yield from written("uid", inside, os.geteuid())


@step(phase="maps", field="gid_map", asks=True, lasting=True, ours=True, option=OPTION)
def map_gid(inside: int | Sequence[object] | IdMap) -> Records:
    """The gids of the new user namespace: /proc/PID/gid_map. Values are as for `map_uid`.

    A child that writes it itself first gives up setgroups for ever in that namespace, as the
    kernel asks of whoever maps itself.

    Raises: EPERM for ids that are not ours to give. See: user_namespaces(7), newgidmap(1).
    """
    yield from written("gid", inside, os.getegid())


def written(kind: str, value: object, own: int) -> Records:
    """The records that write a map, or ask for it."""
    from clonekit.linux.id_map import map_of, refuse_foreign

    id_map = map_of(value, own)
    if id_map.is_own(own):
        if kind == "gid":
            yield from write_file("/proc/self/setgroups", b"deny").records()
        yield from write_file(f"/proc/self/{kind}_map", id_map.text[:-1]).records()
        return
    capability = lib.CAP_SETUID if kind == "uid" else lib.CAP_SETGID
    if has_capability(capability):
        act = Writer(kind, id_map).write
        yield Ask(f"write /proc/PID/{kind}_map: {shown(id_map)}", act, lasting=True)
        return
    refuse_foreign(id_map, kind)
    refuse_absent(HELPERS[kind])
    yield Ask(f"{HELPERS[kind]} PID: {shown(id_map)}", Writer(kind, id_map).ask)


def shown(id_map: IdMap) -> str:
    """A map on one line."""
    return ", ".join(id_map.text.decode().splitlines())


def refuse_absent(program: str) -> None:
    """Refuse a map that only a program could write that is not there."""
    import shutil

    if shutil.which(program) is None:
        msg = (
            f"{program} is not installed (Debian's package {PACKAGE}); without it and without "
            "CAP_SETUID a map is one id, our own"
        )
        raise DeclarationError(msg)


def parse_ids(text: str) -> tuple[int, int]:
    """`1000:1000`."""
    uid, _, gid = text.partition(":")
    return int(uid), int(gid)


class Writer:
    """What we do for a child that asks for its map."""

    __slots__ = ("id_map", "kind")

    def __init__(self, kind: str, id_map: IdMap) -> None:
        self.kind = kind
        self.id_map = id_map

    def write(self, child: Asking) -> None:
        """Write it ourselves, in one call."""
        from clonekit.linux.pidfd import number_in_proc

        number = number_in_proc(child.pidfd)
        fd = os.open(f"/proc/{number}/{self.kind}_map", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, self.id_map.text)
        finally:
            os.close(fd)

    def ask(self, child: Asking) -> None:
        """Have it written by the program that knows which ids are ours."""
        from clonekit.linux.pidfd import number_in_proc
        from clonekit.spec import spawn

        program = HELPERS[self.kind]
        words = [number_in_proc(child.pidfd), *(n for entry in self.id_map.ranges for n in entry)]
        reader, writer = os.pipe2(os.O_CLOEXEC)
        with open(reader, encoding="utf-8", errors="replace") as told:  # noqa: PTH123 - a pipe
            try:
                process = spawn([program, *map(str, words)], fds={1: writer, 2: writer})
            finally:
                os.close(writer)
            with process:
                text = told.read(MOST_TOLD).strip().replace("\n", "; ")
                told.close()  # it would wait for us with more than that
                if process.wait().returncode != 0:
                    raise PermissionError(errno.EPERM, f"{program}: {text}")


@step(
    phase="nest",
    field="nested_user",
    apart=True,
    lasting=True,
    ours=True,
    option=Option("UID:GID", parse_ids),
)
def nest_user_namespace(ids: tuple[int, int]) -> Records:
    """Enter a second user namespace, which maps only the ids that the program has: unshare.

    The mounts, the network and the rest belong to the first one, so that the program cannot change
    them, whatever capabilities it has or gets. `ids` are its uid and gid by then. It takes a /proc
    in the child's root.

    Raises: EPERM, ENOENT without /proc, ENOSPC. See: user_namespaces(7), unshare(2).
    """
    uid, gid = ids
    apart = is_privileged()  # on our memory, /proc/self would not be its own
    if apart:
        yield OwnMemory()
    yield Call("unshare", lib.CLONE_NEWUSER)
    if apart:
        yield Call("prctl", lib.PR_SET_DUMPABLE, 1, 0, 0, 0)
    yield from write_file("/proc/self/setgroups", b"deny").records()
    yield from write_file("/proc/self/gid_map", b"%d %d 1" % (gid, gid)).records()
    yield from write_file("/proc/self/uid_map", b"%d %d 1" % (uid, uid)).records()
    # Whether that was a /proc, and not a file that a root has in its place, the ids tell.
    yield Call("getuid", expect=uid)
    yield Call("getgid", expect=gid)
    if apart:
        yield Call("prctl", lib.PR_SET_DUMPABLE, 0, 0, 0, 0)
