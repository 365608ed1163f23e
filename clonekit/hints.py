"""Why the kernel refuses a call: the likely cause, and what to do instead."""

from __future__ import annotations

import errno
import os

from clonekit.linux.abi import lib
from clonekit.linux.interpreter import missing_for
from clonekit.steps.execute import paths_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from clonekit.compiled import Compiled
    from clonekit.steps.step import Step

#: The first kernel that has a call, for the ENOSYS of an older one.
FIRST_KERNEL = {
    "clone3": "5.3",
    "close_range": "5.9",
    "fsopen": "5.2",
    "landlock_create_ruleset": "5.13",
    "landlock_restrict_self": "5.13",
    "mount_setattr": "5.12",
    "move_mount": "5.2",
    "open_tree": "5.2",
    "openat2": "5.6",
    "pidfd_getfd": "5.6",
    "pidfd_open": "5.3",
    "seccomp": "3.17",
}
#: The first kernel that has a clone flag, for the EINVAL of an older one.
FIRST_KERNEL_OF_FLAG = (
    (lib.CLONE_AUTOREAP, "CLONE_AUTOREAP", "7.1"),
    (lib.CLONE_NNP, "CLONE_NNP", "7.1"),
    (lib.CLONE_PIDFD_AUTOKILL, "CLONE_PIDFD_AUTOKILL", "7.1"),
    (lib.CLONE_EMPTY_MNTNS, "CLONE_EMPTY_MNTNS", "7.1"),
)
#: What a clone's other errnos mostly mean.
SHORTAGES = {
    errno.EAGAIN: "RLIMIT_NPROC or the pids limit of the cgroup is reached",
    errno.ENOMEM: "memory is short, or the PID namespace for the child has lost its init",
}
UNMAPPED = (
    "who mounts has an id that the user namespace does not map, so nothing can belong to it: give "
    "our own uid and gid a place in the maps"
)
NO_PLACE = (
    "a mount point is missing where nothing can be made; make it before, or let the root be "
    "overlay(..., in_memory=True)"
)
SAME_KIND = "a file is mounted on a file, and a directory on a directory"
#: What an errno of a call that mounts mostly means.
OF_MOUNTS = {
    ("fsconfig", errno.EINVAL): "the file system does not know this option, or not this value",
    ("fsopen", errno.ENODEV): "the kernel has no file system of this type",
    ("mkdirat", errno.EROFS): NO_PLACE,
    ("mknodat", errno.EROFS): NO_PLACE,
    ("mkdirat", errno.EOVERFLOW): UNMAPPED,
    ("mknodat", errno.EOVERFLOW): UNMAPPED,
    ("openat", errno.EOVERFLOW): UNMAPPED,
    ("symlinkat", errno.EOVERFLOW): UNMAPPED,
    ("move_mount", errno.EINVAL): SAME_KIND,
    ("openat2", errno.ENOTDIR): SAME_KIND,
    ("open_tree", errno.EINVAL): (
        "it has mounts below it that are locked in this user namespace: bind it recursively"
    ),
    (
        "openat2",
        errno.EAGAIN,
    ): "a .. is on the way, and things are renamed or mounted; retry",
    ("openat2", errno.EIO): "it was not there when this was compiled; compile it again",
    ("openat2", errno.ELOOP): "a symlink of /proc is on the way, or too many others",
    ("openat2", errno.ENOENT): "a symlink there leads to nothing inside the root",
    ("pivot_root", errno.EINVAL): "no new root is there, or the old one is the initial ramfs",
}
REVEALING = (
    "in a user namespace, proc needs a PID namespace of its own, sysfs a network namespace, mqueue "
    "an IPC and cgroup2 a cgroup namespace; and the caller's own /proc and /sys are wholly visible"
)
#: What they mostly mean of a clone into a cgroup.
OF_CGROUP = {
    errno.EBADF: "it is no directory of a cgroup2 file system; /proc/mounts tells where one is",
    errno.EBUSY: "the group has domain controllers enabled for its children; use one of those",
    errno.EOPNOTSUPP: "the group is below one of threads (cgroup.type), and takes no processes",
    errno.ENODEV: "the group has been removed",
    errno.ENOENT: "the group has been removed",
}
#: What a call's EPERM (or EACCES) mostly means.
CAPABILITY = {
    "bind": "CAP_NET_BIND_SERVICE for a port below 1024",
    "capset": "to hold each capability that it sets",
    "chroot": "CAP_SYS_CHROOT",
    "ioprio_set": "CAP_SYS_NICE or CAP_SYS_ADMIN",
    "prlimit64": "CAP_SYS_RESOURCE to raise a hard limit",
    "sched_setattr": "CAP_SYS_NICE or RLIMIT_RTPRIO",
    "setdomainname": 'CAP_SYS_ADMIN in the UTS namespace; a new one is namespaces=["uts"]',
    "setgroups": "CAP_SETGID; groups='keep' leaves them as they are",
    "sethostname": 'CAP_SYS_ADMIN in the UTS namespace; a new one is namespaces=["uts"]',
    "setns": "CAP_SYS_ADMIN in the namespace and in our own user namespace",
    "setpriority": "CAP_SYS_NICE or RLIMIT_NICE",
    "setresgid": "CAP_SETGID",
    "setresuid": "CAP_SETUID",
    "unshare": "CAP_SYS_ADMIN",
}
#: What other errnos of a call mostly mean.
OTHER = {
    ("openat2", errno.ELOOP): (
        "a link of /proc is on the way, which the child may follow to what the program shall not "
        "have; give a descriptor"
    ),
    ("seccomp", errno.EBUSY): (
        "a process has at most one filter with a listener, and this one has one from us"
    ),
    **dict.fromkeys(
        (("setresuid", errno.EINVAL), ("setresgid", errno.EINVAL), ("setgroups", errno.EINVAL)),
        "the user namespace does not map this id; give it a place in uid_map or gid_map, as ranges",
    ),
    ("setpgid", errno.EPERM): (
        "no group of this session has this number (0 makes one); or the child leads a session "
        "already (setsid, start_new_session), whose group it keeps: give only one of them"
    ),
    ("setsid", errno.EPERM): "the child leads a group already; setsid alone makes a group, too",
    ("landlock_add_rule", errno.EINVAL): "what is no directory cannot have a right of directories",
}


