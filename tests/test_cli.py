"""The command line, as a user meets it: real commands, real terminals."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any, Self

import pytest

from clonekit import Process, Spec, spawn
from clonekit.spec import FIELDS
from clonekit.tables import duration, wrapped

CLONEKIT = [sys.executable, "-m", "clonekit"]
PYTHON = sys.executable
PATIENCE = 30  # seconds for which a terminal may be silent
#: Fields whose value has no text: objects of the library.
WITHOUT_OPTION = {"landlock", "mounts", "suspended"}
WIDTHS = (80, 120)


def clonekit(*words: str, **details: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line, and take what it prints."""
    details.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(
        [*CLONEKIT, *words], capture_output=True, text=True, check=False, timeout=120, **details
    )


def explained(*options: str) -> list[dict[str, Any]]:
    """What `explain --json` says for these options."""
    done = clonekit("explain", "--json", *options, "--", "true")
    assert done.returncode == 0, done.stderr
    answer: list[dict[str, Any]] = json.loads(done.stdout)
    return answer


# ---- options ---------------------------------------------------------------------------------


def test_every_field_of_a_declaration_has_an_option() -> None:
    told = clonekit("run", "--help").stdout
    options = set(re.findall(r"^ +--([\w-]+)", told, re.MULTILINE))
    fields = {field.replace("_", "-") for field in FIELDS if field not in WITHOUT_OPTION}
    assert options == fields | {"executable", "argv0", "env", "clear-env", "check", "deadline"}


