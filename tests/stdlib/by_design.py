"""CPython's own tests that cannot pass, and why: what they test is what this library replaces."""

from __future__ import annotations

#: How a program uses this library: `clonekit.install()`, or `import clonekit as subprocess`.
INSTALLED, IMPORTED = "installed", "imported"
EITHER = (INSTALLED, IMPORTED)
ENDLESS = "it is not run, for it would wait without an end for a call of os.waitpid"

#: Each reason, where it holds, and the tests: module and method, whatever class that stands in.
#: They are those of CPython 3.11 to 3.15, each of which has some of them.
BY_DESIGN: list[tuple[str, tuple[str, ...], list[str]]] = [
    (
        "it looks into _posixsubprocess.fork_exec, which makes no child here",
        EITHER,
        [
            "test_subprocess.test__use_vfork",
            "test_subprocess.test_exception_errpipe_bad_data",
            "test_subprocess.test_exception_errpipe_normal",
        ],
    ),
    (
        "its os.waitpid tells of a child; here the child's pidfd does",
        EITHER,
        ["test_subprocess.test_stopped"],
    ),
    (
        ENDLESS,
        (INSTALLED,),
        ["test_asyncio.test_unix_events.test_pidfd_closed_when_waitpid_raises"],
    ),
    (
        "it looks for a call of os.pidfd_open; here clone3 gives the pidfd",
        EITHER,
        [
            "test_subprocess.test_pidfd_open_notification_without_immediate_reap",
            "test_subprocess.test_pidfd_open_race",
            "test_subprocess.test_wait_pidfd_open_error",
        ],
    ),
    (
        "it looks for a child watcher or its thread; here there is none",
        EITHER,
        [
            "test_asyncio.test_subprocess.test_create_subprocess_fails_with_inactive_watcher",
            "test_asyncio.test_subprocess.test_pid_not_reaped_before_exit_published",
        ],
    ),
    (
        "it is about preexec_fn, which is refused",
        (IMPORTED,),
        [
            "test_subprocess.test_close_fds_after_preexec",
            "test_subprocess.test_preexec",
            "test_subprocess.test_preexec_errpipe_does_not_double_close_pipes",
            "test_subprocess.test_preexec_exception",
            "test_subprocess.test_preexec_fork_failure",
            "test_subprocess.test_preexec_gc_module_failure",
            "test_subprocess.test_surrogates_error_message",
        ],
    ),
    (
        "its subprocess.Popen raises; that of clonekit.aio is clonekit's",
        (IMPORTED,),
        [
            "test_asyncio.test_subprocess.test_popen_error",
            "test_asyncio.test_subprocess.test_popen_error_with_stdin_pipe",
        ],
    ),
]


def expected(mode: str) -> dict[str, str]:
    """The tests that fail in a mode, each with its reason."""
    return {test: reason for reason, modes, tests in BY_DESIGN if mode in modes for test in tests}