#: Phases after which the program sees other files than we.
ELSEWHERE = ("join", "mounts")


def clone_hint(number: int, flags: int) -> str:
    """Why a clone was refused."""
    if number == errno.ENOSYS:
        return (
            "clone3 is refused (an old seccomp profile of a container does that), or the kernel is "
            "older than Linux 5.3; compile the declaration again to use clone"
        )
    if number == errno.EINVAL:
        newer = [(name, first) for flag, name, first in FIRST_KERNEL_OF_FLAG if flags & flag]
        if newer:
            return "; ".join(f"{name} needs Linux {first}" for name, first in newer)
    if number in (errno.EPERM, errno.EACCES):
        if flags & lib.CLONE_NEWUSER:
            return user_namespace_hint()
        if flags & lib.CLONE_INTO_CGROUP and number == errno.EACCES:
            return "the right to write the cgroup's cgroup.procs, and that of the common ancestor"
        return 'new namespaces need CAP_SYS_ADMIN; add "user" to namespaces to have it inside'
    if number == errno.ENOSPC and flags & lib.CLONE_NEWUSER:
        return "the limit of nested or of user namespaces is reached (user.max_user_namespaces)"
    if flags & lib.CLONE_INTO_CGROUP and number in OF_CGROUP:
        return OF_CGROUP[number]
    return SHORTAGES.get(number, "")


def user_namespace_hint() -> str:
    """Which of the known switches forbids user namespaces here."""
    for path, value, told in (
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor restricts them"),
        ("kernel/unprivileged_userns_clone", "0", "unprivileged ones are switched off"),
        ("user/max_user_namespaces", "0", "their number is limited to none"),
    ):
        try:
            with open(f"/proc/sys/{path}", encoding="ascii") as file:  # noqa: PTH123 - pathlib is slow to import
                if file.read().strip() == value:
                    return f"user namespaces: {told} (sysctl {path.replace('/', '.')})"
        except OSError:
            continue
    return "user namespaces are refused here (a seccomp profile, a security module, or a chroot)"


def hint_for(number: int, entry: dict[str, Any], program: Compiled) -> str:
    """Why a step's call was refused, where the cause is known."""
    syscall, phase = entry.get("syscall", ""), entry["phase"]
    if syscall == "clone":
        return SHORTAGES.get(number, "")
    if phase in ("mask", "exec") and has_phase(program, "seccomp"):
        return f"perhaps the seccomp filter, which comes before it, does not allow {syscall}"
    if number == errno.ENOSYS and syscall in FIRST_KERNEL:
        return f"{syscall} needs Linux {FIRST_KERNEL[syscall]}, or is refused by a seccomp filter"
    if phase == "mounts":
        return mount_hint(number, syscall, entry["step"])
    if syscall in ("execve", "execveat"):
        return program_hint(number, entry, program)
    if number in (errno.EPERM, errno.EACCES) and (syscall, number) not in OTHER:
        return forbidden_hint(syscall, phase, program)
    if phase == "nest" and number == errno.ENOENT:
        return "the program's root has no /proc; add clonekit.mounts.proc() to mounts"
    return other_hint(number, syscall)


