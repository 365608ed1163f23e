"""What `preexec_fn` is used for, and the declaration that replaces it."""

from __future__ import annotations

from contextlib import suppress

from clonekit.errors import DeclarationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FunctionType
    from typing import Any


class Use:
    """One use of `preexec_fn`, and what is written instead.

    `does` and `instead` are Python, which the tests run: the one as a `preexec_fn`, the other as
    keywords of `clonekit.Popen`, unless it is said of whom it is. A function that names one of
    `words` seems to be of this use.
    """

    __slots__ = ("does", "instead", "name", "note", "words")

    def __init__(self, words: str, does: str, instead: str, note: str = "") -> None:
        self.words = frozenset(words.split())
        self.name = words.split(maxsplit=1)[0]
        self.does = does
        self.instead = instead
        self.note = note


#: In the order in which people look for them. Names without a module are those of the man pages.
USES = (
    Use("setsid", "os.setsid()", "start_new_session=True"),
    Use("setpgid setpgrp", "os.setpgid(0, 0)", "process_group=0",
        "`process_group=pgid` joins one, as in a pipeline."),
    Use("TIOCSCTTY login_tty", "fcntl.ioctl(fd, termios.TIOCSCTTY, 0)",
        "start_new_session=True, ctty=fd",
        "`os.login_tty(fd)` makes it the three streams too: `stdin=fd, stdout=fd, stderr=fd`."),
    Use("tcsetpgrp TIOCSPGRP", "os.tcsetpgrp(fd, os.getpgrp())", "foreground=fd",
        "With `process_group=0`, as a shell does. SIGTTOU cannot stop the child here."),
    Use("tcsetattr setraw setcbreak TIOCSWINSZ setwinsize setecho",
        "termios.tcsetattr(fd, termios.TCSANOW, modes)", "the same in the parent, before",
        "Modes and size are the terminal's, whoever sets them."),
    Use("PR_SET_PDEATHSIG PDEATHSIG set_pdeathsig prctl(1)", "prctl(PR_SET_PDEATHSIG, SIGTERM)",
        'pdeathsig="TERM"',
        "Set after the ids, which would clear it; a parent that has died by then is noticed, so "
        "`os.getppid()` need not be compared. The parent is the *thread* that spawns."),
    Use("setrlimit prlimit rlimit", "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))",
        'rlimits={"nofile": (64, 128)}',
        'By the names of getrlimit(2) in lower case: `{"cpu": 1, "as": 1 << 30, "core": 0}`; '
        "None lifts a limit."),
    Use("nice setpriority", "os.nice(5)", "nice=os.nice(0) + 5",
        "The field is the value itself, as that of `os.setpriority(os.PRIO_PROCESS, 0, 5)`."),
    Use("sched_setaffinity cpu_affinity", "os.sched_setaffinity(0, {cpu})", "affinity={cpu}"),
    Use("sched_setscheduler sched_setparam",
        "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))", 'scheduler="batch"',
        '`scheduler=("fifo", 10)` with a priority.'),
    Use("ioprio_set ionice", "ioprio_set(IOPRIO_WHO_PROCESS, 0, IOPRIO_CLASS_IDLE << 13)",
        'ioprio="idle"', '`ioprio=("be", 7)` with a level.'),
    Use("set_mempolicy numa_set_membind", "set_mempolicy(MPOL_BIND, nodes, 64)",
        'mempolicy=("bind", [0])'),
    Use("PR_SET_TIMERSLACK set_timerslack prctl(29)", "prctl(PR_SET_TIMERSLACK, 1000)",
        "timer_slack_ns=1000"),
    Use("umask", "os.umask(0o27)", "umask=0o27"),
    Use("SIG_IGN", "signal.signal(signal.SIGINT, signal.SIG_IGN)", 'sigignore=["INT"]'),
    Use("SIG_DFL default_int_handler", "signal.signal(signal.SIGHUP, signal.SIG_DFL)",
        'sigdefault=["HUP"]',
        "Only for what the parent ignores, beside what `restore_signals` resets: handlers are "
        "reset by every exec."),
    Use("pthread_sigmask sigprocmask", "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})",
        'sigmask=["USR1"]', "Without it, the mask is that of the thread that spawns."),
    Use("alarm setitimer", "signal.alarm(60)", "alarm=60",
        "SIGALRM, which ends a program that does nothing about it."),
    Use("chdir fchdir", "os.chdir(path)", "cwd=path"),
    Use("chroot", 'os.chroot(path), os.chdir("/")', "root=path"),
    Use("setuid setreuid setresuid seteuid set_user", "os.setuid(uid)", "user=uid",
        "`uid=(real, effective, saved)` for the three. Groups and limits are set before it, "
        "whatever the order of the keywords."),
    Use("setgid setregid setresgid setegid", "os.setgid(gid)", "group=gid"),
    Use("setgroups initgroups", "os.setgroups([gid])", "extra_groups=[gid]",
        "For `os.initgroups(name, gid)`: `extra_groups=os.getgrouplist(name, gid)`. Give it with "
        "`user=`: as in `subprocess`, that alone leaves the groups of the parent."),
    Use("PR_CAPBSET_DROP capset PR_CAP_AMBIENT prctl(24) prctl(47) capbset_drop",
        "[prctl(PR_CAPBSET_DROP, each) for each in range(41)]", 'capabilities={"bounding": []}',
        'By set: "bounding", "permitted", "effective", "inheritable", "ambient".'),
    Use("PR_SET_NO_NEW_PRIVS set_no_new_privs prctl(38)", "prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)",
        "no_new_privs=True"),
    Use("PR_SET_SECCOMP seccomp SyscallFilter seccomp_load set_seccomp prctl(22)",
        "prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program)",
        'seccomp=clonekit.Filter("ALLOW").errno("unshare")',
        "What the spawn itself calls after it must pass, and is checked before."),
    Use("landlock_restrict_self landlock", "landlock_restrict_self(ruleset, 0)",
        'landlock=clonekit.Landlock(write=["/dev"])'),
    Use("setns", "setns(fd, 0)", "join=fd",
        'Or those of a process: `join=[(pidfd, ["net", "mnt"])]`, `clonekit.enter()`.'),
    Use("unshare CLONE_NEWNET CLONE_NEWNS CLONE_NEWUSER CLONE_NEWPID CLONE_NEWUTS CLONE_NEWIPC",
        "unshare(CLONE_NEWIPC)", 'namespaces=["ipc"]',
        'With "pid" the program itself is in it; `init=True` gives it an init.'),
    Use("uid_map gid_map", 'open("/proc/self/uid_map", "w").write(f"0 {uid} 1")',
        'namespaces=["user"], uid_map=0'),
    Use("sethostname", 'socket.sethostname("box")', 'namespaces=["uts"], hostname="box"'),
    Use("SIOCSIFFLAGS", 'fcntl.ioctl(socket.socket(), SIOCSIFFLAGS, struct.pack("16sh", b"lo", 1))',
        'namespaces=["net"], loopback=True', "`network=` for interfaces, addresses and routes."),
    Use("mount", 'mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, None)',
        'namespaces=["mnt"], mounts=[clonekit.mounts.tmpfs(path)]',
        "`bind`, `proc`, `overlay` and others. The parent's mounts stay as they are."),
    Use("pivot_root", 'pivot_root(".", ".")', 'namespaces=["mnt"], rootfs=path'),
    Use("oom_score_adj oom_adj", 'open("/proc/self/oom_score_adj", "w").write("500")',
        "oom_score_adj=500"),
    Use("cgroup.procs", 'open(group + "/cgroup.procs", "w").write(str(os.getpid()))',
        "cgroup=group",
        "The child is born in it, which costs less. A group of version 1: "
        '`write_files={group + "/cgroup.procs": b"0"}`, which means the one who writes.'),
    Use("keyctl join_session_keyring", "keyctl(KEYCTL_JOIN_SESSION_KEYRING, None)", "keyring=True"),
    Use("personality ADDR_NO_RANDOMIZE", "personality(ADDR_NO_RANDOMIZE)",
        'personality="addr_no_randomize"'),
    Use("coredump_filter", 'open("/proc/self/coredump_filter", "w").write("0x31")',
        "coredump_filter=0x31"),
    Use("PR_SET_THP_DISABLE prctl(41)", "prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)", "no_thp=True",
        "Likewise `mdwe=True`, `ksm=True`, `core_scheduling=True`."),
    Use("PR_SET_CHILD_SUBREAPER set_child_subreaper prctl(36)", "prctl(PR_SET_CHILD_SUBREAPER, 1)",
        'prctl=[("SET_CHILD_SUBREAPER", 1)]', "Likewise any other prctl that an exec keeps."),
    Use("/proc/self/... aa_change_onexec setexeccon loginuid", 'open(path, "w").write("text")',
        'write_files={path: b"text"}',
        'As `{"/proc/self/attr/exec": b"exec profile"}` for AppArmor. Written with the ids of the '
        "parent, and in its root."),
    Use("closerange closefrom close_fds", "os.closerange(3, 256)", "close_fds=True",
        "The default: the program has its three streams, and what it is given."),
    Use("dup2", "os.dup2(fd, 3)", "fds={0: 0, 1: 1, 2: 2, 3: fd}",
        "The program's numbers to ours; they may swap."),
    Use("set_inheritable FD_CLOEXEC", "os.set_inheritable(fd, True)", "pass_fds=[fd]"),
    Use("environ putenv", 'os.environ.update(KEY="value")', 'env={**os.environ, "KEY": "value"}'),
    Use("getpid", 'open(path, "w").write(str(os.getpid()))', "process.pid",
        "Where the program must find the file: `clonekit.nascent()`, whose child has a pid before "
        "it has a program."),
    Use("PTRACE_TRACEME SIGSTOP", "ptrace(PTRACE_TRACEME, 0, 0, 0)",
        "clonekit.spawn(argv, suspended=True)", "Loaded, and not begun."),
    Use("waiting", "os.read(fd, 1)", "clonekit.nascent()",
        "The child waits, the parent does what it has to from outside, and starts it."),
)  # fmt: skip
WHY = (
    "preexec_fn is refused: Python that runs between fork and exec deadlocks on whatever lock "
    "another thread held at the fork, which copies the whole memory besides; clonekit.install() "
    "leaves it to the standard library's own code, as it was"
)
REST = "anything else: steps=[clonekit.steps.system_call(...)], or clonekit.nascent() from outside"


