"""Filters as values: what their rules mean to the kernel."""

from __future__ import annotations

import errno
import operator
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filtered import outcomes, run

from clonekit import Arg, DeclarationError, Filter, Spec, spawn
from clonekit.linux import SealedProgram, libseccomp
from clonekit.linux.abi import NUMBERS, lib
from clonekit.linux.bpf import answers
from clonekit.linux.seccomp import AUDIT_ARCH
from clonekit.notify import Listener

HIGH = 1 << 32
NOBODY = 5_000_000  # more than a process can have as its number
OPERATORS: dict[str, Callable[[int, int], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le,
    ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def test_a_call_fails_with_the_errno_that_was_asked_for() -> None:
    made = Filter("ALLOW").errno("umask").errno("getppid", errno=errno.EDOM)
    assert outcomes(made, ("umask", 0), ("getppid",)) == ["EPERM", "EDOM"]


def test_a_call_that_fails_with_nothing_is_not_made() -> None:
    made = Filter("ALLOW").errno("umask", errno=0)
    assert outcomes(made, ("umask", 0o77), ("umask", 0o22)) == [0, 0]


def test_what_no_rule_names_has_the_default_answer() -> None:
    allowed = Filter("ERRNO", errno.EDOM).allow(*NUMBERS.keys() - {"umask"})
    assert outcomes(allowed, ("umask", 0), ("getuid",)) == ["EDOM", os.getuid()]


@pytest.mark.parametrize("sign", OPERATORS)
@pytest.mark.parametrize("limit", [NOBODY, HIGH + NOBODY])
def test_an_argument_is_compared_in_all_its_bits(sign: str, limit: int) -> None:
    made = Filter("ALLOW").errno("getpgid", Arg(0, sign, limit), errno=errno.EDOM)
    values = [limit + change for change in (-HIGH, -1, 0, 1, HIGH) if limit + change > 0]
    given = outcomes(made, *(("getpgid", value) for value in values))
    assert [told == "EDOM" for told in given] == [OPERATORS[sign](each, limit) for each in values]


def test_some_bits_are_compared() -> None:
    made = Filter("ALLOW").errno("getpgid", Arg(0, "==", 0x300, mask=0xF00), errno=errno.EDOM)
    calls = [("getpgid", NOBODY << 12 | low) for low in (0x300, 0x3FF, 0x1300, 0x200, 0x700)]
    assert outcomes(made, *calls) == ["EDOM", "EDOM", "EDOM", "ESRCH", "ESRCH"]


def test_a_refusal_of_an_int_is_passed_by_unless_its_upper_bits_are_masked() -> None:
    family = socket.AF_NETLINK
    call = ("socket", family | HIGH, int(socket.SOCK_RAW), 0)
    plain = Filter("ALLOW").errno("socket", Arg(0, "==", family))
    masked = Filter("ALLOW").errno("socket", Arg(0, "==", family, mask=0xFFFFFFFF))
    assert outcomes(plain, call) != ["EPERM"]
    assert outcomes(masked, call) == ["EPERM"]


def test_all_comparisons_of_a_rule_must_hold_and_any_of_several_rules() -> None:
    both = Filter("ALLOW").errno("dup2", Arg(1, "==", 9_001), Arg(0, "==", 9_000))
    either = both.errno("dup2", Arg(0, "==", 9_005))
    if "dup2" not in NUMBERS:
        pytest.skip("this architecture has no dup2")
    calls = [("dup2", 9_000, 9_001), ("dup2", 9_000, 9_002), ("dup2", 9_005, 9_001)]
    assert outcomes(both, *calls) == ["EPERM", "EBADF", "EBADF"]
    assert outcomes(either, *calls) == ["EPERM", "EBADF", "EPERM"]


def test_kill_ends_the_process_with_sigsys() -> None:
    text, ended = run(
        Filter("ALLOW").kill("getppid"),
        "threading.Thread(target=os.getppid).start(); time.sleep(9); print('alive')",
    )
    assert (text, ended.signal) == ("", signal.SIGSYS)


def test_trap_sends_a_signal_that_can_be_handled() -> None:
    text, ended = run(
        Filter("ALLOW").trap("getppid"),
        "signal.signal(signal.SIGSYS, lambda *_: print('told')); os.getppid()",
    )
    assert (text, ended.status) == ("told\n", 0)


def test_log_lets_the_call_be_made() -> None:
    assert outcomes(Filter("ALLOW").log("getuid"), ("getuid",)) == [os.getuid()]


def test_the_calls_of_another_abi_kill_unless_the_rules_are_for_it_too(built: Path) -> None:
    program = [str(built / "foreign")]
    if subprocess.run(program, check=False).returncode == 3:
        pytest.skip("this kernel runs no calls of 32-bit programs")

    def ended(made: Filter) -> int | str:
        reader, writer = os.pipe()
        with open(writer, "wb") as end:
            process = spawn(program, fds={1: end}, no_new_privs=True, seccomp=made)
        with open(reader) as lines:
            text = lines.read()
        status = process.wait()
        return int(text) if text else signal.Signals(status.signal or 0).name

    assert ended(Filter("ALLOW")) == "SIGSYS"
    assert ended(Filter("ALLOW", foreign="ERRNO")) == errno.EPERM
    assert ended(Filter("ALLOW", architectures=["x86"])) == 0
    refused = Filter("ALLOW", architectures=["x86"]).errno("getppid", errno=errno.EDOM)
    assert ended(refused) == errno.EDOM


@pytest.mark.skipif("arch_prctl" not in NUMBERS, reason="x32 is x86_64's")
def test_the_numbers_of_x32_are_another_abi_s() -> None:
    number = NUMBERS["getuid"] | 0x40000000
    assert run(Filter("ALLOW"), f"call({number})")[1].signal == signal.SIGSYS
    made = Filter("ALLOW", architectures=["x32"]).errno("getuid", errno=errno.EDOM)
    assert outcomes(made, (number,)) == ["EDOM"]


def test_a_filter_is_a_value() -> None:
    first = Filter().allow("read")
    second = first.allow("write")
    assert first != second
    assert first == Filter().allow("read")
    assert second == Filter().allow("read", "write")
    assert len({first, second, Filter().allow("read")}) == 2
    assert first.program() != second.program()


def test_equal_filters_are_compiled_once() -> None:
    setups = [
        Spec(["true"], no_new_privs=True, seccomp=Filter("ALLOW").errno("acct")).program().setup
        for _ in range(2)
    ]
    assert setups[0] is setups[1]


def test_a_filter_can_be_read() -> None:
    text = Filter().allow("read", Arg(0, "==", 7)).errno("socket", errno=errno.EDOM).explain()
    assert '"read"' in text
    assert "== 7" in text
    assert f"ERRNO({errno.EDOM})" in text
    assert "KILL_PROCESS" in text


def test_the_answers_that_are_foreseen_are_the_kernel_s() -> None:
    made = (
        Filter("ALLOW").errno("getpgid", Arg(0, "<", NOBODY), errno=1)
        .errno("getpgid", Arg(0, ">", NOBODY), errno=errno.EDOM).errno("umask", errno=errno.EXDEV)
    )  # fmt: skip
    calls = [("getpgid", 1), ("getpgid", NOBODY), ("getpgid", HIGH), ("umask", 0), ("getuid",)]
    foreseen = [answers(made.program(), AUDIT_ARCH, NUMBERS[name], given) for name, *given in calls]
    refused = [lib.SECCOMP_RET_ERRNO | number for number in (1, errno.EDOM, errno.EXDEV)]
    allowed = lib.SECCOMP_RET_ALLOW
    assert foreseen == [{refused[0]}, {allowed}, {refused[1]}, {refused[2]}, {allowed}]
    assert outcomes(made, *calls) == ["EPERM", "ESRCH", "EDOM", "EXDEV", os.getuid()]
    assert answers(made.program(), AUDIT_ARCH, NUMBERS["getpgid"]) == {allowed, *refused[:2]}
    assert answers(b"\xff" * 8, AUDIT_ARCH, 0) == set()


@pytest.mark.parametrize(
    ("made", "fields", "names"),
    [
        (Filter().allow("read"), {}, "rt_sigprocmask and execve"),
        (Filter("ALLOW").errno("execve"), {}, "execve"),
        (Filter("ALLOW").kill("rt_sigprocmask"), {}, "rt_sigprocmask"),
        (Filter("ALLOW").trap("execve"), {"deadline": 9}, "execve"),
        (Filter("ALLOW").errno("execve").program(), {}, "execve"),
    ],
)
def test_a_filter_that_refuses_what_must_come_is_refused(
    made: Filter, fields: dict[str, int], names: str
) -> None:
    with pytest.raises(DeclarationError, match=f"refuses {names}, which must.*allow"):
        spawn(["true"], no_new_privs=True, seccomp=made, **fields)


@pytest.mark.parametrize("given", ["profile.json", ["mkdir"], {"defaultAction": "SCMP_ACT_ALLOW"}])
def test_what_is_no_filter_is_refused_with_what_makes_one(given: object) -> None:
    with pytest.raises(DeclarationError, match=r"give a clonekit.Filter"):
        spawn(["true"], no_new_privs=True, seccomp=given)


def test_the_exec_that_must_pass_is_the_one_that_is_made() -> None:
    with SealedProgram("/bin/true") as program:
        made = Filter("ALLOW").errno("execve")
        given = {"executable": program, "no_new_privs": True}
        assert spawn(["true"], seccomp=made, **given).wait().status == 0
        with pytest.raises(DeclarationError, match="refuses execveat"):
            spawn(["true"], seccomp=made.errno("execveat"), **given)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Filter().allow("raed"), "did you mean read"),
        (lambda: Filter().allow("xyzzyplugh"), "best_effort"),
        (lambda: Filter("SHRUG"), "no action; write one of"),
        (lambda: Filter().allow(), "name the calls"),
        (lambda: Filter().allow(Arg(0, "==", 1)), "name the calls"),
        (lambda: Filter().allow(3), "3 names no call"),
        (lambda: Filter().allow("read").kill("read"), "two answers"),
        (lambda: Filter().kill("read", Arg(0, "==", 1)).allow("read"), "two answers"),
        (lambda: Filter().allow("read", Arg(0, ">", 1), Arg(0, "<", 5)), "make two rules"),
        (lambda: Filter().errno("read", errno=5_000), "no errno"),
        (lambda: Filter(architectures=["vax"]), "no architecture"),
        (lambda: Filter(architectures="x86"), r"give a list"),
        (lambda: Arg(6, "==", 1), "arguments 0 to 5"),
        (lambda: Arg(0, "=~", 1), "no comparison"),
        (lambda: Arg(0, "==", 1 << 64), "64 bits"),
        (lambda: Arg(0, "<", 1, mask=3), "goes with '=='"),
        (lambda: Arg(0, "==", 4, mask=3), "never hold"),
        (lambda: Filter("ALLOW").notify("read", to=Listener()).told(Listener()), "one listener"),
    ],
)
def test_what_cannot_be_a_filter_is_refused(make: Callable[[], object], told: str) -> None:
    with pytest.raises(DeclarationError, match=told):
        make()


