/* The parent's part of a spawn: memory for the child, the clone, and what became of it.
 *
 * libc is allowed here. The hazards H1 to H9 are the child's (machine.c); the parent has its own:
 *
 * P1  A signal that arrives between clone and exec must not reach a handler in the child.
 *     All signals, libc's internal ones too, are blocked by the raw call around the clone.
 * P2  The parent must become dumpable again, but never while a child of lesser credentials still
 *     has this memory. The kernel releases a vforking parent *before* it takes the old memory
 *     from the child, so waking up does not prove it: has_left_our_memory() does.
 * P3  Another thread may fork in mid-spawn. The lock is held across fork by at-fork hooks, and
 *     the copy gets its dumpable flag back there.
 * P4  A failed child is reaped by its pidfd, never by a number that could mean another process.
 * P5  A real-time parent that spins can starve the child that it waits for. It sleeps instead.
 * P6  Another thread may give up our ids in mid-spawn, and libc's broadcast reaches this thread by a
 *     signal; the kernel then makes us untraceable, for good. The guard is raised and lowered with
 *     all signals blocked, and is not lowered by a thread that has other ids than when it rose.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/kcmp.h>
#include <linux/magic.h>
#include <linux/sched.h>

#include "arch.h"
#include "newer.h"
#include "parent.h"

extern __attribute__((visibility("hidden"))) long
ck_clone(long nr, long a, long b, long c, struct ck_frame *frame);

enum {
    PAGE = 65536,                       /* the largest page of either architecture */
    STACK_SIZE = PAGE,
    FRAME_SIZE = PAGE,
    POOLED = 8,
    SIGNALS = 64,
    SIGSET_SIZE = 8,
    PF_FORKNOEXEC_ = 0x40,              /* /proc/PID/stat, flags: has not exec'd since its clone */
};

/* ---- memory for one child: a guard page, its stack, its frame ---- */

static char *pool[POOLED];

static size_t
frame_size(const struct ck_program *program)
{
    size_t size = sizeof(struct ck_frame) + 8 * (size_t)program->register_count +
                  program->scratch_size + 64;
    return (size + PAGE - 1) & ~(size_t)(PAGE - 1);
}

static char *
take_memory(size_t frame)
{
    size_t size = PAGE + STACK_SIZE + frame;
    char *memory;

    if (frame == FRAME_SIZE)
        for (int i = 0; i < POOLED; i++) {
            memory = __atomic_exchange_n(&pool[i], NULL, __ATOMIC_ACQ_REL);
            if (memory)
                return memory;
        }
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    if (mprotect(memory, PAGE, PROT_NONE) != 0) {
        munmap(memory, size);
        return NULL;
    }
    return memory;
}

static void
give_memory(char *memory, size_t frame)
{
    if (frame == FRAME_SIZE)
        for (int i = 0; i < POOLED; i++) {
            char *empty = NULL;
            if (__atomic_compare_exchange_n(&pool[i], &empty, memory, 0, __ATOMIC_ACQ_REL,
                                            __ATOMIC_RELAXED))
                return;
        }
    munmap(memory, PAGE + STACK_SIZE + frame);
}

static struct ck_frame *
prepare_frame(char *memory, const struct ck_program *program, const int64_t *inputs,
              struct ck_stamp *trace, uint64_t mask)
{
    struct ck_frame *frame = (struct ck_frame *)(memory + PAGE + STACK_SIZE);
    size_t scratch_at = sizeof *frame + 8 * (size_t)program->register_count;

    frame->records = program->records;
    frame->image = program->image;
    frame->registers = (int64_t *)(frame + 1);
    frame->scratch = (uint8_t *)frame + ((scratch_at + 15) & ~(size_t)15);
    frame->trace = trace;
    frame->count = program->count;
    frame->report = (struct ck_report){ .state = CK_RUNNING };
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
    return frame;
}

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

/* ---- keeping the parent untraceable: P2, P3 ---- */

