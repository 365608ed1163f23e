"""A declaration that is compiled again is the same program, and a new one when something changed.

A program that served again where it must not would be another sandbox than was declared.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mounting import root  # noqa: F401 - a fixture
from recompiled import OWN, again, laid_out, lasts
from step_cases import missing, output

from clonekit import DeclarationError, Landlock, Program, Spec, mounts, spawn
from clonekit.filters import Filter
from clonekit.lasting import LASTING, freeze
from clonekit.linux.id_map import IdMap
from clonekit.mounts.filesystems import FileSystem
from clonekit.mounts.value import Mount
from clonekit.notify import Listener
from clonekit.steps import set_umask
from clonekit.steps.step import KINDS

#: Declarations that last, whoever we are.
LAST: list[dict[str, Any]] = [
    {},
    {"namespaces": "user"},
    OWN,
    {**OWN, "uid_map": [(0, os.geteuid())], "gid_map": IdMap((0, os.getegid(), 1))},
    {**OWN, "hostname": "a", "domainname": "b", "loopback": True, "propagation": "slave"},
    {**OWN, "rootfs": "/"},
    {**OWN, "rootfs": "/usr"},
    {**OWN, "rootfs": Path("/usr")},
    {**OWN, "rootfs": mounts.tmpfs("/", size=1 << 20)},
    {**OWN, "rootfs": mounts.bind("/usr", "/", read_only=True)},
    {**OWN, "mounts": [mounts.bind("/", "/mnt"), mounts.bind("/etc/passwd", "/mnt/passwd")]},
    {**OWN, "mounts": [mounts.bind("/absent", "/mnt", optional=True)]},
    {**OWN, "mounts": (mounts.proc(hidepid="off"), mounts.sysfs(), mounts.cgroup2())},
    {**OWN, "mounts": [mounts.dev(devices=["/dev/null"]), mounts.devpts(), mounts.mqueue()]},
    {**OWN, "mounts": [mounts.overlay("/mnt", ["/usr", "/etc"], in_memory=True)]},
    {**OWN, "mounts": [mounts.file("/etc/x", b"text")]},
    {**OWN, "mounts": [mounts.file_system("tmpfs", "/mnt", {"size": "1m", "noswap": True})]},
    {**OWN, "masked_paths": mounts.MASKED_PATHS, "readonly_paths": mounts.READONLY_PATHS},
    {**OWN, "masked_paths": "/etc/passwd", "readonly_paths": "/etc"},
    {**OWN, "init": True},
    {**OWN, "init": True, "deadline": 5, "seccomp": Filter("ALLOW").errno("acct")},
    {**OWN, "nested_user": (0, 0)},
    {"landlock": Landlock(read=["/usr", "bin"], scopes=["signal"], best_effort=True)},
    {"landlock": Landlock(write=["/usr"], symlinks=False, best_effort=True)},
    {"uid": 1000},
    {"uid": (0, 0, None), "gid": 0, "groups": "keep"},
    {"gid": 1000, "groups": [1, 2]},
    {"capabilities": []},
    {"capabilities": {}},
    {"capabilities": {"bounding": ["chown"], "ambient": []}, "securebits": ["noroot"]},
    {"keyring": "a", "core_scheduling": True, "no_new_privs": True, "autoreap": True},
    {"time_offsets": {"monotonic": 2.5}},
    {"no_thp": True, "mdwe": True, "ksm": True, "coredump_filter": ["elf-headers"]},
    {"rlimits": {"core": None}, "seccomp": Filter("ALLOW").errno("acct"), "deadline": 2.5},
]  # fmt: skip


@pytest.mark.parametrize("fields", LAST, ids=str)
@pytest.mark.parametrize("env", [None, {"PATH": "/bin:/usr/bin", "A": "b"}])
def test_a_declaration_that_lasts_is_the_program_that_it_would_be_anew(
    fields: dict[str, Any], env: dict[str, str] | None
) -> None:
    for argv in (["true"], ["/bin/true", "one"]):
        for program in again(argv, {**fields, "env": env}):
            spec = Spec(list(program.argv), **fields, env=env)
            fresh = Program(spec.steps(), deadline=fields.get("deadline"))
            assert laid_out(program) == laid_out(fresh)
            assert program.setup is not fresh.setup
    assert lasts({**fields, "env": env})


def test_declarations_that_say_other_things_share_nothing() -> None:
    told = [Spec(["true"], **fields).program() for fields in LAST]
    assert len({id(program.setup) for program in told}) == len(LAST)
    texts = {str((program.explain(), program.setup.clone_flags)) for program in told}
    assert len(texts) > len(LAST) - 6  # some are two ways to say the same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([], {}),
        ({"a": "b"}, ["a", "b"]),
        ({"a": "b"}, ("a", "b")),
        (1, True),
        (1, 1.0),
        ("a", b"a"),
        ([None], [False]),
        (mounts.tmpfs("/a"), mounts.tmpfs("/b")),
        (mounts.file("/a", b"1"), mounts.file("/a", b"2")),
        (mounts.bind("/usr", "/a"), mounts.bind("/usr", "/a", nodev=True)),
        (mounts.bind("/usr", "/a"), mounts.bind("/usr", "/a", recursive=False)),
        (mounts.overlay("/a", ["/usr", "/etc"]), mounts.overlay("/a", ["/etc", "/usr"])),
        (mounts.dev(), mounts.dev(read_only=True)),
        (Landlock(read=["/"]), Landlock(read=["/"], best_effort=True)),
        (Landlock(read=["/"]), Landlock(read=["/"], abi=1)),
        (Landlock(read=["/"]), Landlock(read=["/"], symlinks=False)),
        (Landlock(tcp_bind=[1]), Landlock(tcp_bind=[2])),
        (IdMap((0, 1, 1)), IdMap((0, 1, 2))),
        (IdMap((0, 1, 1)), ((0, 1, 1),)),
    ],
    ids=str,
)
def test_values_that_mean_other_things_are_told_apart(one: object, other: object) -> None:
    assert freeze(one) is not None
    assert freeze(one) != freeze(other)


class Mine(FileSystem):
    """A kind of mount that is the caller's, with more than we know of."""

    __slots__ = ("more",)


