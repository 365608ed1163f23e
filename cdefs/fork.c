/* clone3 for a caller that wants a copy of itself, as fork(2) gives it, with what clone3 adds.
 *
 * Unlike everything else here this returns twice, into Python. What fork(2) of libc would do
 * besides is done here, or the call is refused:
 *
 * F1  A copy has one thread: a lock that another thread held would stay locked for ever.
 *     The kernel is asked whether there is another: unshare(CLONE_THREAD) changes nothing and
 *     fails if so. It is asked after Python's hooks, which may have ended threads of theirs; and
 *     for a while, since a thread that was joined may not have come to its end yet.
 * F2  libc caches the thread's id. The kernel knows where, since it clears that word when the
 *     thread ends, and writes the new id there before the copy runs. Where the word does not
 *     hold our id (not glibc), the copy could signal its parent by mistake: refused.
 * F3  The kernel forgets the list of robust mutexes in a copy: it is told again.
 * F4  Handlers of pthread_atfork(3) are libc's secret and do not run; Python's own hooks do.
 */
void PyOS_BeforeFork(void);             /* in Python's stable ABI since 3.7, but cffi asks for */
void PyOS_AfterFork_Parent(void);       /* an older one, whose headers do not declare them */
void PyOS_AfterFork_Child(void);

static int
is_only_thread(void)
{
    const struct timespec pause = { .tv_nsec = 100000 };

    for (int tries = 0; tries < 1000; tries++) {
        if (ck_syscall(SYS_unshare, CLONE_THREAD, 0, 0, 0, 0, 0) == 0)
            return 1;
        nanosleep(&pause, NULL);
    }
    return 0;
}

int64_t
ck_fork_like(uint64_t flags, uint64_t exit_signal, int cgroup, int32_t *pidfd)
{
    uint64_t tid_at = 0, robust = 0, robust_size = 0;
    PyGILState_STATE gil;
    int64_t pid;

    prctl(PR_GET_TID_ADDRESS, &tid_at, 0, 0, 0);
    if (!tid_at || *(int32_t *)(uintptr_t)tid_at != ck_syscall(SYS_gettid, 0, 0, 0, 0, 0, 0))
        return -EOPNOTSUPP;                                                         /* F2 */
    ck_syscall(SYS_get_robust_list, 0, (long)&robust, (long)&robust_size, 0, 0, 0);
    struct clone_args args = {
        .flags = flags | CLONE_PIDFD | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID,
        .pidfd = (uintptr_t)pidfd,
        .child_tid = tid_at,
        .exit_signal = exit_signal,
        .cgroup = cgroup >= 0 ? (uint64_t)cgroup : 0,
    };

    gil = PyGILState_Ensure();
    PyOS_BeforeFork();
    pid = is_only_thread() ? ck_syscall(SYS_clone3, (long)&args, sizeof args, 0, 0, 0, 0)
                           : -EDEADLK;                                              /* F1 */
    if (pid == 0) {
        ck_syscall(SYS_set_robust_list, (long)robust, (long)robust_size, 0, 0, 0, 0); /* F3 */
        ck_forget_guard();                                                          /* P10 */
        PyOS_AfterFork_Child();
    } else
        PyOS_AfterFork_Parent();
    PyGILState_Release(gil);
    return pid;
}