static pthread_mutex_t guard_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t guard_hooks = PTHREAD_ONCE_INIT;
static unsigned guarded;                /* children of lesser credentials on our memory */
static int dumpable_before;
static uid_t uid_before;
static gid_t gid_before;

static void
restore_dumpable(void)
{
    if (dumpable_before == 1 && geteuid() == uid_before && getegid() == gid_before)    /* P6 */
        prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
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

static void
after_fork_in_child(void)
{
    if (guarded)
        restore_dumpable();
    guarded = 0;
    pthread_mutex_unlock(&guard_lock);
}

static void
install_fork_hooks(void)
{
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

static void
raise_guard(uint32_t guard)
{
    pthread_once(&guard_hooks, install_fork_hooks);
    pthread_mutex_lock(&guard_lock);
    if (guarded++ == 0) {
        dumpable_before = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
        uid_before = geteuid();
        gid_before = getegid();
    }
    if (guard == CK_GUARDED_FROM_CLONE && dumpable_before == 1)
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    pthread_mutex_unlock(&guard_lock);
}

static void
lower_guard(void)
{
    pthread_mutex_lock(&guard_lock);
    if (--guarded == 0)
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
    struct statfs system;
    int fd;

    if (length <= 0 || atoi(own) != getpid())
        return -1;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    length = fstatfs(fd, &system) == 0 && system.f_type == PROC_SUPER_MAGIC
                 ? read(fd, text, sizeof text - 1) : -1;
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
static void
lower_guard_after_exec(int pid, int pidfd)
{
    for (;;) {
        int left = has_left_our_memory(pid, pidfd);
        if (left == 1) {
            lower_guard();
            return;
        }
        if (left < 0)
            return;
        nanosleep(&(struct timespec){ .tv_nsec = 20000 }, NULL);       /* P5 */
    }
}

/* ---- the spawn ---- */

static int64_t
start_child(const struct ck_program *program, const int64_t *inputs, char *memory,
            struct ck_frame *frame, int32_t *pidfd)
{
    char *stack = memory + PAGE;

    if (program->without_clone3)
        return ck_clone(SYS_clone, (long)(program->clone_flags | program->exit_signal),
                        (long)(stack + STACK_SIZE), (long)pidfd, frame);
    struct clone_args args = {
        .flags = program->clone_flags,
        .pidfd = (uintptr_t)pidfd,
        .exit_signal = program->exit_signal,
        .stack = (uintptr_t)stack,
        .stack_size = STACK_SIZE,
        .cgroup = program->cgroup >= 0 ? (uint64_t)inputs[program->cgroup] : 0,
    };
    return ck_clone(SYS_clone3, (long)&args, sizeof args, 0, frame);
}

static int
all_open(const struct ck_program *program, struct ck_outcome *outcome)
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

static void
judge(const struct ck_program *program, const struct ck_frame *frame, int32_t pidfd,
      struct ck_outcome *outcome)
{
    struct ck_exit ended;
    int failed = frame->report.state == CK_FAILED;

    outcome->record = frame->report.record;
    outcome->result = frame->report.result;
    if (!failed && (program->records[frame->report.record].flags & CK_EXEC)) {
        outcome->stage = CK_SPAWNED;
        outcome->pidfd = pidfd;
        return;
    }
    outcome->stage = failed ? CK_RECORD_FAILED : CK_KILLED;
    while (ck_wait(pidfd, WEXITED | __WALL, &ended) == -EINTR)          /* P4 */
        ;
    if (!failed)
        outcome->result = ended.status;
    close(pidfd);
    outcome->pidfd = -1;
}

void
ck_spawn(const struct ck_program *program, const int64_t *inputs, struct ck_stamp *trace,
         struct ck_outcome *outcome)
{
    const uint64_t all = ~(uint64_t)0;
    uint64_t mask;
    int32_t pidfd = -1;
    size_t size = frame_size(program);
    char *memory;
    int64_t pid;

    memset(outcome, 0, sizeof *outcome);
    outcome->pidfd = -1;
    if (!all_open(program, outcome))
        return;
    memory = take_memory(size);
    if (!memory) {
        outcome->stage = CK_NO_MEMORY;
        outcome->result = -ENOMEM;
        return;
    }
    ck_syscall(SYS_rt_sigprocmask, SIG_BLOCK, (long)&all, (long)&mask, SIGSET_SIZE, 0, 0); /* P1 */
    if (program->guard)
        raise_guard(program->guard);                                                       /* P6 */
    struct ck_frame *frame = prepare_frame(memory, program, inputs, trace, mask);
    if (program->dispositions_at >= 0)
        cleared_dispositions((struct kernel_sigaction *)(frame->scratch +
                                                         program->dispositions_at));
    if (trace)
        outcome->clone_before = ck_cycles();
    pid = start_child(program, inputs, memory, frame, &pidfd);
    if (trace)
        outcome->clone_after = ck_cycles();
    if (pid < 0) {
        outcome->stage = CK_NO_CLONE;
        outcome->result = pid;
    } else {
        outcome->pid = (int32_t)pid;
        judge(program, frame, pidfd, outcome);
    }
    if (program->guard) {
        if (outcome->stage == CK_SPAWNED)
            lower_guard_after_exec(outcome->pid, outcome->pidfd);
        else
            lower_guard();
    }
    ck_syscall(SYS_rt_sigprocmask, SIG_SETMASK, (long)&mask, 0, SIGSET_SIZE, 0, 0);
    give_memory(memory, size);
}

/* ---- before the spawn ---- */

static int
operand_fits(const struct ck_program *program, const struct ck_record *record, int n)
{
    uint64_t value = record->operand[n];

    switch (record->operand_kind[n]) {
    case CK_IMMEDIATE: return 1;
    case CK_IMAGE: return value < program->image_size;
    case CK_SCRATCH: return value < program->scratch_size;
    case CK_REGISTER: return value < program->register_count;
    default: return 0;
    }
}

static int
record_fits(const struct ck_program *program, const struct ck_record *record)
{
    for (int n = 0; n < CK_OPERANDS; n++)
        if (!operand_fits(program, record, n))
            return 0;
    if (record->result != CK_NOWHERE && record->result >= program->register_count)
        return 0;
    if (record->kind == CK_MOVE)
        return record->operand_kind[0] == CK_SCRATCH && (record->nr == 4 || record->nr == 8) &&
               record->operand[0] + record->nr <= program->scratch_size;
    return record->kind == CK_CALL;
}

int64_t
ck_link(struct ck_program *program, const struct ck_program *setup, const char *records,
        uint32_t records_size, uint8_t *image, uint32_t image_size, const char *pointers,
        uint32_t count)
{
    *program = *setup;
    program->records = (const struct ck_record *)(const void *)records;
    program->count = records_size / sizeof(struct ck_record);
    program->image = image;
    program->image_size = image_size;
    for (uint32_t i = 0; i < count; i++) {
        struct ck_pointers array;
        memcpy(&array, pointers + i * sizeof array, sizeof array);
        for (uint32_t n = 0; n < array.count; n++) {
            uint8_t *place = image + array.offset + 8 * (size_t)n;
            uint64_t value;
            memcpy(&value, place, sizeof value);
            value += (uintptr_t)image;
            memcpy(place, &value, sizeof value);
        }
    }
    for (uint32_t i = 0; i < program->count; i++)
        if (!record_fits(program, &program->records[i]))
            return i;
    return -1;
}

/* ---- calls that Python cannot make itself ---- */

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
        if (fcntl(fd, F_GETFD) >= 0)
            open |= 1 << fd;
    return open;
}

int
ck_wait(int pidfd, int options, struct ck_exit *ended)
{
    siginfo_t info = { 0 };
    long result = ck_syscall(SYS_waitid, P_PIDFD_, pidfd, (long)&info, options,
                             (long)ended->usage, 0);

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