class Seconds(float):
    """A number that may be more than one."""


class Looking:
    """A descriptor that changes its number, and has a method of our name."""

    def frozen(self) -> object:
        """Nothing that we would believe."""
        return "the same"

    def fileno(self) -> int:
        """It is open."""
        return 0


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": [set_umask(0)]},
        {"fds": {0: Looking()}},
        {"fds": {0: 0, 1: open(os.devnull, "wb")}},  # noqa: SIM115 - for as long as the tests
        {"executable": 0},
        {"landlock": 0},
        {"deadline": Seconds(5)},
        {"uid": "root"},
        {"groups": ["root"]},
        {"gid": (0, "root", 0)},
        {**OWN, "mounts": [Mine("tmpfs", "/mnt", {}, 0)]},
        {**OWN, "mounts": [mounts.attach(0, "/mnt")]},
        {**OWN, "mounts": [mounts.file("/x", 0)]},
        {**OWN, "mounts": [mounts.bind("/usr", "/mnt", id_map=0)]},
        {**OWN, "mounts": [mounts.file_system("tmpfs", "/mnt", {"size": Path("1m")})]},
        {**OWN, "network": []},
        {"join": []},
        {"seccomp": Filter("ALLOW").notify("acct", to=Listener()), "no_new_privs": True},
        {"landlock": Landlock(read=[0], best_effort=True)},
    ],
    ids=str,
)
def test_what_may_change_unseen_is_compiled_each_time(fields: dict[str, Any]) -> None:
    try:
        assert not lasts(fields)
    except DeclarationError:  # an option that is no text; it is refused each time
        with pytest.raises(DeclarationError):
            Spec(["true"], **fields).program()


