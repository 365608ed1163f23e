/* What C alone takes to run a program in a full sandbox, and to see its end.
 *
 * As in floor.c: one spawn and its wait, in nanoseconds of CLOCK_MONOTONIC, or -errno. The calls
 * are those of our own compiled program, in its order, with nothing between them. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/close_range.h>
#include <linux/filter.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <linux/seccomp.h>

#define CK_CHILD
#include "arch.h"

enum { STACK_SIZE = 65536, SIGSET_SIZE = 8, FAILED = 127, BY_PIDFD = 3 };
enum { NAMESPACES = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWUTS
                    | CLONE_NEWIPC | CLONE_NEWCGROUP };

struct sandbox {
    char *const *argv;          /* argv[0] is the path in the new root */
    char *const *envp;
    const char *root;
    const char *uid_map;
    const char *gid_map;
    const char *hostname;
    int cgroup;                 /* a directory's descriptor, or -1 */
    uint16_t instructions;
    const void *filter;
};

/* What arch.h calls the child's one argument. */
struct ck_frame {
    const struct sandbox *sandbox;
    uint64_t mask;
    volatile long error;
};

__attribute__((visibility("hidden"), noreturn)) void ck_child(struct ck_frame *frame);
extern __attribute__((visibility("hidden"))) long
ck_clone(long nr, long a, long b, long c, struct ck_frame *frame);

static int64_t
now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* A call that must succeed. */
static inline long
must(struct ck_frame *frame, long nr, long a, long b, long c, long d, long e)
{
    long result = ck_syscall(nr, a, b, c, d, e, 0);

    if (result < 0) {
        frame->error = result;
        for (;;)
            ck_syscall(SYS_exit_group, FAILED, 0, 0, 0, 0, 0);
    }
    return result;
}

#define MUST(name, a, b, c, d, e) \
    must(frame, SYS_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))

/* ---- the calls ---- */

static const char *const devices[][2] = {
    { "null", "/dev/null" }, { "zero", "/dev/zero" }, { "full", "/dev/full" },
    { "random", "/dev/random" }, { "urandom", "/dev/urandom" }, { "tty", "/dev/tty" },
};
static const char *const links[][2] = {
    { "/proc/self/fd", "fd" }, { "/proc/self/fd/0", "stdin" }, { "/proc/self/fd/1", "stdout" },
    { "/proc/self/fd/2", "stderr" }, { "pts/ptmx", "ptmx" },
};
enum { DEVICES = sizeof devices / sizeof *devices, LINKS = sizeof links / sizeof *links };
enum { HIDDEN = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC };

static void
put(struct ck_frame *frame, const char *path, const char *text)
{
    long fd = MUST(openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0666, 0);

    MUST(write, fd, text, strlen(text), 0, 0);
    MUST(close, fd, 0, 0, 0, 0);
}

/* A file system that is mounted nowhere yet. Options are pairs that end with NULL; an option
 * without a value is a flag. */
static long
file_system(struct ck_frame *frame, const char *kind, const char *const *options, long flags)
{
    long context = MUST(fsopen, kind, FSOPEN_CLOEXEC, 0, 0, 0);

    for (; *options; options += 2)
        MUST(fsconfig, context, options[1] ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, options[0],
             options[1], 0);
    MUST(fsconfig, context, FSCONFIG_CMD_CREATE, 0, 0, 0);
    long tree = MUST(fsmount, context, FSMOUNT_CLOEXEC, flags, 0, 0);
    MUST(close, context, 0, 0, 0, 0);
    return tree;
}

