/* A child that is stopped after its exec, before its first instruction.
 *
 * It has a memory of its own by now. Records are run in it by the same loop as elsewhere (run.h); a
 * call is made by its own registers at an instruction that its vDSO has, so that no byte of the
 * program is touched. All of it must come from one thread: the child's tracer is the thread that
 * made it. The hazards:
 *
 * T1  A signal would start a handler of the program's, or change what it does at its start.
 *     All are blocked while it is held. SIGSTOP cannot be: it is kept, and sent again at the end.
 * T2  We may die. The kernel then kills it (PTRACE_O_EXITKILL); until that is set, its parent-death
 *     signal does (completion.py).
 * T3  A call that a signal has interrupted would be made again by the kernel, with registers that
 *     are not its own. The kernel is told that there is no call to restart; we make it again.
 * T4  It may be killed at any moment. Every wait sees that, and leaves the zombie to who reaps it.
 * T5  A filter of its own may answer a call with SIGSYS, where the registers say nothing, and the
 *     signal would end the program later. It is looked for after each call, taken away, and told
 *     as EPERM.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

#define CK_TRACER
#include "arch.h"
#include "child.h"
#include "run.h"

enum {
    IDLE = 0, ENTERING = 1, INSIDE = 2, TRAPPED = 3, LOST = 4,   /* ck_traced.stage */
    STOPPED = 1, ENDED = 2,                                     /* what look() has seen */
    SYSCALL_STOP = SIGTRAP | 0x80,
    SIGNALS = 64,
    FROM_SECCOMP = 1,                                           /* si_code: SYS_SECCOMP */
    YIELDS = 100,
    SHORT_PAUSE = 50 * 1000,                                    /* ns */
    FIRST_RESTART = 512, LAST_RESTART = 516,         /* ERESTARTSYS and its kin */
};

_Static_assert(sizeof(ck_registers) <= sizeof(((struct ck_traced *)0)->registers),
               "the registers fit");

/* From the moment at which exec takes our memory from a child until it stops, in ns: no file is
 * opened any more. */
static const int64_t LONGEST_EXEC = (int64_t)60 * 1000 * 1000 * 1000;

static long
ptrace_(long request, int pid, uintptr_t address, uintptr_t data)
{
    return ck_syscall(SYS_ptrace, request, pid, (long)address, (long)data, 0, 0);
}

static int64_t
now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* Whether it has stopped, and how, or ended, or neither. A stop is asked of ptrace: another thread's
 * wait may have taken what waitid would tell. */
static int
look(int pid, int pidfd, siginfo_t *stop)
{
    struct ck_exit ended;
    int waited;

    memset(stop, 0, sizeof *stop);
    if (ptrace_(PTRACE_GETSIGINFO, pid, 0, (uintptr_t)stop) != -ESRCH)
        return STOPPED;                             /* a group's stop has no siginfo: no signal */
    waited = ck_wait(pidfd, WEXITED | WNOHANG | WNOWAIT | __WALL, &ended);
    return waited < 0 || ended.pid ? ENDED : 0;                                     /* T4 */
}

void
ck_pass_stop(const struct ck_driven *driven)
{
    siginfo_t stop;

    /* The cell is cleared before the exec ends: a stop seen while it is not is no stop of its own. */
    if (look(driven->pid, driven->pidfd, &stop) == STOPPED &&
        __atomic_load_n(&driven->frame->report.state, __ATOMIC_ACQUIRE) == CK_RUNNING)
        ptrace_(PTRACE_CONT, driven->pid, 0, 0);
}

static int
get_registers(struct ck_traced *traced, ck_registers *registers)
{
    struct iovec place = { registers, sizeof *registers };
    long result = ptrace_(PTRACE_GETREGSET, traced->pid, NT_PRSTATUS, (uintptr_t)&place);

    if (result == 0 && place.iov_len != sizeof *registers)
        return -EOPNOTSUPP;                         /* a program of another word size */
    return (int)result;
}

static int
set_registers(struct ck_traced *traced, const void *registers)
{
    struct iovec place = { (void *)(uintptr_t)registers, sizeof(ck_registers) };

    return (int)ptrace_(PTRACE_SETREGSET, traced->pid, NT_PRSTATUS, (uintptr_t)&place);
}

static int
set_mask(struct ck_traced *traced, uint64_t mask)
{
    return (int)ptrace_(PTRACE_SETSIGMASK, traced->pid, sizeof mask, (uintptr_t)&mask);
}

/* Keep a signal that stopped it: it is let go with that (T1). */
static void
keep(struct ck_traced *traced, const siginfo_t *stop)
{
    if (stop->si_signo > 0 && stop->si_signo <= SIGNALS && stop->si_signo != SIGTRAP)
        traced->held |= (uint64_t)1 << (stop->si_signo - 1);
}

