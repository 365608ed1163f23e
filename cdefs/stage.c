/* The first stage: a whole program of its own, static and without libc, that carries out the rest
 * of a list of records in a memory that is not shared, and then execs the target.
 *
 * It is what a child execs first when the list sets what is kept with the memory, joins a namespace
 * that a sharer cannot, or wants an init. It finds the records at one address, in a file that its
 * parent has laid out and reads the report from. The hazards, and what answers each:
 *
 * S1  Whoever may trace it holds the descriptors that the list still needs, and is ahead of its
 *     filter. It is not dumpable from its first call on; where ids may have changed, from its exec
 *     on, as its file cannot be read (staged.py).
 * S2  Its parent may believe nothing of what it finds in the shared file but numbers.
 *     Nothing there is followed as an address by the parent, and a pid must be a child's (staged.py).
 * S3  A hostile program reaches the file that it runs from, by /proc/PID/exe.
 *     That is a sealed memfd, of no use to anybody else.
 * S4  A descriptor that init keeps is one whose other end never sees its end.
 *     It closes all, and unmaps the records.
 * S5  As the first process of a PID namespace it gets no signal that it does not take, and must
 *     reap whoever is left without a parent.
 *     All signals stay blocked, which keeps them from being ignored, and are taken one by one.
 * S6  It may be killed between the clone of another and the note of who that is.
 *     The kernel writes the note, before the other runs (CLONE_PARENT_SETTID, namespaces.py).
 * S7  Where SIGCHLD is ignored, nobody learns how a child ended.
 *     It has its default around the clone, and init keeps that.
 */
#include <stddef.h>
#include <stdint.h>

#include <asm/unistd.h>
#include <linux/prctl.h>
#include <linux/sched.h>

#define CK_STAGE
#include "arch.h"
#include "record.h"
#include "run.h"
#include "own.h"

enum {
    EXIT_STATUS = 127, BY_SIGNAL = 128, SIGHUP_ = 1, SIGCHLD_ = 17, WNOHANG_ = 1, SIGSET_SIZE_ = 8,
    PROT_READ_WRITE = 3, MAP_SHARED_ = 1, MAP_FIXED_NOREPLACE_ = 0x100000, SEEK_END_ = 2,
    INFO_SIZE = 128, ENOSYS_ = 38, MOST_RECORDS = 1 << 30,
};

/* struct kernel_sigaction: all zero is the default. */
static const uint64_t as_by_default[8];

static __attribute__((noreturn)) void
leave(long status)
{
    ck_syscall(__NR_exit_group, status, 0, 0, 0, 0, 0);
    __builtin_trap();
}

/* Give signals to the program and reap, until the program ends; end with its status. The kernel
 * then ends all others of the namespace. */
static __attribute__((noreturn)) void
be_init(long program)
{
    const uint64_t all = ~(uint64_t)0;
    const int leads = ck_syscall(__NR_getsid, 0, 0, 0, 0, 0, 0) ==
                      ck_syscall(__NR_getpid, 0, 0, 0, 0, 0, 0);
    volatile int32_t info[INFO_SIZE / 4];
    int32_t status;
    long signal, pid;

    ck_syscall(__NR_munmap, CK_PLAN_AT, MOST_RECORDS, 0, 0, 0, 0);          /* S4 */
    ck_syscall(__NR_close_range, 0, ~0U, 0, 0, 0, 0);
    for (;;) {                                                              /* S5 */
        signal = ck_syscall(__NR_rt_sigtimedwait, (long)&all, (long)info, 0, SIGSET_SIZE_, 0, 0);
        if (signal == SIGCHLD_) {
            while ((pid = ck_syscall(__NR_wait4, -1, (long)&status, WNOHANG_, 0, 0, 0)) > 0)
                if (pid == program)
                    leave(status & 0x7f ? BY_SIGNAL + (status & 0x7f) : status >> 8 & 0xff);
        } else if (signal > 0 && (info[2] <= 0 || (signal == SIGHUP_ && leads)))
            /* By si_code, a process's. The terminal's reach the program anyway, but that it is gone
             * is told to the leader of the session alone. */
            ck_syscall(__NR_kill, program, signal, 0, 0, 0, 0);
    }
}

/* A clone is a fork, whose copy goes on with the records. With CLONE_PARENT it takes our place;
 * else we are its init. */
static inline int
make_call(struct ck_frame *frame, const struct ck_record *record, const long *operands, long *result)
{
    const int forks = record->nr == __NR_clone;
    uint64_t kept[8];

    (void)frame;
    if (forks)                                                              /* S7 */
        ck_syscall(__NR_rt_sigaction, SIGCHLD_, (long)as_by_default, (long)kept, SIGSET_SIZE_, 0, 0);
    *result = ck_syscall(record->nr, operands[0], operands[1], operands[2], operands[3],
                         operands[4], operands[5]);
    if (!forks)
        return 0;
    if (*result > 0 && operands[0] & CLONE_PARENT)
        leave(0);
    if (*result > 0)
        be_init(*result);
    ck_syscall(__NR_rt_sigaction, SIGCHLD_, (long)kept, 0, SIGSET_SIZE_, 0, 0);
    return 0;
}

static inline void
ask(struct ck_frame *frame, uint32_t record)
{
    (void)frame;
    (void)record;
}

static inline long
answer(struct ck_frame *frame, long awake)
{
    (void)frame;
    (void)awake;
    return -ENOSYS_;
}

/* The descriptor of the records: each argument holds one byte of it, the lowest first. Whoever looks
 * at /proc/PID/cmdline later sees none. */
static long
descriptor_in(char *const *arguments)
{
    long fd = 0;

    for (int n = 0; n < 3 && arguments[n]; n++) {
        fd |= (long)(unsigned char)arguments[n][0] << 8 * n;
        *(volatile char *)arguments[n] = 0;
    }
    return fd;
}

__attribute__((noreturn, used)) void
ck_stage(const long *stack)
{
    struct ck_frame *const frame = (struct ck_frame *)CK_PLAN_AT;
    long fd, size;

    ck_syscall(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0, 0);                 /* S1 */
    if (stack[0] != 4)
        leave(EXIT_STATUS);
    fd = descriptor_in((char *const *)(stack + 2));
    size = ck_syscall(__NR_lseek, fd, 0, SEEK_END_, 0, 0, 0);
    if (size <= 0 || ck_syscall(__NR_mmap, CK_PLAN_AT, size, PROT_READ_WRITE,
                                MAP_SHARED_ | MAP_FIXED_NOREPLACE_, fd, 0) != CK_PLAN_AT)
        leave(EXIT_STATUS);
    ck_syscall(__NR_close, fd, 0, 0, 0, 0, 0);
    *(volatile uint32_t *)&frame->report.state = CK_RUNNING;
    *(volatile uint32_t *)&frame->report.ended = run(frame, 0);
    leave(EXIT_STATUS);
}
