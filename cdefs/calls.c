/* Calls that Python cannot make itself. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "arch.h"
#include "newer.h"
#include "parent.h"

int64_t
ck_raw(int64_t nr, int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f)
{
    return ck_syscall(nr, a, b, c, d, e, f);
}

int
ck_has_clone3(void)
{
    return ck_syscall(SYS_clone3, 0, 0, 0, 0, 0, 0) != -ENOSYS;
}

int
ck_open_stdio(void)
{
    int open = 0;

    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) == 0)        /* one that is close-on-exec is nobody's stdio */
            open |= 1 << fd;
    return open;
}

/* Of a child that we trace, waitid tells stops that nobody asked for: they are no end. */
static int
is_stop(int code)
{
    return code == CLD_STOPPED || code == CLD_TRAPPED || code == CLD_CONTINUED;
}

int
ck_wait(int pidfd, int options, struct ck_exit *ended)
{
    siginfo_t info;
    long result;

    do {
        memset(&info, 0, sizeof info);
        result = ck_syscall(SYS_waitid, P_PIDFD_, pidfd, (long)&info, options,
                            (long)ended->usage, 0);
        if (result == 0 && info.si_pid && is_stop(info.si_code))
            info.si_pid = 0;
    } while (result == 0 && !info.si_pid && !(options & WNOHANG));
    ended->pid = info.si_pid;
    ended->code = info.si_code;
    ended->status = info.si_status;
    return (int)result;
}

uint64_t
ck_read_cycles(uint64_t *nanoseconds)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    *nanoseconds = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
    return ck_cycles();
}