/* A tree in the root, where its place is made if it is missing. */
static void
attach(struct ck_frame *frame, long tree, long root, const char *name)
{
    static const struct open_how inside = {
        .flags = O_PATH | O_CLOEXEC | O_DIRECTORY,
        .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
    };
    long mask = MUST(umask, 022, 0, 0, 0, 0);

    ck_syscall(SYS_mkdirat, root, (long)name, 0755, 0, 0, 0);
    long place = MUST(openat2, root, name, &inside, sizeof inside, 0);
    MUST(umask, mask, 0, 0, 0, 0);
    MUST(move_mount, tree, "", place, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
    MUST(close, place, 0, 0, 0, 0);
}

/* A tree in a directory of ours, where nobody else can have put a link. */
static void
attach_here(struct ck_frame *frame, long tree, long directory, const char *name)
{
    MUST(move_mount, tree, "", directory, name, MOVE_MOUNT_F_EMPTY_PATH);
    MUST(close, tree, 0, 0, 0, 0);
}

static void
make_dev(struct ck_frame *frame, long root)
{
    static const char *const of_dev[] = { "mode", "755", "size", "64k", NULL };
    static const char *const of_pts[] = { "newinstance", NULL, "mode", "620", "ptmxmode", "666", NULL };
    static const char *const of_shm[] = { "mode", "1777", NULL };
    static const struct mount_attr device = {
        .attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC,
    };
    long dev = file_system(frame, "tmpfs", of_dev, HIDDEN | MOUNT_ATTR_NODEV);
    long mask = MUST(umask, 022, 0, 0, 0, 0);

    MUST(mkdirat, dev, "pts", 0755, 0, 0);
    MUST(mkdirat, dev, "shm", 0755, 0, 0);
    for (int i = 0; i < DEVICES; i++)
        MUST(mknodat, dev, devices[i][0], S_IFREG | 0666, 0, 0);
    for (int i = 0; i < LINKS; i++)
        MUST(symlinkat, links[i][0], dev, links[i][1], 0, 0);
    MUST(umask, mask, 0, 0, 0, 0);
    attach(frame, dev, root, "dev");
    for (int i = 0; i < DEVICES; i++) {
        long tree = MUST(open_tree, AT_FDCWD, devices[i][1], OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC,
                         0, 0);
        MUST(mount_setattr, tree, "", AT_EMPTY_PATH, &device, sizeof device);
        attach_here(frame, tree, dev, devices[i][0]);
    }
    attach_here(frame, file_system(frame, "devpts", of_pts, HIDDEN), dev, "pts");
    attach_here(frame, file_system(frame, "tmpfs", of_shm, HIDDEN | MOUNT_ATTR_NODEV), dev, "shm");
    MUST(close, dev, 0, 0, 0, 0);
}

static void
make_mounts(struct ck_frame *frame, const char *path)
{
    static const char *const none[] = { NULL };
    static const char *const of_tmp[] = { "mode", "1777", NULL };
    static const struct mount_attr read_only = { .attr_set = MOUNT_ATTR_RDONLY };

    MUST(mount, NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
    long root = MUST(open_tree, AT_FDCWD, path,
                     OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE, 0, 0);
    MUST(mount_setattr, root, "", AT_EMPTY_PATH | AT_RECURSIVE, &read_only, sizeof read_only);
    MUST(move_mount, root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH);
    long tree = file_system(frame, "proc", none, HIDDEN | MOUNT_ATTR_NODEV);
    attach(frame, tree, root, "proc");
    MUST(close, tree, 0, 0, 0, 0);
    make_dev(frame, root);
    tree = file_system(frame, "tmpfs", of_tmp, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
    attach(frame, tree, root, "tmp");
    MUST(close, tree, 0, 0, 0, 0);
    MUST(fchdir, root, 0, 0, 0, 0);
    MUST(pivot_root, ".", ".", 0, 0, 0);
    MUST(umount2, ".", MNT_DETACH, 0, 0, 0);
    MUST(chdir, "/", 0, 0, 0, 0);
    MUST(close, root, 0, 0, 0, 0);
}

void
ck_child(struct ck_frame *frame)
{
    static const struct { uint64_t handler, flags, restorer, mask; } by_default;
    const struct sandbox *sandbox = frame->sandbox;
    const struct sock_fprog filter = { sandbox->instructions, (struct sock_filter *)sandbox->filter };

    MUST(close_range, 3, ~0U, CLOSE_RANGE_UNSHARE, 0, 0);
    put(frame, "/proc/self/uid_map", sandbox->uid_map);
    put(frame, "/proc/self/setgroups", "deny");
    put(frame, "/proc/self/gid_map", sandbox->gid_map);
    MUST(sethostname, sandbox->hostname, strlen(sandbox->hostname), 0, 0, 0);
    make_mounts(frame, sandbox->root);
    for (int fd = 0; fd < 3; fd++)
        MUST(fcntl, fd, F_SETFD, 0, 0, 0);
    MUST(close_range, 3, ~0U, 0, 0, 0);
    MUST(rt_sigaction, SIGPIPE, &by_default, 0, SIGSET_SIZE, 0);
    MUST(rt_sigaction, SIGXFSZ, &by_default, 0, SIGSET_SIZE, 0);
    MUST(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    MUST(seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter, 0, 0);
    MUST(rt_sigprocmask, SIG_SETMASK, &frame->mask, 0, SIGSET_SIZE, 0);
    MUST(execve, sandbox->argv[0], sandbox->argv, sandbox->envp, 0, 0);
    __builtin_unreachable();
}

int64_t
sandbox_run(const struct sandbox *sandbox)
{
    static char *stack;
    const uint64_t all = ~(uint64_t)0;
    struct ck_frame frame = { .sandbox = sandbox };
    struct rusage usage;
    siginfo_t info;
    int pidfd = -1;

    if (!stack)
        stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    int64_t before = now();
    struct clone_args args = {
        .flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_CLEAR_SIGHAND | CLONE_FILES
                 | NAMESPACES | (sandbox->cgroup < 0 ? 0 : CLONE_INTO_CGROUP),
        .pidfd = (uintptr_t)&pidfd,
        .exit_signal = SIGCHLD,
        .stack = (uintptr_t)stack,
        .stack_size = STACK_SIZE,
        .cgroup = sandbox->cgroup < 0 ? 0 : sandbox->cgroup,
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
    if (frame.error)
        return frame.error;
    return info.si_status == 0 ? now() - before : -ECHILD;
}