int
ck_hold(struct ck_traced *traced, int pid, int pidfd)
{
    const long options = PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD;
    int64_t until = now() + LONGEST_EXEC;
    siginfo_t stop;
    int result, seen;

    memset(traced, 0, sizeof *traced);
    traced->pid = pid;
    traced->pidfd = pidfd;
    while ((seen = look(pid, pidfd, &stop)) == 0) {
        if (now() >= until)
            return -ETIMEDOUT;
        nanosleep(&(struct timespec){ .tv_nsec = SHORT_PAUSE }, NULL);
    }
    if (seen == ENDED)
        return -ESRCH;
    keep(traced, &stop);
    result = (int)ptrace_(PTRACE_SETOPTIONS, pid, 0, (uintptr_t)options);           /* T2 */
    if (result == 0)
        result = set_mask(traced, ~(uint64_t)0);                                    /* T1 */
    return result ? result : get_registers(traced, (ck_registers *)traced->registers);
}

/* Whether a signal is pending for it, of its own or, if `shared`, of its process; with `code`, one
 * that was sent for this reason. */
static int
is_pending(const struct ck_traced *traced, int shared, int signal, int code)
{
    enum { MOST = 8 };
    siginfo_t infos[MOST];
    struct { uint64_t off; uint32_t flags; int32_t nr; } part = { 0, (uint32_t)shared, MOST };
    long count;

    while ((count = ptrace_(PTRACE_PEEKSIGINFO, traced->pid, (uintptr_t)&part,
                            (uintptr_t)infos)) > 0) {
        for (long i = 0; i < count; i++)
            if (infos[i].si_signo == signal && (!code || infos[i].si_code == code))
                return 1;
        part.off += (uint64_t)count;
    }
    return 0;
}

/* A fault at the gate: the process is not where it should be, and is not let on. */
static int
is_fault(const siginfo_t *stop)
{
    return stop->si_code > 0 && (stop->si_signo == SIGSEGV || stop->si_signo == SIGBUS ||
                                 stop->si_signo == SIGILL || stop->si_signo == SIGFPE);
}

/* Wait for a stop: the call's own, or with `signal` that of this signal; keep the signals of others.
 * 0, or 1 when it is too early or, LOST, too late. */
static int
wait_for_stop(struct ck_injection *injection, int signal)
{
    struct ck_traced *traced = injection->traced;

    for (unsigned looks = 0;; looks++) {
        siginfo_t stop;
        int seen = look(traced->pid, traced->pidfd, &stop);
        if (seen == ENDED) {
            traced->stage = LOST;
            return 1;
        }
        if (seen == STOPPED) {
            if (signal ? stop.si_signo == signal && stop.si_code == FROM_SECCOMP
                       : stop.si_code == SYSCALL_STOP)
                return 0;
            if (is_fault(&stop)) {
                ck_syscall(SYS_pidfd_send_signal, traced->pidfd, SIGKILL, 0, 0, 0, 0);
                traced->stage = LOST;
                return 1;
            }
            keep(traced, &stop);                                                    /* T1 */
            ptrace_(PTRACE_SYSCALL, traced->pid, 0, 0);
        } else if (looks < YIELDS)
            sched_yield();
        else if (now() >= injection->until)
            return 1;
        else if (nanosleep(&(struct timespec){ .tv_nsec = SHORT_PAUSE }, NULL) != 0)
            injection->until = 0;               /* a signal for us: the caller looks at it */
    }
}

static inline int
make_call(struct ck_frame *frame, const struct ck_record *record, const long *operands, long *result)
{
    struct ck_injection *injection = (struct ck_injection *)frame;
    struct ck_traced *traced = injection->traced;
    ck_registers registers;

    for (;;) {
        if (traced->stage == LOST)
            return 1;
        if (traced->stage == IDLE) {
            memcpy(&registers, traced->registers, sizeof registers);
            ck_call_registers(&registers, traced->gate, record->nr, operands);      /* T3 */
            if (set_registers(traced, &registers) != 0) {
                traced->stage = LOST;
                return 1;
            }
            traced->stage = ENTERING;
            ptrace_(PTRACE_SYSCALL, traced->pid, 0, 0);
        }
        if (traced->stage == ENTERING) {
            if (wait_for_stop(injection, 0))
                return 1;
            traced->stage = INSIDE;
            ptrace_(PTRACE_SYSCALL, traced->pid, 0, 0);
        }
        if (traced->stage == INSIDE) {
            if (wait_for_stop(injection, 0))
                return 1;
            traced->stage = TRAPPED;
            if (!is_pending(traced, 0, SIGSYS, FROM_SECCOMP))
                traced->stage = IDLE;
            else
                ptrace_(PTRACE_CONT, traced->pid, 0, 0);
        }
        if (traced->stage == TRAPPED) {                                             /* T5 */
            if (wait_for_stop(injection, SIGSYS))
                return 1;
            set_mask(traced, ~(uint64_t)0);             /* the kernel has unblocked it */
            traced->stage = IDLE;
            *result = -EPERM;
            return 0;
        }
        traced->stage = get_registers(traced, &registers) == 0 ? IDLE : LOST;
        *result = ck_call_result(&registers);
        if (*result > -FIRST_RESTART || *result < -LAST_RESTART)
            return traced->stage == LOST;
    }
}

