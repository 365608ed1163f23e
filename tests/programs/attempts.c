/* Makes one system call after the other, each in a process of its own, and prints a line for each:
 * its name and the errno that it gave, or `done`, or the signal that it died of.
 *
 * No call here does any harm where it is allowed: it lacks an argument that it would need. Which
 * error the kernel then gives does not matter. A filter's answer differs from it, or, where both
 * are EPERM, is the same in any case. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/bpf.h>
#include <linux/keyctl.h>
#include <linux/seccomp.h>

/* Numbers that are the same on all machines, for headers that are older. */
enum { MAP_SHADOW_STACK = 453, FCHMODAT2 = 452, CACHESTAT = 451, LISTMOUNT = 458, MSEAL = 462,
       SETXATTRAT = 463, UNKNOWN = 900 };
enum { X32 = 0x40000000, X32_PTRACE = 521 };
/* No process has this number. */
enum { NOBODY = 0x7fffffff };

struct attempt {
    const char *name;
    long (*call)(long number, const long *arguments);
    long number;
    long arguments[6];
};

static long
native(long number, const long *a)
{
    return syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]) < 0 ? errno : 0;
}

#ifdef __x86_64__
/* A call of the 32-bit ABI. */
static long
x86(long number, const long *a)
{
    long result;

    __asm__ volatile("int $0x80" : "=a"(result)
                     : "a"(number), "b"(a[0]), "c"(a[1]), "d"(a[2]), "S"(a[3]), "D"(a[4])
                     : "memory");
    return (int)result < 0 ? -(int)result : 0;
}
#endif

static void
make(const struct attempt *attempt)
{
    int status;
    pid_t pid = fork();

    /* A call that makes a process comes back twice: to us and to the new one. */
    if (pid == 0)
        _exit((int)attempt->call(attempt->number, attempt->arguments));
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        printf("%s: not tried: %s\n", attempt->name, strerrorname_np(errno));
    else if (WIFSIGNALED(status))
        printf("%s: SIG%s\n", attempt->name, sigabbrev_np(WTERMSIG(status)));
    else if (WEXITSTATUS(status) == 0)
        printf("%s: done\n", attempt->name);
    else
        printf("%s: %s\n", attempt->name, strerrorname_np(WEXITSTATUS(status)));
    fflush(stdout);
}

/* Stands for an argument that no call can use. */
#define NONE (-1)
#define CALL(name, ...) { #name, native, SYS_##name, { __VA_ARGS__ } }
#define LIKE(text, name, ...) { text, native, SYS_##name, { __VA_ARGS__ } }

