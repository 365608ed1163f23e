"""Which calls a child that shares its parent's memory must not make, and why.

The child of a vfork runs on the parent's memory. Calls that change that memory, or settings
that the kernel keeps with it, would change the parent.
"""

from __future__ import annotations

from clonekit.linux.abi import lib

_MEMORY = "it changes the memory that the child shares with its parent"
_SETTING = (
    "the kernel keeps this setting with the memory, which the child shares with its parent; "
    "where the phase memory has no step for it, set it in a suspended process, which has its own"
)
_OOM = (
    "the kernel gives it to every process that shares this memory, us too, unless the parent "
    "sleeps until the exec; set it in a process made with suspended=True, or in a spawn that has "
    "no deadline"
)
_FLOW = "it would end or fork the machine that runs the program"

#: Calls that are refused wherever records run, each with the reason.
FLOW_CALLS: dict[str, str] = {
    **dict.fromkeys(
        (
            "clone", "clone3", "fork", "vfork", "exit", "exit_group", "rt_sigreturn",
            "restart_syscall",
        ),
        _FLOW,
    ),
    **dict.fromkeys(("execve", "execveat"), "a program ends with exec; use the step execute()"),
}  # fmt: skip

#: Calls that are refused while memory is shared, each with the reason.
REFUSED_CALLS: dict[str, str] = {
    **dict.fromkeys(
        (
            "mmap", "munmap", "mprotect", "mremap", "brk", "madvise", "process_madvise", "mbind",
            "remap_file_pages", "pkey_mprotect", "pkey_alloc", "pkey_free", "mseal", "shmat",
            "shmdt", "map_shadow_stack", "io_setup", "io_destroy", "userfaultfd", "uselib",
            "modify_ldt", "move_pages", "migrate_pages", "set_mempolicy_home_node",
            "set_robust_list", "set_tid_address", "rseq", "arch_prctl", "process_vm_writev",
            "process_mrelease", "io_uring_setup", "io_uring_enter", "io_uring_register",
        ),
        _MEMORY,
    ),
    **dict.fromkeys(
        ("mlock", "mlock2", "munlock", "mlockall", "munlockall", "membarrier"), _SETTING
    ),
    "ptrace": "a tracer could reach our memory through the child; see suspended=True",
    "rt_sigprocmask": "signals stay blocked until the last step; use set_signal_mask()",
    "rt_sigaction": "a handler would run in our memory; see reset_signals(), ignore_signals()",
    "rt_sigsuspend": "signals stay blocked until the last step",
    "setrlimit": "prlimit64 says the same on every architecture; use set_rlimit()",
}  # fmt: skip

#: prctl options that are refused, each with the reason.
REFUSED_PRCTL: dict[int, str] = {
    **dict.fromkeys(
        (
            lib.PR_SET_DUMPABLE, lib.PR_SET_MDWE, lib.PR_SET_THP_DISABLE,
            lib.PR_SET_MEMORY_MERGE, lib.PR_MPX_ENABLE_MANAGEMENT,
            lib.PR_MPX_DISABLE_MANAGEMENT, lib.PR_FUTEX_HASH,
        ),
        _SETTING,
    ),
    lib.PR_SET_SHADOW_STACK_STATUS: _MEMORY,
    lib.PR_LOCK_SHADOW_STACK_STATUS: _MEMORY,
    lib.PR_SET_PTRACER: "whom it names could trace the child, and so our memory, before the exec",
    lib.PR_SET_MM: _MEMORY,
    lib.PR_SET_VMA: _MEMORY,
}  # fmt: skip

#: keyctl operations that are refused, each with the reason.
REFUSED_KEYCTL: dict[int, str] = {
    lib.KEYCTL_SESSION_TO_PARENT: "it changes the session keyring of the parent",
}

#: Files under /proc/PID of a process's own that reach the shared memory, each with the reason.
REFUSED_FILES: dict[bytes, str] = {
    b"coredump_filter": _SETTING,
    b"clear_refs": _MEMORY,
    b"mem": _MEMORY,
}

#: The same for a child whose parent does not sleep until its exec.
OOM_FILES: dict[bytes, str] = dict.fromkeys((b"oom_score_adj", b"oom_adj"), _OOM)

#: Calls after which a process of lesser rights could trace the child, and so our memory.
CREDENTIAL_CALLS = (
    "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid",
    "setgroups", "capset",
)  # fmt: skip
