/* The parent's part of a spawn: memory for the child, the clone, and what became of it.
 *
 * libc is allowed here. The hazards H1 to H13 are the child's (machine.c); the parent has its own:
 *
 * P1  A signal that arrives between clone and exec must not reach a handler in the child.
 *     All signals, libc's internal ones too, are blocked by the raw call around the clone.
 * P2  The parent must become dumpable again, but never while a child of lesser credentials still
 *     has this memory. The kernel releases a parent *before* it takes the old memory from the
 *     child, so waking up does not prove it: has_left_our_memory() does (guard.c).
 * P3  Another thread may fork in mid-spawn. The lock is held across fork by at-fork hooks, and
 *     the copy gets its dumpable flag back there (guard.c).
 * P4  A failed child is reaped by its pidfd, never by a number that could mean another process.
 * P5  A real-time parent that spins can starve the child that it waits for. It sleeps instead.
 * P6  Another thread may give up our ids in mid-spawn, and libc's broadcast reaches this thread by a
 *     signal; the kernel then makes us untraceable, for good. The guard is raised and lowered with
 *     all signals blocked, and is not lowered by a thread that has other ids than when it rose.
 *     A thread that the broadcast has not reached yet may lower it and make us dumpable once more,
 *     until its own ids change. A thread that has the new ones already must not take that for how
 *     we were: it believes it only when all threads have its ids.
 * P7  A child that waits may die at any moment, also between our look at its state and our order.
 *     An order is given by exchanging the state that was seen: what the kernel wrote is not lost
 *     (driven.c).
 *     An order is not given to a child that is at one: it reads what we would free.
 * P8  The kernel does not clear the cell of a child that dumps core before Linux 5.16, so waiting
 *     for it alone could last for ever. The pidfd is looked at, too, now and then (driven.c).
 * P9  We may not be allowed to kill a child that has other ids by now (no CAP_KILL), and must not
 *     wait for it then; nor may we order one about that has the ids which we have given up.
 *     A refused kill is an error, and its memory stays its own; orders need the same uid (driven.c).
 * P10 A copy of us (fork) has a copy of all this, but no child and no guard of its own.
 *     The hooks of P3 forget the guard; ck_fork_like, which they do not see, does so itself; the
 *     handles refuse to work in another process than theirs (child.py).
 * P11 A handler of ours, or another thread against the rule, may end a child while its order is
 *     waited for. Whoever waits holds its memory: it is killed, and freed when that is over; a
 *     child that is freed is gone for whoever comes back (driven.c).
 * P12 Whoever asks to trace a child may have been found to be allowed by the state of our memory, and
 *     is judged by the child's credentials a moment later, when both have changed.
 *     The kernel holds the child's lock meanwhile. A record takes it, between the guard and the
 *     change (untraceable.py); a child made after the guard has risen needs none.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/sched.h>

#include "arch.h"
#include "child.h"

extern HIDDEN long
ck_clone(long nr, long a, long b, long c, struct ck_frame *frame, long child_tid);

enum {
    PAGE = 65536,                       /* the largest page of either architecture */
    STACK_SIZE = PAGE,
    FRAME_SIZE = PAGE,
    POOLED = 8,
    SIGNALS = 64,
};

/* ---- memory for one child: a guard page, its stack, its frame ---- */

static char *pool[POOLED];

static size_t
aligned(size_t size)
{
    return (size + 15) & ~(size_t)15;
}

size_t
ck_room_of(const struct ck_program *program)
{
    return aligned(8 * (size_t)program->register_count) + aligned(program->scratch_size);
}

void *
ck_room_in(struct ck_frame *frame)
{
    return (char *)frame + aligned(sizeof *frame);
}

struct ck_frame *
ck_frame_in(char *memory)
{
    return (struct ck_frame *)(memory + PAGE + STACK_SIZE);
}

