"""Profiles of containers: Docker's as published, and the constructs of the OCI runtime spec."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filtered import errno_of, outcomes, run

from clonekit import DeclarationError, Filter
from clonekit.linux.abi import NUMBERS, lib
from clonekit.linux.bpf import answers
from clonekit.linux.seccomp import AUDIT_ARCH
from clonekit.notify import Listener

DOCKER = Path(__file__).parent / "data/docker-20.10.json"
ALLOWED = {lib.SECCOMP_RET_ALLOW}
REFUSED = {lib.SECCOMP_RET_ERRNO | errno.EPERM}
EVERY_NAMESPACE = 0x7E020000


def answer(made: Filter, name: str, *arguments: int) -> set[int]:
    """What the filter says to a call of this machine."""
    return answers(made.program(), AUDIT_ARCH, NUMBERS[name], arguments)


def profile(*rules: dict[str, Any], default: str = "SCMP_ACT_ALLOW", **more: Any) -> dict[str, Any]:
    return {"defaultAction": default, "syscalls": list(rules), **more}


def refusing(*names: str, **more: Any) -> dict[str, Any]:
    return {"names": list(names), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EDOM, **more}


def test_programs_run_under_docker_s_profile_and_what_it_forbids_fails() -> None:
    made = Filter.from_oci(DOCKER)
    calls = [
        ("getuid",), ("mount", 0, 0, 0, 0, 0), ("reboot", 0), ("unshare", EVERY_NAMESPACE),
        ("keyctl", 0), ("clone3", 0, 0), ("personality", 0xFFFFFFFF), ("personality", 0x0040000),
    ]  # fmt: skip
    forbidden = ["EPERM"] * 4 + ["ENOSYS", 0, "EPERM"]
    assert outcomes(made, *calls) == [os.getuid(), *forbidden]
    assert made.skipped == ()


def test_threads_and_processes_can_be_made_under_docker_s_profile() -> None:
    code = """
        thread = threading.Thread(target=print, args=["one"], kwargs={"flush": True})
        thread.start()
        thread.join()
        os.system("echo two")
    """
    text, ended = run(Filter.from_oci(DOCKER), textwrap.dedent(code))
    assert (text, ended.status) == ("one\ntwo\n", 0)


def test_docker_s_profile_knows_the_flags_of_clone() -> None:
    made = Filter.from_oci(DOCKER)
    assert answer(made, "clone", 17) == ALLOWED
    for bit in range(17, 31):
        expected = REFUSED if EVERY_NAMESPACE >> bit & 1 else ALLOWED
        assert answer(made, "clone", 1 << bit | 17) == expected


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ("CAP_SYS_ADMIN", "mount"), ("CAP_SYS_ADMIN", "clone3"), ("SYS_TIME", "settimeofday"),
        ("cap_sys_chroot", "chroot"), ("CAP_SYS_PTRACE", "kcmp"), ("CAP_SYSLOG", "syslog"),
    ],
)  # fmt: skip
def test_docker_s_profile_allows_what_a_capability_is_for(capability: str, name: str) -> None:
    assert answer(Filter.from_oci(DOCKER), name) != ALLOWED
    assert answer(Filter.from_oci(DOCKER, capabilities=[capability]), name) == ALLOWED


@pytest.mark.parametrize(("kernel", "expected"), [("4.7.9", REFUSED), ("4.8-rc1", ALLOWED)])
def test_docker_s_profile_depends_on_the_kernel(kernel: str, expected: set[int]) -> None:
    assert answer(Filter.from_oci(DOCKER, kernel=kernel), "ptrace") == expected


@pytest.mark.skipif("arch_prctl" not in NUMBERS, reason="x86_64's call")
def test_docker_s_profile_depends_on_the_machine() -> None:
    for machine, expected in (("x86_64", ALLOWED), ("aarch64", REFUSED)):
        assert answer(Filter.from_oci(DOCKER, machine=machine), "arch_prctl") == expected


def test_an_errno_is_the_rule_s_or_eperm() -> None:
    made = Filter.from_oci(
        profile(refusing("umask"), {"names": ["getppid"], "action": "SCMP_ACT_ERRNO"})
    )
    assert outcomes(made, ("umask", 0), ("getppid",)) == ["EDOM", "EPERM"]


def test_the_default_has_an_errno_too() -> None:
    allowed = {"names": ["read"], "action": "SCMP_ACT_ALLOW"}
    for more, name in (({}, "EPERM"), ({"defaultErrnoRet": errno.EDOM}, "EDOM")):
        made = Filter.from_oci(profile(allowed, default="SCMP_ACT_ERRNO", **more))
        assert errno_of(answer(made, "umask")) == name
        assert answer(made, "read") == ALLOWED


def test_one_argument_that_is_named_twice_means_either() -> None:
    args = [
        {"index": 0, "value": 5, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 9, "op": "SCMP_CMP_GT"}
    ]  # fmt: skip
    made = Filter.from_oci(profile(refusing("close", args=args)))
    told = [answer(made, "close", number) == ALLOWED for number in (4, 5, 9, 10)]
    assert told == [True, False, True, False]


def test_several_arguments_must_all_hold() -> None:
    args = [
        {"index": 0, "value": 0xF0, "valueTwo": 0x50, "op": "SCMP_CMP_MASKED_EQ"},
        {"index": 1, "value": 9, "op": "SCMP_CMP_NE"},
    ]
    made = Filter.from_oci(profile(refusing("dup3", args=args)))
    told = [answer(made, "dup3", *given) == ALLOWED for given in ((0x52, 8), (0x52, 9), (0x62, 8))]
    assert told == [False, True, True]


def test_names_that_are_not_known_have_no_rule_and_are_told() -> None:
    made = Filter.from_oci(profile(refusing("umask", "from_the_future"), refusing("another_one")))
    assert made.skipped == ("from_the_future", "another_one")
    assert outcomes(made, ("umask", 0)) == ["EDOM"]


def test_a_rule_of_the_old_format_has_one_name() -> None:
    rule = {"name": "umask", "action": "SCMP_ACT_ERRNO", "args": None}
    assert answer(Filter.from_oci(profile(rule)), "umask") == REFUSED


@pytest.mark.skipif("arch_prctl" not in NUMBERS, reason="x86_64's architectures")
def test_architectures_are_listed_or_mapped() -> None:
    i386, getppid, killed = 0x40000003, 64, {lib.SECCOMP_RET_KILL_THREAD}
    mapped = [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}]
    for more, expected in (
        ({}, killed),
        ({"architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]}, None),
        ({"archMap": mapped}, None),
    ):
        made = Filter.from_oci(profile(refusing("getppid"), **more))
        told = answers(made.program(), i386, getppid)
        assert told == (expected or {lib.SECCOMP_RET_ERRNO | errno.EDOM})


def test_flags_are_taken_along() -> None:
    names = ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"]
    made = Filter.from_oci(profile(refusing("umask"), flags=names))
    assert made.flags == lib.SECCOMP_FILTER_FLAG_LOG
    assert outcomes(made, ("umask", 0)) == ["EDOM"]


def test_calls_for_a_supervisor_take_a_listener() -> None:
    rule = {"names": ["umask"], "action": "SCMP_ACT_NOTIFY"}
    with pytest.raises(DeclarationError, match="asks a supervisor"):
        run(Filter.from_oci(profile(rule)), "")
    listener = Listener()
    assert Filter.from_oci(profile(rule), listener=listener).listener is listener
    listener.close()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "no seccomp profile.*defaultAction"),
        ({"defaultAction": "ALLOW"}, "SCMP_ACT_"),
        ({"defaultAction": "SCMP_ACT_SHRUG"}, "no action"),
        (profile(refusing("umask", action="SCMP_ACT_ALLOW"), default="SCMP_ACT_TRAP"), "has none"),
        (profile(3), "no seccomp profile"),  # type: ignore[arg-type]
        (profile(refusing("umask", args=[{"index": 0, "op": "LIKE"}])), "no comparison"),
        (profile(refusing("umask", args=[{"index": 9, "op": "SCMP_CMP_EQ"}])), "0 to 5"),
        (profile(architectures=["SCMP_ARCH_VAX"]), "no architecture"),
        (profile(architectures=["SCMP_ARCH_X86"], archMap=[{}]), "leave one"),
        (profile(flags=["SECCOMP_FILTER_FLAG_SHINY"]), "no flag"),
        (profile(refusing("umask", includes={"minKernel": "soon"})), "no version"),
    ],
)
def test_what_is_no_profile_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(DeclarationError, match=told):
        Filter.from_oci(given).program()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Filter.from_oci(DOCKER, capabilities=["CAP_FLY"]), "no capability"),
        (lambda: Filter.from_oci(DOCKER, capabilities="CAP_SYS_ADMIN"), "give a list"),
        (lambda: Filter.from_oci(DOCKER, machine="pdp11"), "known are"),
        (lambda: Filter.from_oci(DOCKER, kernel="new"), "no version"),
    ],
)
def test_a_place_that_cannot_be_is_refused(make: Callable[[], object], told: str) -> None:
    with pytest.raises(DeclarationError, match=told):
        make()


def test_a_file_that_holds_no_profile_is_refused(tmp_path: Path) -> None:
    for text in ("{", "[]"):
        (tmp_path / "profile").write_text(text)
        with pytest.raises(DeclarationError, match="is no profile"):
            Filter.from_oci(tmp_path / "profile")
    with pytest.raises(FileNotFoundError):
        Filter.from_oci(tmp_path / "none")


def command(path: Path) -> tuple[str, int]:
    """What `umask` says under the filter of a file, on the command line."""
    words = ["run", "--no-new-privs", "--seccomp", str(path), "--", sys.executable, "-c"]
    code = "import ctypes; c = ctypes.CDLL(None, use_errno=True); print(c.umask(0))"
    done = subprocess.run(
        [sys.executable, "-m", "clonekit", *words, code], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.stdout + done.stderr, done.returncode


def test_the_command_line_takes_a_profile_or_instructions(tmp_path: Path) -> None:
    file = tmp_path / "filter"
    file.write_text("\n " + json.dumps(profile(refusing("umask"))))
    assert command(file) == (f"-{errno.EDOM}\n", 0)
    file.write_bytes(Filter("ALLOW").errno("umask").program())
    assert command(file) == (f"-{errno.EPERM}\n", 0)
    file.write_text("{")
    text, status = command(file)
    assert (text.startswith("clonekit: --seccomp: "), status) == (True, 125)