def other_hint(number: int, syscall: str) -> str:
    """What an errno of a call mostly means that depends on nothing else."""
    if (syscall, number) == ("sched_setaffinity", errno.EINVAL):
        ours = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
        return f"the machine, or the cpuset of its cgroup, has none of these; we may use {ours}"
    return OTHER.get((syscall, number), "")


def has_phase(program: Compiled, phase: str) -> bool:
    """Whether it has a step of this phase."""
    return any(step.phase == phase for step in program.steps)


def forbidden_hint(syscall: str, phase: str, program: Compiled) -> str:
    """What a call takes that was not permitted."""
    if syscall in ("seccomp", "landlock_restrict_self"):
        return "without CAP_SYS_ADMIN this needs no_new_privs=True"
    if phase == "privileges":
        return "it takes CAP_SETPCAP, which root has, also in a new user namespace"
    if phase == "maps":
        if program.setup.clone_flags & lib.CLONE_NEWUSER:
            return f"{user_namespace_hint()}; or the id outside is not ours"
        return 'maps are written in a new user namespace: add "user" to namespaces'
    return f"it takes {CAPABILITY[syscall]}" if syscall in CAPABILITY else ""


def mount_hint(number: int, syscall: str, step: str) -> str:
    """Why a mount failed."""
    if (syscall, number) == ("fsconfig", errno.EINVAL) and "overlay of 1 on" in step:
        return "one directory alone is no overlay; give in_memory=True, upper, or a second"
    if number != errno.EPERM:
        return OF_MOUNTS.get((syscall, number), "")
    if syscall in ("fsconfig", "fsmount"):
        return REVEALING
    return 'CAP_SYS_ADMIN in the mount namespace; add "user" to namespaces to have it inside'


def program_hint(number: int, entry: dict[str, Any], program: Compiled) -> str:
    """Why a program could not begin, with what was to be begun."""
    by_path = entry["syscall"] == "execve"
    if number == errno.ENOENT and has_phase(program, "mounts"):
        return "in the program's root it is missing, or the loader or interpreter it names is"
    if number == errno.E2BIG:
        return too_big_hint(*entry["args"][1:3] if by_path else entry["args"][2:4])
    if number == errno.ENOENT and by_path:
        return absent_hint(program, program.steps[entry["step_number"] - 1])
    return exec_hint(number, entry["syscall"], ruled=has_phase(program, "landlock"))


def too_big_hint(argv: list[str], env: list[str]) -> str:
    """Which limit the arguments and variables are above."""
    sizes = [len(os.fsencode(text)) + 1 for text in (*argv, *env)]
    longest = 32 * os.sysconf("SC_PAGESIZE")
    if max(sizes) > longest:
        return (
            f"a string of {max(sizes)} bytes is too long, with its NUL it may have {longest}; give "
            "it by a file or a pipe"
        )
    return (
        f"argv and env have {sum(sizes) + 8 * len(sizes)} bytes with their pointers; all may have "
        "a quarter of RLIMIT_STACK, and at most 6 MiB"
    )


def absent_hint(program: Compiled, step: Step) -> str:
    """What a program that is there lacks, as far as we see what it sees."""
    names = {each.kind.name for each in program.steps}
    elsewhere = any(has_phase(program, phase) for phase in ELSEWHERE) or "change_root" in names
    if elsewhere or step.kind.name != "execute":
        return ""
    moved = "change_directory" in names
    said = dict(zip(("argv", "executable", "env"), step.arguments, strict=False), **step.keywords)
    for path in paths_of(said["argv"][0], said.get("executable"), said.get("env")):
        lacks = None if moved and path[:1] != b"/" else missing_for(path)
        if lacks is not None:
            file, named = map(os.fsdecode, lacks)
            told = "; its first line ends with CR LF" if named.endswith("\r") else ""
            return f"{file} is there, but {named!r}, which is to interpret it, is not{told}"
    return ""


def exec_hint(number: int, syscall: str, *, ruled: bool) -> str:
    """Why a program could not begin; `ruled` by Landlock."""
    if number == errno.ETXTBSY:
        return (
            "somebody has the file open for writing, perhaps a child that another thread has just "
            "forked; a SealedProgram that nobody else has run cannot be busy"
        )
    if number == errno.ENOENT and syscall == "execveat":
        return "a script given by a close-on-exec descriptor cannot be read again; give its path"
    if number == errno.EACCES and ruled:
        return (
            "perhaps the Landlock rules, which come before it, do not let it and the loader that "
            "it names be read and executed"
        )
    if number == errno.EACCES:
        return "it is not executable, its file system is mounted noexec, or a directory is closed"
    if number == errno.ENOEXEC:
        return "it is neither a binary for this machine nor a script that begins with #!"
    if number == errno.EAGAIN:
        return "RLIMIT_NPROC is exceeded for the new uid"
    return ""