def test_an_unknown_call_is_left_out_where_best_effort_is_asked_for() -> None:
    made = Filter("ALLOW", best_effort=True).errno("raed", "umask")
    assert made.skipped == ("raed",)
    assert outcomes(made, ("umask", 0)) == ["EPERM"]


def test_a_call_that_only_the_kernel_knows_has_a_rule() -> None:
    name = next((name for name in NUMBERS if libseccomp.number_of(name) is None), None)
    if name is None:
        pytest.skip("libseccomp knows all of this kernel's calls")
    assert outcomes(Filter("ALLOW").errno(name, errno=errno.EDOM), (name,)) == ["EDOM"]


def test_a_filter_of_a_supervisor_names_it() -> None:
    with pytest.raises(DeclarationError, match=r"told\(clonekit.notify.Listener\(\)\)"):
        spawn(["true"], no_new_privs=True, seccomp=Filter("ALLOW").notify("acct"))


def test_a_missing_library_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libseccomp, "LIBRARY", "libseccomp.so.999")
    monkeypatch.setattr(libseccomp, "_loaded", [])
    with pytest.raises(DeclarationError, match=r"libseccomp.so.999.*Debian: libseccomp2"):
        Filter("ALLOW").errno("acct")


def test_the_library_is_loaded_only_for_a_filter() -> None:
    code = (
        "import sys, clonekit; clonekit.spawn(['true']).wait();"
        "print([name for name in sys.modules if 'libseccomp' in name or name == 'cffi'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"[]\n"
