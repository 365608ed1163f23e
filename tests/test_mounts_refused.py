"""What cannot be is refused before anything is made, with what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clonekit import DeclarationError, Slot, Spec
from clonekit.mounts import (
    attach,
    bind,
    dev,
    devpts,
    file,
    file_system,
    overlay,
    proc,
    tmpfs,
)

HERE = Path(__file__).parent


def declared(**fields: object) -> None:
    """Compile a declaration with a mount namespace."""
    Spec(["true"], **{"namespaces": ["mnt"], **fields}).program()


VALUES: list[tuple[Callable[[], object], str]] = [
    (lambda: tmpfs("tmp"), "write '/tmp'"),
    (lambda: tmpfs(""), "no place in the root"),
    (lambda: tmpfs("/a/../b"), "write it without"),
    (lambda: tmpfs("/a\0b"), "NUL"),
    (lambda: tmpfs("/tmp", size="64m"), "give a whole number from 1 up"),  # type: ignore[arg-type]
    (lambda: tmpfs("/tmp", size=True), "give a whole number"),
    (lambda: tmpfs("/tmp", size=0), "give a whole number from 1 up"),
    (lambda: tmpfs("/tmp", mode="700"), "mode is '700'; give a whole number"),  # type: ignore[arg-type]
    (lambda: tmpfs("/tmp", nosuid=1), "nosuid is 1; write True or False"),  # type: ignore[arg-type]
    (lambda: proc(hidepid="2"), "hidepid is '2'; write 'off'"),
    (lambda: proc(subset="all"), "write 'pid'"),
    (lambda: devpts(gid="tty"), "gid is 'tty'; give a whole number"),  # type: ignore[arg-type]
    (lambda: bind("", "/mnt"), "give a path"),
    (lambda: bind(3, "/mnt"), "give a path"),  # type: ignore[arg-type]
    (lambda: bind("/a\0b", "/mnt"), "NUL"),
    (lambda: bind("/etc", "/mnt", id_map="fd"), "not a descriptor"),
    (lambda: bind("/etc", "/mnt", optional="yes"), "write True or False"),  # type: ignore[arg-type]
    (lambda: attach("/etc", "/mnt"), "not a descriptor"),
    (lambda: overlay("/", []), "give one or more"),
    (lambda: overlay("/", "/etc", upper="/tmp"), "give both or neither"),
    (lambda: overlay("/", "/etc", upper="/a", work="/b", in_memory=True), "give one"),
    (lambda: file("/etc/x", "text"), "give bytes"),
    (lambda: file("/etc/x", None), "not a descriptor"),
    (lambda: file("/etc/x", b"", mode=-1), "give a whole number from 0 up"),
    (lambda: file("/", b""), "another target"),
    (lambda: dev("/"), "write '/dev'"),
]


@pytest.mark.parametrize(("make", "told"), VALUES, ids=[told for _, told in VALUES])
def test_a_value_that_cannot_be_is_refused(make: Callable[[], object], told: str) -> None:
    with pytest.raises(DeclarationError, match="(?s)" + told.replace("(", r"\(")):
        make()


DECLARATIONS: list[tuple[dict[str, object], str]] = [
    ({"mounts": [tmpfs("/tmp")], "namespaces": ["pid"]}, 'add "mnt" to namespaces'),
    ({"rootfs": "/srv", "namespaces": "user"}, 'add "mnt" to namespaces'),
    ({"masked_paths": ["/x"], "namespaces": None}, 'add "mnt" to namespaces'),
    ({"propagation": "private", "namespaces": None}, 'add "mnt" to namespaces'),
    ({"propagation": "shared"}, "write 'private' or 'slave'"),
    ({"mounts": tmpfs("/tmp")}, "give a list"),
    ({"mounts": ["/tmp"]}, "no mount; make one"),
    ({"mounts": [tmpfs("/")]}, "give it as rootfs"),
    ({"rootfs": tmpfs("/tmp")}, 'mounted on "/"'),
    ({"rootfs": 5}, "give a path, or a mount"),
    ({"rootfs": "/absent/root"}, "No such file or directory"),
    ({"rootfs": HERE / "mounting.py"}, "is no directory"),
    ({"mounts": [bind("/absent", "/mnt")]}, "optional=True"),
    ({"mounts": [overlay("/mnt", ["/etc", "/absent"])]}, "give directories that exist"),
    ({"mounts": [overlay("/mnt", [HERE / "mounting.py"])]}, "is no directory"),
    ({"mounts": [dev(devices=["/dev/absent"])]}, "No such file"),
    ({"mounts": [dev(devices=["/etc/passwd"])]}, "is no device"),
    ({"mounts": [file_system("tmpfs", "/mnt", {"size": 1.5})]}, "give a text, a number"),
    ({"mounts": [file_system("tmpfs", "/mnt", {"size": "1" * 256})]}, "the kernel takes 255"),
    ({"mounts": [file_system("tmp\0fs", "/mnt")]}, "NUL"),
    ({"masked_paths": ["etc"]}, "write '/etc'"),
    ({"masked_paths": ["/"]}, "name something in it"),
    ({"readonly_paths": ["/"]}, "name something in it"),
    ({"readonly_paths": 5}, "readonly_paths=5"),
]


@pytest.mark.parametrize(("fields", "told"), DECLARATIONS, ids=[told for _, told in DECLARATIONS])
def test_a_declaration_that_cannot_be_is_refused(fields: dict[str, object], told: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        declared(**fields)
    assert told in str(caught.value)


@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b"])
def test_a_layers_name_is_refused_where_the_kernel_would_take_it_apart(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    spec = {"mounts": [overlay("/mnt", tmp_path / name)]}
    declared(**spec)
    monkeypatch.setattr("clonekit.mounts.layers.kernel_has", lambda *_: False)
    with pytest.raises(DeclarationError, match=r"needs Linux 6\.13"):
        declared(**spec)


def test_another_mount_namespace_may_be_joined_and_no_other() -> None:
    with open("/proc/self/ns/mnt") as mounts, open("/proc/self/ns/net") as net:
        declared(namespaces=None, join=[mounts.fileno()], mounts=[tmpfs("/tmp")])
        declared(namespaces=None, join=[(0, ["mnt"])], mounts=[tmpfs("/tmp")])
        declared(namespaces=None, join=[Slot("namespace")], mounts=[tmpfs("/tmp")])
        for entry in (net.fileno(), (0, ["net"]), (0, "net")):
            with pytest.raises(DeclarationError, match='add "mnt"'):
                declared(namespaces=None, join=[entry], mounts=[tmpfs("/tmp")])


def test_oci_calls_the_namespace_otherwise() -> None:
    declared(namespaces=["mount"], mounts=[tmpfs("/tmp")])
