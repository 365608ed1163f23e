/* The child's whole code, from clone to exec.
 *
 * It runs in a process that shares the memory of the one that made it, on the thread
 * pointer of a thread that waits, beside other threads that do not. It knows no kernel
 * feature by name: a program is records, a record is a system call. This file is built
 * freestanding and its object is inspected by the tests. The hazards, and what answers each:
 *
 * H1  libc here would use the parent thread's errno, locks and cached ids.
 *     No libc: system calls are made by one inline instruction.
 * H2  The compiler may call what we did not (memcpy, the stack protector, a jump table).
 *     Built with flags that forbid it; the object may have no undefined symbol.
 * H3  A write anywhere but to this spawn's own frame is a write into the parent.
 *     The only stores are to registers, scratch, report and trace, all in the frame, and
 *     to the child's own stack; the parent has checked every offset (parent.c).
 * H4  A signal handler would run the parent's code on the parent's data.
 *     All signals are blocked before the clone, and no disposition is a handler before the
 *     last record lifts the block.
 * H5  A stop or a signal's default action in mid-program holds or ends the child silently.
 *     The report names the record before each call is made, so the parent can tell.
 * H6  Until the descriptor table is the child's own, closing closes for the parent.
 *     The first record of a program that shares the table is close_range with
 *     CLOSE_RANGE_UNSHARE; program.py puts it there and nothing can come before it.
 * H7  A child of lesser credentials that shares our memory can be traced into it.
 *     Memory is made untraceable by a record before the first such change (program.py), or by
 *     the parent before the clone, and only the parent undoes it, after exec (parent.c).
 * H8  An interrupted call may or may not have been carried out.
 *     EINTR is retried only where the record says that it may be.
 * H9  Returning from here would run on a stack that has no caller, and a filter that the program
 *     has installed may refuse exit_group itself.
 *     The last thing is exit_group, then an instruction that no process survives.
 */
#include <stddef.h>
#include <stdint.h>

#include <asm/unistd.h>

#define CK_CHILD
#include "arch.h"
#include "record.h"

enum { EINTR_ = 4, LAST_ERRNO = 4095, EXIT_STATUS = 127 };

__attribute__((visibility("hidden"), noreturn)) void ck_child(struct ck_frame *frame);

static inline long
operand(const struct ck_frame *frame, const struct ck_record *record, unsigned n)
{
    uint64_t value = record->operand[n];
    unsigned kind = record->operand_kind[n];

    if (kind == CK_IMAGE)
        return (long)(frame->image + value);
    if (kind == CK_SCRATCH)
        return (long)(frame->scratch + value);
    if (kind == CK_REGISTER)
        return frame->registers[value];
    return (long)value;
}

static inline int
tolerated(const struct ck_record *record, long result)
{
    for (unsigned i = 0; i < CK_TOLERATED && record->tolerated[i]; i++)
        if (result == -(long)record->tolerated[i])
            return 1;
    return 0;
}

static inline long
move(struct ck_frame *frame, const struct ck_record *record)
{
    volatile char *place = (volatile char *)operand(frame, record, 0);

    if (record->result == CK_NOWHERE) {             /* H3: the frame's scratch */
        long value = operand(frame, record, 1);
        if (record->nr == 4)
            *(volatile int32_t *)place = (int32_t)value;
        else
            *(volatile int64_t *)place = value;
        return 0;
    }
    return record->nr == 4 ? *(volatile int32_t *)place : *(volatile int64_t *)place;
}

static inline long
call(struct ck_frame *frame, const struct ck_record *record)
{
    long result;

    do {
        result = ck_syscall(record->nr, operand(frame, record, 0), operand(frame, record, 1),
                            operand(frame, record, 2), operand(frame, record, 3),
                            operand(frame, record, 4), operand(frame, record, 5));
    } while (result == -EINTR_ && (record->flags & CK_RETRY));    /* H8 */
    return result;
}

/* Run the frame's records in order. Comes back when one has failed, or when the last was
 * run and did not exec: the report then holds the failure that the caller should see. */
static inline void
run(struct ck_frame *frame)
{
    uint32_t worst = 0;
    long kept = 0;

    for (uint32_t i = 0; i < frame->count; i++) {
        const struct ck_record *record = &frame->records[i];
        struct ck_stamp *stamp = frame->trace ? &frame->trace[i] : NULL;
        long result;
        int failed;

        *(volatile uint32_t *)&frame->report.record = i;          /* H5 */
        if (stamp)
            *(volatile uint64_t *)&stamp->before = ck_cycles();
        result = record->kind == CK_MOVE ? move(frame, record) : call(frame, record);
        if (stamp) {
            stamp->after = ck_cycles();
            stamp->result = result;
        }
        if (record->kind == CK_MOVE)
            failed = 0;
        else if (record->flags & CK_EXACT)
            failed = result != record->expected;
        else
            failed = result < 0 && result >= -LAST_ERRNO && !tolerated(record, result);
        if (record->flags & CK_TRY) {
            /* All candidates are tried; one that is merely absent does not hide another's reason. */
            if (failed || kept == 0 || tolerated(record, kept)) {
                kept = result;
                worst = i;
            }
        } else if (failed) {
            kept = result;
            worst = i;
            break;
        }
        if (record->result != CK_NOWHERE)
            frame->registers[record->result] = result;
    }
    frame->report.record = worst;
    frame->report.result = kept;
    *(volatile uint32_t *)&frame->report.state = CK_FAILED;
}

void
ck_child(struct ck_frame *frame)
{
    run(frame);
    ck_syscall(__NR_exit_group, EXIT_STATUS, 0, 0, 0, 0, 0);       /* H9 */
    __builtin_trap();
}
