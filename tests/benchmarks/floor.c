/* What C alone takes to make a process and to see its end.
 *
 * Each function is one spawn and its wait. It returns nanoseconds of CLOCK_MONOTONIC, read before
 * the first and after the last system call, or -errno: what it takes to get here from Python is
 * not in it. `floor_clone3` makes the calls of our own compiled program, in its order, with
 * nothing between them. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/close_range.h>
#include <linux/sched.h>

#define CK_CHILD
#include "arch.h"

enum { STACK_SIZE = 65536, SIGSET_SIZE = 8, FAILED = 127, BY_PIDFD = 3 };

struct order {
    char *const *argv;          /* argv[0] is the path */
    char *const *envp;
    int source[3];              /* what the program's 0, 1 and 2 shall be */
    int above;                  /* the first number above 2 and above each of these */
};

static int64_t
now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static int64_t
ended(int64_t before, pid_t pid)
{
    int status;

    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        return -errno;
    return status == 0 ? now() - before : -ECHILD;
}

/* ---- clone3 ---- */

/* What arch.h calls the child's one argument. */
struct ck_frame {
    const struct order *order;
    uint64_t mask;
};

__attribute__((visibility("hidden"), noreturn)) void ck_child(struct ck_frame *frame);
extern __attribute__((visibility("hidden"))) long
ck_clone(long nr, long a, long b, long c, struct ck_frame *frame);

void
ck_child(struct ck_frame *frame)
{
    static const struct { uint64_t handler, flags, restorer, mask; } by_default;
    const struct order *order = frame->order;

    ck_syscall(SYS_close_range, order->above, ~0U, CLOSE_RANGE_UNSHARE, 0, 0, 0);
    for (int fd = 0; fd < 3; fd++)
        if (order->source[fd] == fd)
            ck_syscall(SYS_fcntl, fd, F_SETFD, 0, 0, 0, 0);
    for (int fd = 0; fd < 3; fd++)
        if (order->source[fd] != fd)
            ck_syscall(SYS_dup3, order->source[fd], fd, 0, 0, 0, 0);
    if (order->above > 3)
        ck_syscall(SYS_close_range, 3, ~0U, 0, 0, 0, 0);
    ck_syscall(SYS_rt_sigaction, SIGPIPE, (long)&by_default, 0, SIGSET_SIZE, 0, 0);
    ck_syscall(SYS_rt_sigaction, SIGXFSZ, (long)&by_default, 0, SIGSET_SIZE, 0, 0);
    ck_syscall(SYS_rt_sigprocmask, SIG_SETMASK, (long)&frame->mask, 0, SIGSET_SIZE, 0, 0);
    ck_syscall(SYS_execve, (long)order->argv[0], (long)order->argv, (long)order->envp, 0, 0, 0);
    for (;;)
        ck_syscall(SYS_exit_group, FAILED, 0, 0, 0, 0, 0);
}

int64_t
floor_clone3(const struct order *order)
{
    static char *stack;
    const uint64_t all = ~(uint64_t)0;
    struct ck_frame frame = { .order = order };
    struct rusage usage;
    siginfo_t info;
    int pidfd = -1;

    if (!stack)
        stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    int64_t before = now();
    struct clone_args args = {
        .flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_CLEAR_SIGHAND | CLONE_FILES,
        .pidfd = (uintptr_t)&pidfd,
        .exit_signal = SIGCHLD,
        .stack = (uintptr_t)stack,
        .stack_size = STACK_SIZE,
    };
    ck_syscall(SYS_rt_sigprocmask, SIG_BLOCK, (long)&all, (long)&frame.mask, SIGSET_SIZE, 0, 0);
    long pid = ck_clone(SYS_clone3, (long)&args, sizeof args, 0, &frame);
    ck_syscall(SYS_rt_sigprocmask, SIG_SETMASK, (long)&frame.mask, 0, SIGSET_SIZE, 0, 0);
    if (pid < 0)
        return pid;
    long result = ck_syscall(SYS_waitid, BY_PIDFD, pidfd, (long)&info, WEXITED, (long)&usage, 0);
    ck_syscall(SYS_close, pidfd, 0, 0, 0, 0, 0);
    if (result < 0)
        return result;
    return info.si_status == 0 ? now() - before : -ECHILD;
}

/* ---- glibc's posix_spawn ---- */

/* With what it has to be told for the same effect: the three descriptors and no other, and the
 * two signals that Python ignores. */
int64_t
floor_posix_spawn(const struct order *order)
{
    int64_t before = now();
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t by_default;
    pid_t pid;

    posix_spawn_file_actions_init(&actions);
    for (int fd = 0; fd < 3; fd++)
        posix_spawn_file_actions_adddup2(&actions, order->source[fd], fd);
    posix_spawn_file_actions_addclosefrom_np(&actions, 3);
    posix_spawnattr_init(&attributes);
    sigemptyset(&by_default);
    sigaddset(&by_default, SIGPIPE);
    sigaddset(&by_default, SIGXFSZ);
    posix_spawnattr_setsigdefault(&attributes, &by_default);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
    int error = posix_spawn(&pid, order->argv[0], &actions, &attributes, order->argv, order->envp);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return error ? -error : ended(before, pid);
}

/* Told nothing: what is not close-on-exec leaks, and ignored signals stay ignored. */
int64_t
floor_posix_spawn_bare(const struct order *order)
{
    int64_t before = now();
    pid_t pid;
    int error = posix_spawn(&pid, order->argv[0], NULL, NULL, order->argv, order->envp);

    return error ? -error : ended(before, pid);
}

/* ---- fork and vfork ---- */

static inline __attribute__((noreturn)) void
become(const struct order *order)
{
    const struct sigaction by_default = { .sa_handler = SIG_DFL };

    for (int fd = 0; fd < 3; fd++)
        if (order->source[fd] == fd)
            fcntl(fd, F_SETFD, 0);
        else
            dup2(order->source[fd], fd);
    close_range(3, ~0U, 0);
    sigaction(SIGPIPE, &by_default, NULL);
    sigaction(SIGXFSZ, &by_default, NULL);
    execve(order->argv[0], order->argv, order->envp);
    _exit(FAILED);
}

int64_t
floor_fork(const struct order *order)
{
    int64_t before = now();
    pid_t pid = fork();

    if (pid == 0)
        become(order);
    return ended(before, pid);
}

int64_t
floor_vfork(const struct order *order)
{
    int64_t before = now();
    pid_t pid = vfork();

    if (pid == 0)
        become(order);
    return ended(before, pid);
}