def test_fields_that_never_last_are_these() -> None:
    fields = {kind.field for kind in KINDS.values() if kind.field}
    assert fields - LASTING.keys() == {"cgroup", "ctty", "foreground", "join", "network"}


@pytest.mark.parametrize("kind", Mount.__subclasses__(), ids=str)
def test_a_mount_is_all_that_its_kind_has(kind: type[Mount]) -> None:
    assert "__dict__" not in dir(kind)


def test_a_value_that_is_changed_is_compiled_anew() -> None:
    changing = mounts.tmpfs("/tmp", size=1 << 20)
    listed: list[Mount] = [changing]
    declared = {**OWN, "mounts": listed, "rlimits": {"core": 0}}
    before = told(declared)
    changing.options["size"] = 1 << 21
    assert "2097152" in told(declared) != before
    changing.flags = 0
    changing.parts = [b"var"]
    assert '"var"' in told(declared)
    listed.append(mounts.proc())
    assert '"proc"' in told(declared)
    declared["rlimits"]["core"] = 1
    fresh = Program(Spec(["true"], **declared).steps())
    assert laid_out(Spec(["true"], **declared).program()) == laid_out(fresh)


def told(declared: Mapping[str, Any]) -> str:
    """What a declaration compiles to, as text."""
    return "\n".join(str(row["text"]) for row in Spec(["true"], **declared).program().explain())


def test_what_changes_while_it_is_compiled_is_not_remembered() -> None:
    changing = mounts.tmpfs("/tmp", size=1 << 20)

    class Environment(dict[str, str]):
        """One that is read while the declaration is compiled."""

        def items(self) -> Any:
            """Its variables."""
            changing.options["size"] = 1 << 22
            return super().items()

    first = Spec(["true"], **OWN, mounts=[changing], env=Environment(A="b")).program()
    changing.options["size"] = 1 << 20
    assert Spec(["true"], **OWN, mounts=[changing]).program().setup is not first.setup


def test_a_container_runs_again_and_again(root: Path) -> None:  # noqa: F811 - the fixture
    if reason := missing("user"):
        pytest.skip(reason)
    declared = {
        **OWN, "rootfs": root, "mounts": [mounts.proc(), mounts.tmpfs("/tmp")], "hostname": "again",
        "env": {"PATH": "/bin"}, "masked_paths": ["/proc/kcore", "/etc"], "no_new_privs": True,
    }  # fmt: skip
    script = "hostname; ls /etc | wc -l; id -u; echo $$; touch /tmp/x && ls /tmp"
    for init, pid in ((False, "1"), (True, "2")):
        for _ in range(3):
            argv = ["/bin/busybox", "sh", "-c", script]
            assert output(argv, **declared, init=init).split() == ["again", "0", "0", pid, "x"]

        def once(number: int, init: bool = init) -> int | None:  # noqa: FBT001 - of this round
            argv = ["sh", "-c", "exit $0", str(number)]
            return spawn(argv, **declared, init=init).wait().status

        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(once, range(50))) == list(range(50))


def test_a_failure_names_the_step_and_the_program_that_were_asked_for(root: Path) -> None:  # noqa: F811 - the fixture
    if reason := missing("user"):
        pytest.skip(reason)
    for init in (False, True):
        for name in ("/bin/true", "/bin/one", "/bin/other"):
            if name == "/bin/true":
                assert spawn([name], **OWN, rootfs=root, init=init).wait().status == 0
                continue
            with pytest.raises(FileNotFoundError, match=name):
                spawn([name], **OWN, rootfs=root, init=init)


def test_arguments_that_cannot_be_are_refused_again() -> None:
    for init in (False, True):
        spawn(["true"], **OWN, init=init).wait()
        for argv in ("ls", [], ["l\0s"], [""], [3]):
            with pytest.raises(DeclarationError):
                spawn(argv, **OWN, init=init)  # type: ignore[arg-type]
