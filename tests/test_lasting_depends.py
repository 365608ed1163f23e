"""What declarations look at when they are compiled: a new program is made when it changes."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest
from recompiled import OWN, fresh, in_a_child, over, refused
from step_cases import install, missing, refusing

from clonekit import Landlock, mounts

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="it takes root")


def test_the_source_of_a_bind_becomes_a_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    fields = {**OWN, "mounts": [mounts.bind(source, "/mnt")]}
    refused("No such file", **fields)
    source.mkdir()
    first = fresh(**fields)
    source.rmdir()
    refused("No such file", **fields)
    source.touch()
    assert fresh(**fields).setup.records != first.setup.records
    source.unlink()
    source.mkdir()
    assert fresh(**fields).setup.records == first.setup.records


def test_the_source_of_a_bind_becomes_the_root(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.symlink_to("/usr")
    fields = {**OWN, "mounts": [mounts.bind(source, "/mnt")]}
    first = fresh(**fields)
    source.unlink()
    source.symlink_to("/")
    assert len(fresh(**fields)) == len(first) + 2


def test_an_optional_source_comes_and_goes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    fields = {**OWN, "mounts": [mounts.bind(source, "/mnt", optional=True)]}
    without = len(fresh(**fields))
    source.touch()
    assert len(fresh(**fields)) > without
    source.unlink()
    source.symlink_to("absent")
    assert len(fresh(**fields)) == without


def test_a_root_becomes_a_file(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for value in (root, mounts.bind(root, "/")):
        fresh(**OWN, rootfs=value)
    root.rmdir()
    root.touch()
    for value in (root, mounts.bind(root, "/")):
        refused("is no directory", **OWN, rootfs=value)


def test_a_root_that_is_not_absolute_is_another_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = set()
    for name in ("one", "other"):
        (tmp_path / name / "root").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / name)
        program = fresh(**OWN, rootfs="root")
        texts.add(str(program.explain()))
        assert f"{name}/root" in str(program.explain())
    assert len(texts) == 2


def test_a_device_becomes_something_else(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.symlink_to("/dev/null")
    fields = {**OWN, "mounts": [mounts.dev(devices=[device])]}
    fresh(**fields)
    device.unlink()
    device.touch()
    refused("is no device", **fields)
    device.unlink()
    refused("No such file", **fields)


@AS_ROOT
def test_what_stands_at_the_null_device_changes() -> None:
    shown = {**OWN, "mounts": [mounts.dev()]}
    masked = {**OWN, "masked_paths": ["/etc/passwd"]}
    fresh(**shown)
    fresh(**masked)

    def attempt() -> None:
        over("/dev/zero", "/dev/null")
        refused("device 1:5 here", **shown)
        refused("not the null device", **masked)

    in_a_child(attempt)
    fresh(**shown)
    fresh(**masked)


def test_a_layer_becomes_a_file(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.mkdir()
    for more in ({}, {"in_memory": True}):
        fresh(**OWN, mounts=[mounts.overlay("/mnt", [layer], **more)])
    layer.rmdir()
    layer.touch()
    for more in ({}, {"in_memory": True}):
        refused("is no directory", **OWN, mounts=[mounts.overlay("/mnt", [layer], **more)])


def test_a_masked_path_of_proc_comes_and_goes() -> None:
    with subprocess.Popen(["sleep", "100"]) as process:
        fields = {**OWN, "masked_paths": [f"/proc/{process.pid}", f"/proc/{process.pid}/maps"]}
        there = fresh(**fields)
        process.kill()
        process.wait()
        gone = fresh(**fields)
    assert len(gone) < len(there)


def test_the_kernel_has_no_landlock_any_more() -> None:
    if reason := missing("landlock"):
        pytest.skip(reason)
    rules = {"no_new_privs": True, "landlock": Landlock(read=["/"])}
    best = {"no_new_privs": True, "landlock": Landlock(read=["/"], best_effort=True)}
    fresh(**rules)
    enforced = len(fresh(**best))

    def attempt() -> None:
        install(refusing({"landlock_create_ruleset": errno.EOPNOTSUPP}))
        refused("needs Linux 5.13", **rules)
        assert len(fresh(**best)) < enforced

    in_a_child(attempt)
    assert len(fresh(**best)) == enforced
