/* A child that does not hold its parent: a spawn with a deadline, and one that waits for orders.
 *
 * The same frame, machine, clone and verdict as in parent.c; only the waiting is ours. One cell, the
 * report's state, says all: the child stores there how an order ended, and the kernel clears it when
 * exec or the child's end takes our memory from it. Either wakes whoever sleeps on the cell. */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/futex.h>

#include "arch.h"
#include "child.h"
#include "newer.h"

enum {
    SPINS = 2000,                       /* some 20 to 60 µs: more than a sleep and a wake-up cost */
    PAUSES = 64,                        /* after which it yields to one that has no other processor */
    SLICE = 50 * 1000 * 1000,           /* ns after which the pidfd is looked at: P8 */
};

/* Awake for a moment, unless that could keep the processor from whoever is waited for: P5. */
static uint32_t
spins(void)
{
    int policy = sched_getscheduler(0);

    return policy == SCHED_OTHER || policy == SCHED_BATCH ? SPINS : 0;
}

static uint32_t
state_of(struct ck_driven *driven)
{
    return driven->memory ? __atomic_load_n(&driven->frame->report.state, __ATOMIC_ACQUIRE)
                          : (uint32_t)CK_GONE;
}

/* With all signals blocked: P6. */
static void
raise_guard(struct ck_driven *driven, uint32_t guard)
{
    if (guard) {
        ck_raise_guard(guard);
        driven->guards++;
    }
}

static void
lower_guards(struct ck_driven *driven, int has_execd)
{
    for (; driven->guards; driven->guards--) {
        if (has_execd)
            ck_lower_guard_after_exec(driven->pid, driven->pidfd);
        else
            ck_lower_guard();
    }
}

int
ck_begin(const struct ck_program *program, const int64_t *inputs, struct ck_stamp *trace,
         uint32_t stays, struct ck_driven *driven, struct ck_outcome *outcome)
{
    uint64_t mask;
    int64_t pid;

    *driven = (struct ck_driven){ .channel = driven->channel };
    memset(outcome, 0, sizeof *outcome);
    driven->pidfd = outcome->pidfd = -1;
    driven->uid = geteuid();
    driven->owner = getpid();
    if (!ck_all_open(program, outcome))
        return -1;
    driven->program = program;
    driven->memory = ck_take_memory(program, &driven->size);
    if (!driven->memory) {
        outcome->stage = CK_NO_MEMORY;
        outcome->result = -ENOMEM;
        return -1;
    }
    mask = ck_block_signals();                                          /* P1 */
    raise_guard(driven, program->guard);
    struct ck_frame *frame = driven->frame = ck_frame_in(driven->memory);
    *frame = (struct ck_frame){
        .trace = trace, .stays = stays, .spins = program->asleep ? 0 : spins(),
        .report = { .state = CK_RUNNING },
    };
    ck_lay_out(frame, ck_room_in(frame), program, inputs, mask);
    if (trace)
        outcome->clone_before = ck_cycles();
    pid = ck_start(program, inputs, driven->memory, &driven->pidfd);
    if (trace)
        outcome->clone_after = ck_cycles();
    if (pid < 0)
        lower_guards(driven, 0);
    ck_restore_signals(mask);
    if (pid >= 0) {
        outcome->pid = driven->pid = (int32_t)pid;
        return 0;
    }
    outcome->stage = CK_NO_CLONE;
    outcome->result = pid;
    ck_give_memory(driven->memory, driven->size);
    driven->memory = NULL;
    return -1;
}

/* Whether the child has ended, though the kernel did not clear the cell: P8. */
static int
has_ended(const struct ck_driven *driven)
{
    struct ck_exit ended;
    int waited = ck_wait(driven->pidfd, WEXITED | WNOHANG | WNOWAIT | __WALL, &ended);

    return waited == -ECHILD || (waited == 0 && ended.pid);
}