def refusal(preexec_fn: object) -> DeclarationError:
    """The error for a `preexec_fn`: what replaces each use, those first that it seems to be.

    It is looked at, and not called.
    """
    words = words_of(preexec_fn)
    seen = [use for use in USES if use.words & words]
    told = WHY
    if seen:
        names = ", ".join(use.name for use in seen)
        told += f". It seems to use {names}: write {', '.join(use.instead for use in seen)}"
    width = max(len(use.name) for use in USES)
    table = [*seen, *(use for use in USES if use not in seen)]
    lines = [f"  {use.name:{width}}  {use.instead}" for use in table]
    return DeclarationError("\n".join([f"{told}.", *lines, REST]))


def words_of(called: object) -> set[str]:
    """The names and texts in a function, in those inside of it and in its module's that it calls.

    Nothing of it is run: not even its attributes are asked for, unless its type is known.
    """
    import functools
    from types import BuiltinFunctionType, CodeType, FunctionType, MethodType

    words: set[str] = set()
    known: set[int] = set()
    left: list[Any] = [called]
    while left:
        this = left.pop()
        kind = type(this)
        if id(this) in known:
            continue
        known.add(id(this))
        if kind is functools.partial:
            left += [this.func, *this.args]
        elif kind is MethodType:
            left.append(this.__func__)
        elif kind is BuiltinFunctionType:
            words.add(this.__name__)
        elif kind is FunctionType:
            left.append(this.__code__)
            left += contents(this)
        elif kind is CodeType:
            words |= words_of_code(this)
            left += this.co_consts
        else:
            left += [each for each in [vars(kind).get("__call__")] if type(each) is FunctionType]
    return words


def contents(function: FunctionType) -> Iterator[object]:
    """What a function has of its surroundings, and the functions of its module that it names."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty one
            yield cell.cell_contents
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if type(value) is type(function) and value.__globals__ is function.__globals__:
            yield value


def words_of_code(code: CodeType) -> set[str]:
    """The names and the words of texts in some code, and the options of prctl in numbers."""
    import dis
    import re

    words = set(code.co_names)
    for value in code.co_consts:
        if type(value) is str:
            words.update(re.findall(r"[\w.]+", value))
    before = None
    for instruction in dis.get_instructions(code):
        if instruction.opname.startswith("LOAD_"):
            if before == "prctl" and type(instruction.argval) is int:
                words.add(f"prctl({instruction.argval})")
            before = instruction.argval
    return words