char *
ck_take_memory(const struct ck_program *program, size_t *size)
{
    size_t frame = aligned(sizeof(struct ck_frame)) + ck_room_of(program);
    char *memory;

    *size = frame = (frame + PAGE - 1) & ~(size_t)(PAGE - 1);
    if (frame == FRAME_SIZE)
        for (int i = 0; i < POOLED; i++) {
            memory = __atomic_exchange_n(&pool[i], NULL, __ATOMIC_ACQ_REL);
            if (memory)
                return memory;
        }
    memory = mmap(NULL, PAGE + STACK_SIZE + frame, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    if (mprotect(memory, PAGE, PROT_NONE) != 0) {
        munmap(memory, PAGE + STACK_SIZE + frame);
        return NULL;
    }
    return memory;
}

void
ck_give_memory(char *memory, size_t size)
{
    if (size == FRAME_SIZE)
        for (int i = 0; i < POOLED; i++) {
            char *empty = NULL;
            if (__atomic_compare_exchange_n(&pool[i], &empty, memory, 0, __ATOMIC_ACQ_REL,
                                            __ATOMIC_RELAXED))
                return;
        }
    munmap(memory, PAGE + STACK_SIZE + size);
}

/* ---- what the child is given ---- */

/* clone(2) has no CLONE_CLEAR_SIGHAND: say what each disposition would be after it. */
struct kernel_sigaction {
    uintptr_t handler;
    unsigned long flags;
    uintptr_t restorer;
    uint64_t mask;
};

static void
cleared_dispositions(struct kernel_sigaction *actions)
{
    for (int signal = 1; signal <= SIGNALS; signal++) {
        struct kernel_sigaction now = { 0 };
        ck_syscall(SYS_rt_sigaction, signal, 0, (long)&now, SIGSET_SIZE, 0, 0);
        actions[signal - 1] = (struct kernel_sigaction){
            .handler = now.handler == (uintptr_t)SIG_IGN ? (uintptr_t)SIG_IGN : 0
        };
    }
}

void
ck_lay_out(struct ck_frame *frame, void *room, const struct ck_program *program,
           const int64_t *inputs, uint64_t mask)
{
    frame->records = program->records;
    frame->image = program->image;
    frame->registers = room;
    frame->scratch = (uint8_t *)room + aligned(8 * (size_t)program->register_count);
    frame->count = program->count;
    for (uint32_t i = 0; i < program->input_count; i++)
        frame->registers[i] = inputs[i];
    memset(frame->registers + program->input_count, 0xff,
           8 * (size_t)(program->register_count - program->input_count));
    if (program->scratch_size)
        memcpy(frame->scratch, program->scratch, program->scratch_size);
    for (uint32_t i = 0; i < program->relocation_count; i++) {
        const struct ck_relocation *relocation = &program->relocations[i];
        uint64_t value;
        memcpy(&value, frame->scratch + relocation->offset, sizeof value);
        value += relocation->target == CK_IMAGE ? (uintptr_t)frame->image
                                                : (uintptr_t)frame->scratch;
        memcpy(frame->scratch + relocation->offset, &value, sizeof value);
    }
    if (program->mask_at >= 0)
        memcpy(frame->scratch + program->mask_at, &mask, sizeof mask);
    if (program->dispositions_at >= 0)
        cleared_dispositions((struct kernel_sigaction *)(frame->scratch +
                                                         program->dispositions_at));
}

int
ck_all_open(const struct ck_program *program, struct ck_outcome *outcome)
{
    for (uint32_t i = 0; i < program->kept_count; i++)
        if (fcntl(program->kept[i], F_GETFD) < 0) {
            outcome->stage = CK_NOT_OPEN;
            outcome->record = (uint32_t)program->kept[i];
            outcome->result = -EBADF;
            return 0;
        }
    return 1;
}

uint64_t
ck_block_signals(void)
{
    const uint64_t all = ~(uint64_t)0;
    uint64_t mask;

    ck_syscall(SYS_rt_sigprocmask, SIG_BLOCK, (long)&all, (long)&mask, SIGSET_SIZE, 0, 0);
    return mask;
}

void
ck_restore_signals(uint64_t mask)
{
    ck_syscall(SYS_rt_sigprocmask, SIG_SETMASK, (long)&mask, 0, SIGSET_SIZE, 0, 0);
}

/* ---- the clone, and what became of the child ---- */

int64_t
ck_start(const struct ck_program *program, const int64_t *inputs, char *memory, int32_t *pidfd)
{
    char *stack = memory + PAGE;
    struct ck_frame *frame = ck_frame_in(memory);
    long cell = (long)&frame->report.state;

    if (program->without_clone3)
        return ck_clone(SYS_clone, (long)(program->clone_flags | program->exit_signal),
                        (long)(stack + STACK_SIZE), (long)pidfd, frame, cell);
    struct clone_args args = {
        .flags = program->clone_flags,
        .pidfd = (uintptr_t)pidfd,
        .child_tid = (uintptr_t)cell,
        .exit_signal = program->exit_signal,
        .stack = (uintptr_t)stack,
        .stack_size = STACK_SIZE,
        .cgroup = program->cgroup >= 0 ? (uint64_t)inputs[program->cgroup] : 0,
    };
    return ck_clone(SYS_clone3, (long)&args, sizeof args, 0, frame, 0);
}

void
ck_judge(const struct ck_program *program, const struct ck_frame *frame, int dead, int32_t pidfd,
         struct ck_outcome *outcome)
{
    struct ck_exit ended = { 0 };
    int failed = frame->report.ended == CK_FAILED;

    outcome->record = frame->report.record;
    outcome->result = frame->report.result;
    if (!dead && !failed && (program->records[frame->report.record].flags & CK_EXEC)) {
        outcome->stage = CK_SPAWNED;
        outcome->pidfd = pidfd;
        return;
    }
    outcome->stage = failed ? CK_RECORD_FAILED : CK_KILLED;
    while (ck_wait(pidfd, WEXITED | __WALL, &ended) == -EINTR)          /* P4 */
        ;
    if (!failed)
        outcome->result = ended.code == CLD_EXITED ? 0 : ended.status;
    close(pidfd);
    outcome->pidfd = -1;
}

void
ck_spawn(const struct ck_program *program, const int64_t *inputs, struct ck_stamp *trace,
         struct ck_outcome *outcome)
{
    int32_t pidfd = -1;
    uint64_t mask;
    size_t size;
    char *memory;
    int64_t pid;

    memset(outcome, 0, sizeof *outcome);
    outcome->pidfd = -1;
    if (!ck_all_open(program, outcome))
        return;
    memory = ck_take_memory(program, &size);
    if (!memory) {
        outcome->stage = CK_NO_MEMORY;
        outcome->result = -ENOMEM;
        return;
    }
    mask = ck_block_signals();                                          /* P1 */
    if (program->guard)
        ck_raise_guard(program->guard);                                 /* P6 */
    struct ck_frame *frame = ck_frame_in(memory);
    *frame = (struct ck_frame){ .trace = trace, .report = { .state = CK_RUNNING } };
    ck_lay_out(frame, ck_room_in(frame), program, inputs, mask);
    if (trace)
        outcome->clone_before = ck_cycles();
    pid = ck_start(program, inputs, memory, &pidfd);
    if (trace)
        outcome->clone_after = ck_cycles();
    if (pid < 0) {
        outcome->stage = CK_NO_CLONE;
        outcome->result = pid;
    } else {
        outcome->pid = (int32_t)pid;
        ck_judge(program, frame, 0, pidfd, outcome);
    }
    if (program->guard) {
        if (outcome->stage == CK_SPAWNED)
            ck_lower_guard_after_exec(outcome->pid, outcome->pidfd);
        else
            ck_lower_guard();
    }
    ck_restore_signals(mask);
    ck_give_memory(memory, size);
}
