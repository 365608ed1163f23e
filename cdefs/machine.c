/* The child's whole code, from clone to exec.
 *
 * It runs in a process that shares the memory of the one that made it, on the thread
 * pointer of a thread that waits or goes its own way, beside other threads that do too. It knows
 * no kernel feature by name: a program is records, a record is a system call (run.h). This file is
 * built freestanding and its object is inspected by the tests. The hazards, and what answers each:
 *
 * H1  libc here would use the parent thread's errno, locks and cached ids.
 *     No libc: system calls are made by one inline instruction.
 * H2  The compiler may call what we did not (memcpy, the stack protector, a jump table).
 *     Built with flags that forbid it; the object may have no undefined symbol.
 * H3  A write anywhere but to this spawn's own frame is a write into the parent.
 *     The only stores are to registers, scratch, report and trace, all in the frame, and
 *     to the child's own stack; the parent has checked every offset (link.c).
 * H4  A signal handler would run the parent's code on the parent's data.
 *     All signals are blocked before the clone, and no disposition is a handler before the
 *     last record lifts the block.
 * H5  A stop or a signal's default action in mid-program holds or ends the child silently.
 *     The report names the record before each call is made, so the parent can tell.
 * H6  Until the descriptor table is the child's own, closing closes for the parent.
 *     The first record of a program that shares the table is close_range with
 *     CLOSE_RANGE_UNSHARE; completion.py puts it there and nothing can come before it.
 * H7  A child of lesser credentials that shares our memory can be traced into it.
 *     Memory is made untraceable by a record before the first such change (arrange.py), or by
 *     the parent before the clone, and only the parent undoes it, after exec (guard.c). A child
 *     that waits for orders never has lesser credentials (orders.py).
 * H8  An interrupted call may or may not have been carried out.
 *     EINTR is retried only where the record says that it may be.
 * H9  Returning from here would run on a stack that has no caller, and a filter that the program
 *     has installed may refuse exit_group itself.
 *     The last thing is exit_group, then an instruction that no process survives.
 * H10 The parent reads the frame and writes the next order as soon as the state says that this one
 *     is done.
 *     Nothing of the frame is read between that store and the next order but what never changes.
 * H11 A parent that dies leaves a child that waits for ever on its memory.
 *     A program that does not hold its parent begins with a parent-death signal, and sees whether
 *     the parent lives after that (completion.py). A child that waits looks for itself, too, once a
 *     second: a start that failed has lost the signal.
 * H12 While a child waits for what it has asked of its parent, a filter that it has installed may
 *     forbid the call by which it would sleep.
 *     Then it waits awake, without a call; not for long, and not under a real-time policy.
 * H13 Until the vector is placed the child has more descriptors than the program, and a root that
 *     somebody else has written may hold a symlink to /proc/self/fd: the program would begin in a
 *     directory outside of its root (CVE-2024-21626).
 *     Paths of mounts, and of the root and directory among others' files, are looked up with
 *     RESOLVE_NO_MAGICLINKS (trees.py, steps/place.py).
 */
#include <stddef.h>
#include <stdint.h>

#include <asm/unistd.h>

#define CK_CHILD
#include "arch.h"
#include "record.h"
#include "run.h"
#include "own.h"

enum { EXIT_STATUS = 127, FUTEX_WAIT_PRIVATE_ = 128, FUTEX_WAKE_ = 1, ETIMEDOUT_ = 110,
       ECANCELED_ = 125, PAUSES = 64, AWAKE = 1 << 22 };

__attribute__((visibility("hidden"), noreturn)) void ck_child(struct ck_frame *frame);

static inline int
make_call(struct ck_frame *frame, const struct ck_record *record, const long *operands, long *result)
{
    (void)frame;
    *result = ck_syscall(record->nr, operands[0], operands[1], operands[2], operands[3],
                         operands[4], operands[5]);
    return 0;
}

/* Say how the order ended: in the cell, to whoever sleeps on it, and by the bell if there is one. */
static inline void
tell(struct ck_frame *frame, uint32_t state)
{
    const struct ck_record *bell = frame->bell;                    /* H10 */
    long result;

    __atomic_store_n(&frame->report.state, state, __ATOMIC_RELEASE);
    ck_syscall(__NR_futex, (long)&frame->report.state, FUTEX_WAKE_, 1, 0, 0, 0);
    if (bell)
        call(frame, bell, &result);
}

/* Wait until there is an order or an answer that was not taken yet: a short while awake, then
 * asleep. Where a filter refuses to let us sleep, awake. 0 when nobody is left to give one. */
static inline int
await(struct ck_frame *frame)
{
    const uint32_t served = frame->served;
    volatile int64_t second[2];         /* volatile: made here by code, not read from data (H2) */
    long result = 0;

    second[0] = 1;
    second[1] = 0;

    for (uint32_t n = frame->spins; n; n--) {
        if (__atomic_load_n(&frame->order, __ATOMIC_ACQUIRE) != served)
            break;
        if (n % PAUSES)
            ck_pause();
        else
            ck_syscall(__NR_sched_yield, 0, 0, 0, 0, 0, 0);
    }
    while (__atomic_load_n(&frame->order, __ATOMIC_ACQUIRE) == served) {
        if (ck_syscall(__NR_futex, (long)&frame->order, FUTEX_WAIT_PRIVATE_, served, (long)second,
                       0, 0) == -ETIMEDOUT_ && frame->watch)
            call(frame, frame->watch, &result);
        if (result > 0)                                            /* H11 */
            return 0;
    }
    frame->served = served + 1;
    return 1;
}

static inline void
ask(struct ck_frame *frame, uint32_t record)
{
    frame->asked = record;
    tell(frame, CK_ASKS);
}

/* H12. Awake for some 100 ms: between a filter and the answer, a call might be one that the filter
 * refuses. A parent that is not scheduled for so long needs the processor that we have. */
static inline long
answer(struct ck_frame *frame, long awake)
{
    for (uint32_t n = awake && frame->spins ? AWAKE : 0; n; n--) {                 /* P5 */
        if (__atomic_load_n(&frame->order, __ATOMIC_ACQUIRE) != frame->served)
            break;
        ck_pause();
    }
    return await(frame) ? frame->answer : -ECANCELED_;
}

void
ck_child(struct ck_frame *frame)
{
    for (;;) {
        uint32_t state = run(frame, 0);
        *(volatile uint32_t *)&frame->report.ended = state;
        if (!(frame->stays & 1u << state))
            break;
        tell(frame, state);
        if (!await(frame))
            break;
    }
    ck_syscall(__NR_exit_group, EXIT_STATUS, 0, 0, 0, 0, 0);       /* H9 */
    __builtin_trap();
}
