/* What a round trip takes: of a byte to another process, and of an order to a child that waits.
 *
 * Those that time make `before` trips that nobody counts and `count` that are counted: they return
 * the nanoseconds of CLOCK_MONOTONIC for these, or -errno. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <linux/futex.h>

#include "parent.h"

enum { SLICE = 50 * 1000 * 1000 };

static int64_t
now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* ---- of a byte ---- */

/* A process that sends back each byte that it gets: its pid, or -errno. It ends with us. */
int
trips_echo(int out, int in)
{
    char byte;
    pid_t pid = fork();

    if (pid != 0)
        return pid < 0 ? -errno : pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (read(in, &byte, 1) == 1 && write(out, &byte, 1) == 1)
        ;
    _exit(0);
}

int64_t
trips_of_byte(int out, int in, uint32_t before, uint32_t count)
{
    int64_t start = 0;
    char byte = 0;

    for (uint32_t n = 0; n < before + count; n++) {
        if (n == before)
            start = now();
        if (write(out, &byte, 1) != 1 || read(in, &byte, 1) != 1)
            return -EPIPE;
    }
    return now() - start;
}

/* ---- of an order ---- */

/* ck_attend by one who does not stay awake for a moment. */
uint32_t
trips_asleep(struct ck_driven *driven, int64_t nanoseconds)
{
    uint32_t *cell = &driven->frame->report.state;
    struct timespec timeout = { .tv_nsec = nanoseconds };

    if (__atomic_load_n(cell, __ATOMIC_ACQUIRE) == CK_RUNNING)
        syscall(SYS_futex, cell, FUTEX_WAIT, CK_RUNNING, &timeout, NULL, 0);
    return __atomic_load_n(cell, __ATOMIC_ACQUIRE);
}

/* By the functions of the extension, or by one above in the place of one. */
int64_t
trips_of_order(__typeof__(ck_order) *order, __typeof__(ck_attend) *attend,
               struct ck_driven *driven, const struct ck_program *program, const int64_t *inputs,
               uint32_t before, uint32_t count)
{
    int64_t start = 0;
    uint32_t state;

    for (uint32_t n = 0; n < before + count; n++) {
        if (n == before)
            start = now();
        if (order(driven, program, inputs, CK_STAYS, NULL) != 0)
            return -ESRCH;
        while ((state = attend(driven, SLICE)) == CK_RUNNING)
            ;
        if (state != CK_DONE)
            return -ECHILD;
    }
    return now() - start;
}