int
main(void)
{
    const long root = (long)"/", nowhere = (long)"/nowhere", here = AT_FDCWD;
    static long zeros[16];
    static struct sigevent event;
    const struct attempt attempts[] = {
        /* mounts and namespaces */
        CALL(mount, 0, root, 0, MS_PRIVATE),
        CALL(umount2, nowhere),
        CALL(pivot_root, nowhere, nowhere),
        CALL(chroot, root),
        CALL(unshare, 0),
        LIKE("unshare user", unshare, CLONE_NEWUSER),
        LIKE("unshare mount", unshare, CLONE_NEWNS),
        LIKE("unshare files", unshare, CLONE_FILES),
        CALL(setns, NONE),
        LIKE("setns pidfd", setns, NONE, CLONE_NEWUSER),
        CALL(open_tree, here, root, OPEN_TREE_CLONE),
        CALL(move_mount, NONE, root, NONE, root),
        CALL(fsopen, nowhere),
        CALL(fsconfig, NONE),
        CALL(fsmount, NONE),
        CALL(fspick, NONE, nowhere),
        CALL(mount_setattr, NONE, root),
        { "listmount", native, LISTMOUNT, { 0 } },
        { "setxattrat", native, SETXATTRAT, { NONE, nowhere } },
        CALL(sethostname, (long)"shark", 5),
        CALL(setdomainname, (long)"shark", 5),
        /* processes */
        LIKE("clone", clone, SIGCHLD),
        LIKE("clone user", clone, CLONE_NEWUSER | SIGCHLD),
        LIKE("clone net", clone, CLONE_NEWNET | SIGCHLD),
        LIKE("clone files", clone, CLONE_FILES | SIGCHLD),
        CALL(clone3, (long)zeros, 64),
        LIKE("clone3 of no size", clone3, 0, 0),
        CALL(ptrace, PTRACE_TRACEME),
        LIKE("ptrace attach", ptrace, PTRACE_ATTACH, NOBODY),
        CALL(process_vm_readv, 1, 0, 0, 0, 0, 0),
        CALL(process_vm_writev, 1, 0, 0, 0, 0, 0),
        CALL(process_madvise, NONE),
        CALL(process_mrelease, NONE),
        CALL(kcmp, 1, 1, 1, 0, 0),
        CALL(pidfd_open, 1),
        CALL(pidfd_getfd, NONE),
        CALL(pidfd_send_signal, NONE),
        CALL(personality, 0),
        LIKE("personality linux32", personality, 8),
        LIKE("personality uname26", personality, 0x20000),
        LIKE("personality linux32, uname26", personality, 0x20008),
        LIKE("personality asked", personality, 0xffffffff),
        LIKE("personality no randomization", personality, 0x40000),
        LIKE("personality svr4", personality, 4),
        LIKE("personality beyond 32 bits", personality, (long)0x100000008),
        CALL(prctl, 3),
        CALL(seccomp, SECCOMP_GET_ACTION_AVAIL, 0, (long)zeros),
        CALL(rseq, 0),
        CALL(membarrier, 0),
        CALL(futex_waitv, 0, 0, 0, 0, 0),
        CALL(setuid, 0),
        CALL(setresgid, 0, 0, 0),
        CALL(capset, 0, 0),
        CALL(getpriority, 0, 0),
        CALL(ioprio_set, 1, 0, NONE),
        CALL(sched_setattr, 0, 0),
        CALL(timer_create, NONE, (long)&event, 0),
        /* keys */
        CALL(keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0),
        CALL(add_key, (long)"user", (long)"shark", root, 1, KEY_SPEC_PROCESS_KEYRING),
        CALL(request_key, (long)"user", (long)"nobody's", 0, 0),
        /* what looks into the kernel, or into others */
        CALL(bpf, BPF_MAP_CREATE, 0, 0),
        CALL(perf_event_open, 0, 0, NONE, NONE, 0),
        CALL(userfaultfd, NONE),
        CALL(io_uring_setup, 1, 0),
        CALL(io_uring_enter, NONE),
        CALL(io_uring_register, NONE),
        CALL(syslog, 10, 0, 0),
        CALL(lookup_dcookie, 0, 0, 0),
        CALL(fanotify_init, NONE),
        CALL(fanotify_mark, NONE),
        CALL(inotify_init1, NONE),
        CALL(name_to_handle_at, here, root, 0, 0, 0),
        CALL(open_by_handle_at, NONE, 0, 0),
        CALL(landlock_create_ruleset, 0, 0, 1),
        CALL(memfd_create, root, NONE),
        CALL(memfd_secret, NONE),
        CALL(get_mempolicy, 0, 0, 0, 0, 0),
        CALL(set_mempolicy, 0, 0, 0),
        CALL(mbind, 0, 0, 0, 0, 0, 0),
        CALL(move_pages, 0, 0, 0, 0, 0, 0),
        CALL(migrate_pages, 0, 0, 0, 0),
        CALL(remap_file_pages, 0, 0, 0, 0, 0),
        { "map_shadow_stack", native, MAP_SHADOW_STACK, { 0, 0, 0 } },
        { "cachestat", native, CACHESTAT, { NONE } },
        { "mseal", native, MSEAL, { 1, 0, NONE } },
        /* sockets */
        CALL(socket, AF_UNIX, SOCK_STREAM),
        LIKE("socket inet", socket, AF_INET, SOCK_DGRAM),
        LIKE("socket inet6", socket, AF_INET6, SOCK_DGRAM),
        LIKE("socket netlink", socket, AF_NETLINK, SOCK_RAW),
        LIKE("socket audit", socket, AF_NETLINK, SOCK_RAW, 9),
        LIKE("socket packet", socket, AF_PACKET, SOCK_RAW),
        LIKE("socket alg", socket, AF_ALG, SOCK_SEQPACKET),
        LIKE("socket vsock", socket, AF_VSOCK, SOCK_STREAM),
        LIKE("socket vsock with more bits", socket, AF_VSOCK | (1L << 32), SOCK_STREAM),
        LIKE("socket of no family", socket, NONE),
        CALL(socketpair, AF_UNIX, SOCK_STREAM, 0, 0),
        CALL(sendmmsg, NONE),
        /* the machine */
        CALL(reboot, 0, 0, 0, 0),
        CALL(kexec_load, 0, 0, 0, 0),
        CALL(kexec_file_load, NONE, NONE, 0, 0, 0),
        CALL(init_module, 0, 0, 0),
        CALL(finit_module, NONE, 0, 0),
        CALL(delete_module, nowhere, 0),
        CALL(swapon, nowhere, 0),
        CALL(swapoff, nowhere),
        CALL(acct, nowhere),
        CALL(quotactl, NONE, 0, 0, 0),
        CALL(quotactl_fd, NONE, 0, 0, 0),
        CALL(settimeofday, NONE, 0),
        CALL(clock_settime, 0, NONE),
        CALL(adjtimex, NONE),
        CALL(clock_adjtime, NONE, 0),
        CALL(vhangup),
        CALL(nfsservctl, 0, 0, 0),
        /* files */
        LIKE("mknodat fifo", mknodat, here, (long)"/tmp/fifo", S_IFIFO | 0600, 0),
        LIKE("mknodat device", mknodat, here, (long)"/tmp/null", S_IFCHR | 0600, makedev(1, 3)),
        CALL(openat2, here, root, 0, 0),
        CALL(statx, here, root, 0, 0, 0),
        CALL(close_range, 100, 0, 0),
        CALL(copy_file_range, NONE, 0, NONE, 0, 0, 0),
        CALL(fallocate, NONE, 0, 0, 0),
        { "fchmodat2", native, FCHMODAT2, { NONE, nowhere, 0, 0 } },
        { "a call that nobody knows", native, UNKNOWN, { 0 } },
#ifdef __x86_64__
        CALL(arch_prctl, 0x1003, (long)zeros),
        CALL(modify_ldt, 0, 0, 0),
        CALL(iopl, 0),
        CALL(ioperm, 0, 1, 0),
        CALL(mknod, (long)"/tmp/other", S_IFIFO | 0600, 0),
        CALL(ustat, 0, 0),
        CALL(sysfs, 3),
        CALL(uselib, nowhere),
        CALL(create_module, 0, 0),
        CALL(epoll_wait_old, 0),
        /* the other ABIs of the machine */
        { "x86 getpid", x86, 20, { 0 } },
        { "x86 mount", x86, 21, { 0 } },
        { "x86 umount", x86, 22, { 0 } },
        { "x86 ptrace", x86, 26, { PTRACE_ATTACH, NOBODY } },
        { "x86 socketcall", x86, 102, { 0 } },
        { "x86 clone net", x86, 120, { CLONE_NEWNET | SIGCHLD } },
        { "x86 personality", x86, 136, { 0xffffffff } },
        { "x86 personality svr4", x86, 136, { 4 } },
        { "x86 keyctl", x86, 288, { 0 } },
        { "x86 clone3", x86, 435, { 0 } },
        { "x32 getpid", native, X32 | SYS_getpid, { 0 } },
        { "x32 mount", native, X32 | SYS_mount, { 0 } },
        { "x32 keyctl", native, X32 | SYS_keyctl, { 0 } },
        { "x32 ptrace", native, X32 | X32_PTRACE, { PTRACE_ATTACH, NOBODY } },
#endif
    };

    for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++)
        make(&attempts[i]);
    return 0;
}
