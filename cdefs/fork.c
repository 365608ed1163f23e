/* clone3 for a caller that wants a copy of itself, as fork(2) gives it, with what clone3 adds.
 *
 * Unlike everything else here this returns twice, into Python; so Python's own at-fork hooks
 * run, and glibc's cached thread id is set right as its fork would set it (the kernel knows
 * where it is: it clears that word when the thread ends). */
int64_t
ck_fork_like(uint64_t flags, uint64_t exit_signal, int cgroup, int32_t *pidfd)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    uint64_t tid_at = 0;
    struct clone_args args = {
        .flags = flags,
        .pidfd = (uintptr_t)pidfd,
        .exit_signal = exit_signal,
        .cgroup = cgroup >= 0 ? (uint64_t)cgroup : 0,
    };
    int64_t pid;

    if (prctl(PR_GET_TID_ADDRESS, &tid_at, 0, 0, 0) == 0 && tid_at) {
        args.flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
        args.child_tid = tid_at;
    }
    PyOS_BeforeFork();
    pid = ck_syscall(SYS_clone3, (long)&args, sizeof args, 0, 0, 0, 0);
    if (pid == 0)
        PyOS_AfterFork_Child();
    else
        PyOS_AfterFork_Parent();
    PyGILState_Release(gil);
    return pid;
}