static inline long
load(struct ck_frame *frame, unsigned long address, unsigned width)
{
    struct ck_injection *injection = (struct ck_injection *)frame;
    int64_t value = 0;

    ck_peek(injection->traced, address, (uint8_t *)&value, width);
    return width == 4 ? (int32_t)value : value;
}

/* A child that is stopped is not asked for anything: its parent acts between two orders. */
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
    return -ENOSYS;
}

static inline void
store(struct ck_frame *frame, unsigned long address, unsigned width, long value)
{
    struct ck_injection *injection = (struct ck_injection *)frame;

    ck_poke(injection->traced, address, (const uint8_t *)&value, width);
}

uint32_t
ck_inject(struct ck_injection *injection, int64_t nanoseconds)
{
    struct ck_frame *frame = &injection->frame;

    injection->until = now() + nanoseconds;
    frame->report.state = run(frame, frame->report.record);
    if (injection->traced->stage == LOST)
        frame->report.state = CK_GONE;
    return frame->report.state;
}

/* ---- its memory ---- */

/* One word where the rights of the mapping do not count, as for a debugger. */
static int
reach_word(const struct ck_traced *traced, uint64_t address, uint8_t *data, uint64_t size, int write)
{
    uint64_t start = address & ~(uint64_t)7, offset = address - start, word;
    long result = ptrace_(PTRACE_PEEKDATA, traced->pid, start, (uintptr_t)&word);

    if (result != 0)
        return (int)result;
    if (!write) {
        memcpy(data, (uint8_t *)&word + offset, size);
        return 0;
    }
    memcpy((uint8_t *)&word + offset, data, size);
    return (int)ptrace_(PTRACE_POKEDATA, traced->pid, start, word);
}

static int64_t
reach(const struct ck_traced *traced, uint64_t address, uint8_t *data, uint64_t size, int write)
{
    struct iovec ours = { data, size }, its = { (void *)address, size };
    siginfo_t stop;

    /* One that was killed may have its memory for a moment still: it is gone all the same (T4). */
    if (ptrace_(PTRACE_GETSIGINFO, traced->pid, 0, (uintptr_t)&stop) == -ESRCH)
        return -ESRCH;
    long moved = ck_syscall(write ? SYS_process_vm_writev : SYS_process_vm_readv, traced->pid,
                            (long)&ours, 1, (long)&its, 1, 0);
    uint64_t done = moved > 0 ? (uint64_t)moved : 0;

    while (done < size) {
        uint64_t within = 8 - ((address + done) & 7);
        uint64_t part = within < size - done ? within : size - done;
        int result = reach_word(traced, address + done, data + done, part, write);
        if (result != 0)
            return done ? (int64_t)done : result;
        done += part;
    }
    return (int64_t)done;
}

int64_t
ck_peek(const struct ck_traced *traced, uint64_t address, uint8_t *data, uint64_t size)
{
    return reach(traced, address, data, size, 0);
}

int64_t
ck_poke(const struct ck_traced *traced, uint64_t address, const uint8_t *data, uint64_t size)
{
    return reach(traced, address, (uint8_t *)(uintptr_t)data, size, 1);
}

/* ---- the end of it ---- */

int
ck_let_go(struct ck_traced *traced, uint64_t mask)
{
    const uint64_t stops = (uint64_t)1 << (SIGSTOP - 1) | (uint64_t)1 << (SIGTSTP - 1) |
                           (uint64_t)1 << (SIGTTIN - 1) | (uint64_t)1 << (SIGTTOU - 1);
    int result = set_registers(traced, traced->registers);

    if (result == 0 && (is_pending(traced, 0, SIGCONT, 0) || is_pending(traced, 1, SIGCONT, 0)))
        traced->held &= ~stops;                     /* it came after them, and has ended them */
    if (result == 0)
        result = set_mask(traced, mask);
    for (int signal = 1; result == 0 && signal <= SIGNALS; signal++)                /* T1 */
        if (traced->held >> (signal - 1) & 1)
            ck_syscall(SYS_pidfd_send_signal, traced->pidfd, signal, 0, 0, 0, 0);
    if (result == 0)
        result = (int)ptrace_(PTRACE_DETACH, traced->pid, 0, 0);
    return result;
}