uint32_t
ck_attend(struct ck_driven *driven, int64_t nanoseconds)
{
    struct timespec timeout = { .tv_nsec = nanoseconds < SLICE ? nanoseconds : SLICE };
    uint32_t state;

    __atomic_add_fetch(&driven->attended, 1, __ATOMIC_ACQ_REL);                    /* P11 */
    state = state_of(driven);
    for (uint32_t n = nanoseconds ? spins() : 0; n && state == CK_RUNNING; n--) {
        if (n % PAUSES)
            ck_pause();
        else
            sched_yield();
        state = state_of(driven);
    }
    if (state == CK_RUNNING && nanoseconds > 0) {
        ck_syscall(SYS_futex, (long)&driven->frame->report.state, FUTEX_WAIT, CK_RUNNING,
                   (long)&timeout, 0, 0);
        state = state_of(driven);
    }
    if (state == CK_RUNNING && has_ended(driven))
        state = CK_GONE;
    __atomic_sub_fetch(&driven->attended, 1, __ATOMIC_ACQ_REL);
    return state;
}

/* What the child waits for has been written: it runs again, unless it has died meanwhile. */
static int
go_on(struct ck_frame *frame, uint32_t state)
{
    if (!__atomic_compare_exchange_n(&frame->report.state, &state, CK_RUNNING, 0, __ATOMIC_ACQ_REL,
                                     __ATOMIC_RELAXED))
        return -ESRCH;                                                  /* P7 */
    __atomic_add_fetch(&frame->order, 1, __ATOMIC_RELEASE);
    ck_syscall(SYS_futex, (long)&frame->order, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
    return 0;
}

int
ck_order(struct ck_driven *driven, const struct ck_program *program, const int64_t *inputs,
         uint32_t stays, const struct ck_record *bell)
{
    struct ck_frame *frame = driven->frame;
    uint32_t state = state_of(driven);
    uint64_t mask;
    void *room;

    if (driven->uid != geteuid())
        return -EPERM;                                                  /* P9 */
    if (state == CK_GONE)
        return -ESRCH;
    if (state == CK_RUNNING || state == CK_ASKS)
        return has_ended(driven) ? -ESRCH : -EBUSY;                     /* P7 */
    room = calloc(1, ck_room_of(program) + 1);
    if (!room)
        return -ENOMEM;
    mask = ck_block_signals();
    raise_guard(driven, program->guard);
    ck_restore_signals(mask);
    free(driven->room);
    driven->room = room;
    driven->program = program;
    ck_lay_out(frame, room, program, inputs, mask);
    frame->stays = stays;
    frame->bell = bell;
    frame->report.record = 0;
    frame->report.result = 0;
    frame->report.ended = CK_GONE;
    return go_on(frame, state);
}

int
ck_answer(struct ck_driven *driven, int64_t answer)
{
    if (state_of(driven) != CK_ASKS)
        return -ESRCH;
    driven->frame->answer = answer;
    return go_on(driven->frame, CK_ASKS);
}

void
ck_report(const struct ck_driven *driven, struct ck_outcome *outcome)
{
    const struct ck_report *report = &driven->frame->report;

    if (!driven->memory)
        return;
    outcome->stage = report->ended == CK_DONE ? CK_WAITS : CK_REFUSED;
    outcome->record = report->record;
    outcome->result = report->result;
}

static void
close_channel(struct ck_driven *driven)
{
    if (driven->channel >= 0)
        close(driven->channel);
    driven->channel = -1;
}

int
ck_end(struct ck_driven *driven, int dead, struct ck_outcome *outcome)
{
    uint64_t mask;
    long killed = 0;

    if (!driven->memory) {
        close_channel(driven);
        return 0;
    }
    if (dead)
        killed = ck_syscall(SYS_pidfd_send_signal, driven->pidfd, SIGKILL, 0, 0, 0, 0);
    if (killed < 0 && killed != -ESRCH && !has_ended(driven))
        return (int)killed;                                             /* P9 */
    if (__atomic_load_n(&driven->attended, __ATOMIC_ACQUIRE))
        return -EBUSY;                                                  /* P11 */
    mask = ck_block_signals();
    outcome->pid = driven->pid;
    ck_judge(driven->program, driven->frame, dead, driven->pidfd, outcome);
    lower_guards(driven, outcome->stage == CK_SPAWNED);
    ck_restore_signals(mask);
    free(driven->room);
    ck_give_memory(driven->memory, driven->size);
    driven->memory = NULL;
    driven->room = NULL;
    driven->pidfd = -1;
    close_channel(driven);
    return 0;
}

void
ck_abandon(struct ck_driven *driven)
{
    struct ck_outcome outcome;

    if (driven->memory && driven->owner != getpid())
        return;                         /* its descriptors' numbers may be those of others there */
    if (driven->memory)
        ck_end(driven, 1, &outcome);
    close_channel(driven);
}
