/* Keeping our memory untraceable while a child of lesser credentials has it: H7, P2, P3, P6. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/kcmp.h>
#include <linux/magic.h>

#include "arch.h"
#include "child.h"

enum { PF_FORKNOEXEC_ = 0x40 };         /* /proc/PID/stat, flags: has not exec'd since its clone */

static pthread_mutex_t guard_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t guard_hooks = PTHREAD_ONCE_INIT;
static unsigned guarded;                /* children of lesser credentials on our memory */
static int dumpable_before;
static uid_t uid_before;
static gid_t gid_before;
static int has_restored;
static uid_t uid_restored;
static gid_t gid_restored;

static int
is_proc(int fd)
{
    struct statfs system;

    return fstatfs(fd, &system) == 0 && system.f_type == PROC_SUPER_MAGIC;
}

/* Whether each of our threads has these effective ids: they own its directory in /proc. "No" also
 * where /proc cannot tell. */
static int
all_threads_have(uid_t uid, gid_t gid)
{
    DIR *threads = opendir("/proc/self/task");
    int all = threads && is_proc(dirfd(threads));
    struct dirent *thread;
    struct stat status;

    while (all && (thread = readdir(threads))) {
        if (thread->d_name[0] == '.')
            continue;
        if (fstatat(dirfd(threads), thread->d_name, &status, 0) == 0)
            all = status.st_uid == uid && status.st_gid == gid;
        else
            all = errno == ENOENT || errno == ESRCH;
    }
    if (threads)
        closedir(threads);
    return all;
}

static int
dumpable_now(void)
{
    int dumpable = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
    uid_t uid = geteuid();
    gid_t gid = getegid();

    if (dumpable != 1 || !has_restored || (uid == uid_restored && gid == gid_restored))
        return dumpable;
    return all_threads_have(uid, gid) ? prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) : 0;     /* P6 */
}

static void
restore_dumpable(void)
{
    if (dumpable_before != 1 || geteuid() != uid_before || getegid() != gid_before)    /* P6 */
        return;
    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    has_restored = 1;
    uid_restored = uid_before;
    gid_restored = gid_before;
}

static void
before_fork(void)
{
    pthread_mutex_lock(&guard_lock);
}

static void
after_fork_in_parent(void)
{
    pthread_mutex_unlock(&guard_lock);
}

void
ck_forget_guard(void)
{
    if (guarded)
        restore_dumpable();
    guarded = 0;
}

static void
after_fork_in_child(void)
{
    ck_forget_guard();
    pthread_mutex_unlock(&guard_lock);
}

static void
install_fork_hooks(void)
{
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

void
ck_raise_guard(uint32_t guard)
{
    pthread_once(&guard_hooks, install_fork_hooks);
    pthread_mutex_lock(&guard_lock);
    if (guarded++ == 0) {
        dumpable_before = dumpable_now();
        uid_before = geteuid();
        gid_before = getegid();
    }
    if (guard == CK_GUARDED_FROM_CLONE && dumpable_before == 1)
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    pthread_mutex_unlock(&guard_lock);
}

void
ck_lower_guard(void)
{
    pthread_mutex_lock(&guard_lock);
    if (guarded && --guarded == 0)                                      /* P10 */
        restore_dumpable();
    pthread_mutex_unlock(&guard_lock);
}

/* The "flags" field of /proc/PID/stat, or -1 where /proc cannot tell (absent, another pid
 * namespace's, hidepid). */
static long
task_flags(int pid)
{
    char path[64], text[512], own[16] = "";
    ssize_t length = readlink("/proc/self", own, sizeof own - 1);
    int fd;

    if (length <= 0 || atoi(own) != getpid())
        return -1;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    length = is_proc(fd) ? read(fd, text, sizeof text - 1) : -1;
    close(fd);
    if (length <= 0)
        return -1;
    text[length] = 0;
    char *after_name = strrchr(text, ')');
    long flags;
    if (!after_name ||
        sscanf(after_name + 1, " %*c %*d %*d %*d %*d %*d %ld", &flags) != 1)
        return -1;
    return flags;
}

/* Whether an exec'ing child no longer has our memory: 1, 0, or -1 for "cannot be told".
 *
 * setpgid(2) refuses a child that has exec'd with EACCES, and a process group that does not exist
 * with EPERM: nothing changes, and no /proc is needed. It cannot tell for a child in another
 * session; the flag that it goes by (PF_FORKNOEXEC, which exec clears when it has replaced the
 * memory) is in /proc/PID/stat too, and kcmp(2) compares the memories where we may trace. A child
 * that died in its exec never clears the flag, but a zombie has no memory. */
static int
has_left_our_memory(int pid, int pidfd)
{
    const pid_t no_such_group = 0x7fffffff;
    struct ck_exit ended;
    long flags, differs;
    int waited;

    if (setpgid(pid, no_such_group) == 0 || errno == EACCES || errno == ESRCH)
        return 1;
    waited = ck_wait(pidfd, WEXITED | WNOHANG | WNOWAIT | __WALL, &ended);
    if (waited == -ECHILD || (waited == 0 && ended.pid))
        return 1;
    flags = task_flags(pid);
    if (flags >= 0)
        return !(flags & PF_FORKNOEXEC_);
    if (getsid(pid) == getsid(0))
        return 0;                       /* setpgid will tell */
    differs = ck_syscall(SYS_kcmp, getpid(), pid, KCMP_VM, 0, 0, 0);
    return differs < 0 ? -1 : differs != 0;
}

/* Give up the guard for a child that the kernel says has begun its exec. Where nobody can say
 * that the exec has passed the point that matters, the parent stays as it is: untraceable. */
void
ck_lower_guard_after_exec(int pid, int pidfd)
{
    for (;;) {
        int left = has_left_our_memory(pid, pidfd);
        if (left == 1) {
            ck_lower_guard();
            return;
        }
        if (left < 0)
            return;
        nanosleep(&(struct timespec){ .tv_nsec = 20000 }, NULL);       /* P5 */
    }
}