@pytest.mark.parametrize("command", ["run", "explain", "trace", "features"])
def test_help_fits_80_columns(command: str) -> None:
    done = clonekit(command, "--help", env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: clonekit {command} ")
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_whole_help_names_each_command() -> None:
    told = clonekit("--help").stdout
    assert told.startswith("usage: clonekit ")
    assert max(map(len, told.splitlines())) <= 80
    for command in ("run", "explain", "trace", "features"):
        assert f"clonekit {command}" in told


@pytest.mark.parametrize(
    ("options", "declaration"),
    [
        (["--timer-slack-ns", "5"], {"timer_slack_ns": 5}),
        (["--rlimits", "nofile=64:128", "--rlimits", "core=0"],
         {"rlimits": {"nofile": (64, 128), "core": 0}}),
        (["--fds", "1", "--fds", "7=1"], {"fds": {1: 1, 7: 1}}),
        (["--setsid"], {"setsid": True}),
        (["--pgid"], {"pgid": True}),
        (["--pgid", "0"], {"pgid": 0}),
        (["--umask", "077"], {"umask": 0o77}),
        (["--keyring"], {"keyring": True}),
        (["--keyring", "mine"], {"keyring": "mine"}),
        (["--groups", ""], {"groups": []}),
        (["--uid", "1:2:3"], {"uid": (1, 2, 3)}),
        (["--affinity", "0-1"], {"affinity": [0, 1]}),
        (["--sigmask", "INT,TERM"], {"sigmask": ["INT", "TERM"]}),
        (["--namespaces", "user,uts", "--uid-map", "0", "--hostname", "box"],
         {"namespaces": ["user", "uts"], "uid_map": 0, "hostname": "box"}),
        (["--capabilities", "bounding=chown", "--capabilities", "ambient="],
         {"capabilities": {"bounding": ["chown"], "ambient": []}}),
        (["--prctl", "SET_NAME,0", "--prctl", "GET_DUMPABLE"],
         {"prctl": [("SET_NAME", 0), ("GET_DUMPABLE",)]}),
        (["--time-offsets", "monotonic=1.5"], {"time_offsets": {"monotonic": 1.5}}),
        (["--write-files", "/proc/self/comm=a=b"], {"write_files": {"/proc/self/comm": b"a=b"}}),
        (["--env", "A=1", "--env", "B=x=y"], {"env": {"A": "1", "B": "x=y"}}),
        (["--executable", "/bin/sh"], {"executable": "/bin/sh"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_an_option_says_what_the_field_says(
    options: list[str], declaration: dict[str, Any]
) -> None:
    declaration = {"env": {}, **declaration}
    meant = Spec(["true"], **declaration).program().explain()
    told = explained("--clear-env", *options)
    # A step shows its arguments as they were given: on the command line, texts.
    assert [{**entry, "step": ""} for entry in told] == [
        {**entry, "step": ""} for entry in json.loads(json.dumps(meant))
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rlimits", "nofile", "--", "true"], "'nofile' is no limit; write NAME=SOFT[:HARD]"),
        (["--rlimits", "nofoo=1", "--", "true"], "--rlimits: 'nofoo' is no limit; use one of"),
        (["--umask", "9", "--", "true"], "--umask: '9' is no OCTAL"),
        (["--umask", "1777", "--", "true"], "--umask: umask 0o1777 is not between"),
        (["--fds", "x", "--", "true"], "--fds: 'x' is no TARGET[=SOURCE]"),
        (["--fds", "1", "--fds", "1=2", "--", "true"], "--fds: 1 is given twice"),
        (["--fds", "9=987", "--", "true"], "descriptor 987 is not open"),
        (["--env", "A", "--", "true"], "--env: 'A' is no variable; write NAME=VALUE"),
        (["--seccomp", "/nonexistent", "--", "true"], "--seccomp: /nonexistent: No such file"),
        (["--uid", "no such user", "--", "true"], "--uid: there is no user"),
        (["--cgroup", "/nonexistent", "--", "true"], "--cgroup: /nonexistent: No such file"),
        (["--bogus", "--", "true"], "--bogus is no option"),
        (["--timer", "1", "--", "true"], "--timer is no option"),
        (["true"], "write `--` before the program: clonekit run [options] -- true"),
        ([], "no program is given"),
        (["--"], "no program is given"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_line_and_status_125(words: list[str], message: str) -> None:
    done = clonekit("run", *words)
    assert done.returncode == 125
    assert done.stdout == ""
    assert done.stderr.startswith("clonekit: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_importing_the_command_line_does_not_import_rich() -> None:
    code = "import clonekit, clonekit.cli, sys; sys.exit('rich' in sys.modules)"
    assert subprocess.run([PYTHON, "-c", code], check=False).returncode == 0


# ---- run -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["no such program"], 127),
        (["/nonexistent/program"], 127),
        (["/etc/passwd"], 126),
        (["/etc"], 126),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
@pytest.mark.parametrize("command", ["run", "trace"])
def test_exit_status_is_what_a_shell_would_give(
    command: str, program: list[str], status: int
) -> None:
    assert clonekit(command, "--", *program).returncode == status


def test_a_program_that_cannot_begin_is_named() -> None:
    done = clonekit("run", "--", "no-such-program")
    assert done.stderr == "clonekit: no-such-program: No such file or directory (ENOENT)\n"


def test_a_step_that_fails_is_named_with_status_125() -> None:
    done = clonekit("run", "--cwd", "/nonexistent", "--", "true")
    assert done.returncode == 125
    assert "change_directory(/nonexistent): ENOENT" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_program_has_our_input_and_output() -> None:
    done = subprocess.run(
        [*CLONEKIT, "run", "--", "cat"], input=b"through\n", capture_output=True, check=True
    )
    assert done.stdout == b"through\n"
    assert done.stderr == b""


def test_env_adds_to_ours_and_clear_env_leaves_nothing_else() -> None:
    ours = {**os.environ, "OURS": "1"}
    added = clonekit(
        "run", "--env", "A=1", "--env", "A=2", "--", "env", env=ours
    ).stdout.splitlines()
    assert {"OURS=1", "A=2"} <= set(added)
    alone = clonekit("run", "--clear-env", "--env", "A=1", "--", "env", env=ours).stdout
    assert alone == "A=1\n"


def test_argv0_is_the_programs_name_for_itself() -> None:
    show = ["-c", "tr '\\0' '\\n' < /proc/$$/cmdline | head -n 1"]
    assert clonekit("run", "--argv0", "other", "--", "sh", *show).stdout == "other\n"
    named = ["--executable", "/bin/sh", "--argv0", "third", "--", "ignored", *show]
    assert clonekit("run", *named).stdout == "third\n"
    assert clonekit("run", "--argv0", "other", "--", "no-such-program").returncode == 127


def test_what_is_ignored_here_stays_ignored_for_the_program() -> None:
    done = spawned_to_pipe(
        [*CLONEKIT, "run", "--", "grep", "SigIgn", "/proc/self/status"], sigignore=["INT", "USR1"]
    )
    ignored = int(done.split()[1], 16)
    for number in (signal.SIGINT, signal.SIGUSR1):
        assert ignored >> number - 1 & 1
    assert not ignored >> signal.SIGQUIT - 1 & 1


def spawned_to_pipe(argv: list[str], **declaration: Any) -> str:
    """What a program of this declaration prints."""
    reader, writer = os.pipe()
    with os.fdopen(reader) as output, spawn(argv, fds={1: writer, 2: 2}, **declaration) as process:
        os.close(writer)
        text = output.read()
        assert process.wait().status == 0
    return text


@pytest.mark.parametrize("options", [[], ["--setsid"], ["--pgid"]], ids=["", "setsid", "pgid"])
@pytest.mark.parametrize("name", ["TERM", "HUP", "USR1"])
def test_a_signal_sent_to_us_reaches_the_program(options: list[str], name: str) -> None:
    number = signal.Signals["SIG" + name]
    code = (
        f"import signal; signal.signal({number:d}, lambda *_: exit(9));"
        "print('ready', flush=True); signal.pause()"
    )
    with subprocess.Popen(
        [*CLONEKIT, "run", *options, "--", PYTHON, "-c", code], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.wait(PATIENCE) == 9


@pytest.mark.parametrize("options", [["--setsid"], ["--pgid"]], ids=["setsid", "pgid"])
def test_an_interrupt_reaches_a_program_of_another_group(options: list[str]) -> None:
    with subprocess.Popen(
        [*CLONEKIT, "run", *options, "--", "sh", "-c", "echo ready; cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.stdin.write(b"cat has begun\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"cat has begun\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 128 + signal.SIGINT


# ---- a terminal ------------------------------------------------------------------------------


class Terminal:
    """A pseudoterminal, with a program that leads its session."""

    def __init__(self, argv: list[str], **env: str) -> None:
        self.master, slave = os.openpty()
        self.seen = b""
        try:
            self.process: Process = spawn(
                argv, fds=dict.fromkeys(range(3), slave), setsid=True, ctty=slave,
                env={**os.environ, "PS1": "", **env},
            )  # fmt: skip
        finally:
            os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.__exit__(None, None, None)
        os.close(self.master)  # hangs up: whoever is left in the session gets SIGHUP

    def type(self, text: bytes) -> None:
        """As if at the keyboard."""
        os.write(self.master, text)

    def until(self, text: bytes, times: int = 1) -> None:
        """Read until the terminal has shown this so many times, in all."""
        while self.seen.count(text) < times:
            ready, _, _ = select.select([self.master], [], [], PATIENCE)
            assert ready, f"no {text!r} x {times} in {self.seen!r}"
            try:
                self.seen += os.read(self.master, 4096)
            except OSError:  # every program has closed it
                pytest.fail(f"no {text!r} x {times} in {self.seen!r}")


#: A shell with job control: what it says of the job, then `fg`, then what it says again.
JOB = """set -m
{clonekit} run {options} -- sh -c 'echo ready; cat; echo "end of input"'
echo "first $?"
fg > /dev/null
echo "second $?"
"""
#: A shell without: it does not mind the terminal, and reads from it afterwards.
PLAIN = """{clonekit} {command} {options} -- sh -c 'echo ready; read line; echo "program $line"'
echo "status $?"
read line
echo "shell $line"
"""
OWN_GROUP = "--pgid 0 --foreground 0"


def script(text: str, **words: str) -> list[str]:
    """A shell for one of these."""
    command = " ".join(f"'{word}'" for word in CLONEKIT)
    return ["sh", "-c", text.format(clonekit=command, **words)]


@pytest.mark.parametrize(
    "options", ["", OWN_GROUP, "--pgid"], ids=["our-group", "own-group", "background"]
)
@pytest.mark.parametrize(
    ("key", "number"), [(b"\x03", signal.SIGINT), (b"\x1c", signal.SIGQUIT)], ids=["^C", "quit"]
)
def test_a_key_that_ends_the_program_is_its_status_and_not_ours(
    options: str, key: bytes, number: int
) -> None:
    text = """trap : INT QUIT
{clonekit} run {options} --rlimits core=0 -- "$PYTHON" -c "$WAITS"
echo "status $?"
"""
    waits = (
        "import signal; signal.signal(signal.SIGINT, 0); signal.signal(signal.SIGQUIT, 0);"
        "print('ready', flush=True); signal.pause()"
    )
    with Terminal(script(text, options=options), PYTHON=PYTHON, WAITS=waits) as terminal:
        terminal.until(b"ready")
        terminal.type(key)
        terminal.until(b"status %d" % (128 + number))
        assert b"Traceback" not in terminal.seen
        assert terminal.process.wait(PATIENCE).status == 0


@pytest.mark.parametrize("options", ["", OWN_GROUP], ids=["our-group", "own-group"])
def test_a_stop_is_the_jobs_and_fg_goes_on(options: str) -> None:
    with Terminal(script(JOB, options=options)) as terminal:
        terminal.until(b"ready")
        terminal.type(b"before\n")
        terminal.until(b"before", 2)  # the terminal's echo, and cat's
        terminal.type(b"\x1a")
        terminal.until(b"first %d" % (128 + signal.SIGTSTP))
        terminal.type(b"after\n")
        terminal.until(b"after", 2)
        terminal.type(b"\x04")
        terminal.until(b"end of input\r\n")
        terminal.until(b"second 0")
        assert terminal.process.wait(PATIENCE).status == 0


def test_an_interrupt_after_fg_ends_the_program() -> None:
    with Terminal(script(JOB, options=OWN_GROUP)) as terminal:
        terminal.type(b"before\n")
        terminal.until(b"before", 2)
        terminal.type(b"\x1a")
        terminal.until(b"first %d" % (128 + signal.SIGTSTP))
        terminal.type(b"after\n")
        terminal.until(b"after", 2)
        terminal.type(b"\x03")
        terminal.until(b"second %d" % (128 + signal.SIGINT))


@pytest.mark.parametrize("command", ["run", "trace"])
@pytest.mark.parametrize("options", ["", OWN_GROUP], ids=["our-group", "own-group"])
def test_the_terminal_is_ours_again_after_the_program(command: str, options: str) -> None:
    # TOSTOP: whoever writes in the background is stopped, as trace would be.
    text = "stty tostop; " + PLAIN
    with Terminal(script(text, command=command, options=options)) as terminal:
        terminal.until(b"ready")
        terminal.type(b"one\n")
        terminal.until(b"program one")
        terminal.until(b"status 0")
        terminal.type(b"two\n")
        terminal.until(b"shell two")
        assert terminal.process.wait(PATIENCE).status == 0


def test_a_program_that_ends_in_the_background_does_not_take_the_terminal(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    text = """set -m
{clonekit} run {options} -- sh -c 'echo ready; read line < "$FIFO"; echo "program $line"'
echo "stopped $?"
bg > /dev/null
echo go > "$FIFO"
wait
read line
echo "shell $line"
"""
    with Terminal(script(text, options=OWN_GROUP), FIFO=str(tmp_path / "fifo")) as terminal:
        terminal.until(b"ready")
        terminal.type(b"\x1a")
        terminal.until(b"stopped %d" % (128 + signal.SIGTSTP))
        terminal.until(b"program go")
        terminal.type(b"two\n")
        terminal.until(b"shell two")


def test_a_background_program_that_reads_the_terminal_stops_us_too() -> None:
    with Terminal(script(JOB, options="--pgid 0")) as terminal:
        terminal.until(b"ready")
        terminal.until(b"first %d" % (128 + signal.SIGTSTP))


# ---- explain ---------------------------------------------------------------------------------


def test_explain_json_is_exactly_what_the_program_explains() -> None:
    variables = {"A": "1"}
    done = clonekit(
        "explain", "--json", "--clear-env", "--env", "A=1", "--umask", "22", "--", "a", "b"
    )
    program = Spec(["a", "b"], env=variables, umask=0o22).program()
    assert json.loads(done.stdout) == json.loads(json.dumps(program.explain()))


def shown_in_terminal(width: int, *words: str) -> list[str]:
    """The lines that a terminal of this width gets, without colours."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("<4H", 50, width, 0, 0))
    text = b""
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    env["TERM"] = "xterm-256color"
    with spawn([*CLONEKIT, *words], fds=dict.fromkeys(range(3), slave), env=env) as process:
        os.close(slave)
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:
                break
            if not piece:
                break
            text += piece
        process.wait()
    os.close(master)
    return re.sub(r"\x1b\[[\d;]*m", "", text.decode()).splitlines()


def without_space(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("width", WIDTHS)
def test_explain_shows_every_call_and_clips_nothing(width: int) -> None:
    options = ["--clear-env", "--rlimits", "nofile=64",
               "--fds", "0", "--fds", "1=2", "--fds", "2=1",
               "--namespaces", "user,mnt,pid,net,ipc,uts,cgroup", "--sigignore", "INT"]  # fmt: skip
    lines = shown_in_terminal(width, "explain", *options, "--", "true")
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("clone3(") or lines[0].startswith("clone(")
    place = lines[next(n for n, line in enumerate(lines) if line.startswith("phase "))].index(
        "system call"
    )
    calls = without_space("".join(line[place:] for line in lines))
    at = 0
    for entry in explained(*options):
        at = calls.index(without_space(entry["text"]), at)


def test_a_long_list_of_arguments_is_shortened() -> None:
    program = ["true", *(f"argument-{n}" * 20 for n in range(200))]
    lines = shown_in_terminal(80, "explain", "--executable", "/bin/true", "--", *program)
    assert max(map(len, lines)) <= 80
    assert len(lines) < 60


def test_nothing_in_an_argument_moves_the_cursor() -> None:
    for command in ("explain", "trace"):
        done = clonekit(command, "--", "true", "\x1b[2J\r\x07", "\udcff")
        assert done.returncode == 0
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stdout + done.stderr)
        assert r"\x1b[2J\r\x07" in done.stdout + done.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    command = " ".join(f"'{word}'" for word in CLONEKIT)
    done = subprocess.run(
        ["sh", "-c", f"{command} explain --json -- true | head -n 1"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "[\n"
    assert done.stderr == ""


# ---- trace -----------------------------------------------------------------------------------


def test_trace_leaves_the_output_to_the_program() -> None:
    done = clonekit("trace", "--", "sh", "-c", "echo mine; exit 3")
    assert done.returncode == 3
    assert done.stdout == "mine\n"
    assert "execve" in done.stderr


def test_trace_json_has_each_call_that_ran_with_its_result() -> None:
    search = {**os.environ, "PATH": f"/nonexistent:{os.environ['PATH']}"}
    done = clonekit("trace", "--json", "--umask", "77", "--", "true", env=search)
    told = json.loads(done.stderr)
    planned = json.loads(
        clonekit("explain", "--json", "--umask", "77", "--", "true", env=search).stdout
    )
    assert [entry["text"] for entry in told] == [entry["text"] for entry in planned][: len(told)]
    times = [(entry["begin_ns"], entry["duration_ns"]) for entry in told]
    assert times == sorted(times)
    assert all(length >= 0 for _, length in times)
    absent, *_, begun = [entry for entry in told if entry["syscall"] == "execve"]
    assert absent["error"] == "ENOENT"
    assert "result_value" not in absent
    assert begun["result_value"] == 0
    (umask,) = [entry for entry in told if entry["syscall"] == "umask"]
    assert umask["result_value"] == current_umask()


def current_umask() -> int:
    (line,) = re.findall(r"Umask:\s*(\d+)", Path("/proc/self/status").read_text())
    return int(line, 8)


def test_trace_output_is_written_when_the_program_begins(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    done = clonekit("trace", "--json", "--output", str(file), "--", "cat", str(file))
    assert done.returncode == 0
    assert done.stderr == ""
    assert json.loads(done.stdout or file.read_text()) == json.loads(file.read_text())


@pytest.mark.parametrize("width", WIDTHS)
def test_trace_shows_every_call_and_clips_nothing(width: int) -> None:
    lines = shown_in_terminal(width, "trace", "--umask", "22", "--", "true")
    assert max(map(len, lines)) <= width
    text = "".join(lines)
    for entry in explained("--umask", "22"):
        if entry["syscall"] not in ("execve", "execveat"):
            assert entry["syscall"] + "(" in text
    assert re.search(r"[▏▎▍▌▋▊▉█]", text)
    assert re.search(r"\d [nµm]s from the clone until", lines[-1])


def test_a_duration_has_three_digits() -> None:
    shown = [
        duration(value) for value in (0, 7, 999, 999.6, 1234, 99_949, 123_456, 5e6, 999_600_000)
    ]
    assert shown == [
        "0 ns",
        "7 ns",
        "999 ns",
        "1.00 µs",
        "1.23 µs",
        "99.9 µs",
        "123 µs",
        "5.00 ms",
        "1.00 s",
    ]


@pytest.mark.parametrize("width", [10, 24, 80])
def test_wrapped_text_fits_and_loses_nothing(width: int) -> None:
    text = 'execve("/a/very/long/path/without/any/place/to/break", ["a", "b c"], A|B|C)'
    lines = wrapped(text, width).splitlines()
    assert max(map(len, lines)) <= width
    assert without_space("".join(lines)) == without_space(text)
