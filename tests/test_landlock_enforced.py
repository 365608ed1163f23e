"""Landlock rules as values and as text, and what is said of what they enforce."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from parent_snapshot import unchanged
from ruling import ABI, READ, needs_landlock, needs_scopes, rooms, shell

from clonekit import DeclarationError, Landlock, Spec, spawn
from clonekit.landlock import parse_landlock
from clonekit.linux import FsAccess, NetAccess, Scope

__all__ = ["rooms"]  # a fixture

pytestmark = needs_landlock


# ---- what is enforced ------------------------------------------------------------------------


def test_what_is_enforced_is_told() -> None:
    rules = Landlock(read=["/"])
    assert rules.enforced() == (ABI, READ | FsAccess.REFER, NetAccess(0), Scope(0), ())


@needs_scopes
@pytest.mark.parametrize(
    ("abi", "missing"),
    [
        (1, ["REFER", "TRUNCATE", "BIND_TCP", "IOCTL_DEV", "SIGNAL"]),
        (2, ["TRUNCATE", "BIND_TCP", "IOCTL_DEV", "SIGNAL"]),
        (3, ["BIND_TCP", "IOCTL_DEV", "SIGNAL"]),
        (4, ["IOCTL_DEV", "SIGNAL"]),
        (5, ["SIGNAL"]),
        (6, []),
    ],
)
def test_best_effort_leaves_out_what_an_older_kernel_lacks_and_says_it(
    abi: int, missing: list[str], rooms: tuple[Path, Path]
) -> None:
    rules = Landlock(
        read=["/"], write=["/dev/null"], handled=FsAccess.IOCTL_DEV, tcp_bind=[], scopes="signal",
        best_effort=True, abi=abi,
    )  # fmt: skip
    enforced = rules.enforced()
    assert enforced.abi == abi
    assert [line.partition(" ")[0] for line in enforced.missing] == missing
    assert bool(enforced.net) == (abi >= 4)
    assert bool(enforced.scope) == (abi >= 6)
    truncates = 'exec "$2" -c "import os, sys; os.truncate(sys.argv[1], 0)" "$1/file" 2>/dev/null'
    told = shell(f"({truncates}) && echo yes || echo no", rooms[0], sys.executable, landlock=rules)
    assert told.split() == ["yes" if abi < 3 else "no"]
    signals = "kill -0 $PPID 2>/dev/null && echo yes || echo no"
    assert shell(signals, landlock=rules).split() == ["yes" if abi < 6 else "no"]


def test_what_is_lacking_is_refused_before_anything_is_made_naming_the_abi() -> None:
    rules = Landlock(read=["/"], tcp_bind=[], abi=3)
    told = (
        rf"BIND_TCP needs Linux 6.7 \(ABI 4\); ABI {min(ABI, 3)} is what there is here; best_effort"
    )
    with unchanged(), pytest.raises(DeclarationError, match=told):
        spawn(["true"], landlock=rules, no_new_privs=True)
    with pytest.raises(DeclarationError, match="BIND_TCP needs Linux"):
        rules.enforced()


def test_without_any_landlock_best_effort_restricts_nothing_and_says_it() -> None:
    rules = Landlock(read=["/usr"], best_effort=True, abi=0)
    assert not any(rules.enforced()[1:4])
    assert "needs Linux 5.13" in rules.enforced().missing[0]
    assert "Linux" in shell("cat /proc/version", landlock=rules)
    entries = Spec(["true"], landlock=rules).program().explain()
    assert not {"rules", "landlock"} & {entry["phase"] for entry in entries}
    with pytest.raises(DeclarationError, match=r"needs Linux 5\.13"):
        spawn(["true"], landlock=Landlock(read=["/usr"], abi=0))


# ---- as text ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("ro=/usr", Landlock(read=["/usr"], write=[])),
        ("rw=/tmp,ro=/usr,x=/usr/bin", Landlock(
            read=["/tmp", "/usr"], write=["/tmp"], execute=["/usr/bin"])),
        ("tcp-connect=443,tcp-bind=", Landlock(tcp_connect=[443], tcp_bind=[])),
        ("scope=signal,best-effort", Landlock(scopes="signal", best_effort=True)),
        (r"ro=/a\,b", Landlock(read=["/a,b"], write=[])),
    ],
)  # fmt: skip
def test_rules_are_written_as_text(text: str, rules: Landlock) -> None:
    assert parse_landlock(text) == rules
    assert hash(parse_landlock(text)) == hash(rules)


@pytest.mark.parametrize("text", ["", "/usr", "wo=/usr", "tcp-bind=x", "scope=x", "tcp-bind=70000"])
def test_text_that_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no rule|literal|no scope|no port"):
        parse_landlock(text)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({}, "restricts nothing"),
        ({"read": "/usr"}, "give a list of paths"),
        ({"read": [""]}, "empty path"),
        ({"read": ["a\0b"]}, "NUL"),
        ({"read": [-1]}, "not a descriptor"),
        ({"tcp_bind": [1 << 16]}, "no port"),
        ({"scopes": "signals"}, "'signal'"),
    ],
    ids=str,
)
def test_what_cannot_be_a_rule_is_refused(words: dict[str, object], told: str) -> None:
    with pytest.raises(DeclarationError, match=told):
        Landlock(**words)  # type: ignore[arg-type]


def test_equal_rules_are_equal_and_read_well() -> None:
    one, other = Landlock(read=["/usr"]), Landlock(fs={"/usr": READ})
    assert one == other
    assert {one, other} == {one}
    assert one != Landlock(read=["/usr"], best_effort=True)
    assert repr(one) in {
        f"Landlock('/usr': {name})" for name in ("READ_DIR|READ_FILE", "READ_FILE|READ_DIR")
    }
