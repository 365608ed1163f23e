/* What the parent's side offers to Python. cffi reads this too (without the '#' lines). */
#ifndef CLONEKIT_PARENT_H
#define CLONEKIT_PARENT_H
#include "record.h"

/* Make a program of a setup, its records and its image; the caller keeps the memory of all three.
 * Addresses are put for offsets in the image, which is never written again; `pointers` are packed
 * struct ck_pointers. The first record that reaches outside the program's registers, image or
 * scratch, or -1. */
int64_t ck_link(struct ck_program *program, const struct ck_program *setup, const char *records,
                uint32_t records_size, uint8_t *image, uint32_t image_size, const char *pointers,
                uint32_t count);

/* Run a program in a new child and come back when it has exec'd, failed or died. */
void ck_spawn(const struct ck_program *program, const int64_t *inputs, struct ck_stamp *trace,
              struct ck_outcome *outcome);

/* Make a child that runs a program and does not hold us: 0, or -1 with the reason in the outcome.
 * All that is given must stay until it is gone. `stays` is of enum ck_stays. */
int ck_begin(const struct ck_program *program, const int64_t *inputs, struct ck_stamp *trace,
             uint32_t stays, struct ck_driven *driven, struct ck_outcome *outcome);

/* Wait until it has carried out its order, asks, or is gone; or a signal or some 50 ms have come:
 * its enum ck_state. */
uint32_t ck_attend(struct ck_driven *driven, int64_t nanoseconds);

/* Give a child that waits another order: 0, -ENOMEM, -EBUSY while it is at one, -EPERM if we have
 * changed our ids since, or -ESRCH if it has died. */
int ck_order(struct ck_driven *driven, const struct ck_program *program, const int64_t *inputs,
             uint32_t stays, const struct ck_record *bell);

/* Answer a child that asks, by 0 or -errno: 0, or -ESRCH if it has died. */
int ck_answer(struct ck_driven *driven, int64_t answer);

/* How the order of a child that waits again has ended. */
void ck_report(const struct ck_driven *driven, struct ck_outcome *outcome);

/* Say what became of a child that is gone, or with `dead` end it, and free what it had. It has begun
 * its program, and its pidfd is the outcome's; or it is reaped. 0, or -errno if we may not end it,
 * -EBUSY if somebody waits for it: then nothing is freed. */
int ck_end(struct ck_driven *driven, int dead, struct ck_outcome *outcome);

/* Nobody holds it any more: end it, unless it has begun its program or this is a copy of us (P10). */
void ck_abandon(struct ck_driven *driven);

/* If a child that is to stop at its exec was stopped before, let it go on. */
void ck_pass_stop(const struct ck_driven *driven);

/* Hold a child that has exec'd and is about to stop: 0 or -errno. All its signals are blocked. */
int ck_hold(struct ck_traced *traced, int pid, int pidfd);

/* Run records in it, from where the last call stopped, for so long: an enum ck_state. CK_RUNNING: a
 * call is still under way. In the frame, image and scratch are the child's addresses. */
uint32_t ck_inject(struct ck_injection *injection, int64_t nanoseconds);

/* Read or write its memory, also what is mapped without the right: how many bytes, or -errno. */
int64_t ck_peek(const struct ck_traced *traced, uint64_t address, uint8_t *data, uint64_t size);
int64_t ck_poke(const struct ck_traced *traced, uint64_t address, const uint8_t *data,
                uint64_t size);

/* Let it go with its registers and this signal mask: 0 or -errno. */
int ck_let_go(struct ck_traced *traced, uint64_t mask);

/* waitid(P_PIDFD) for the end, with the status and the resource usage: 0 or -errno. */
int ck_wait(int pidfd, int options, struct ck_exit *ended);

/* Any system call, made by this thread: its result or -errno. */
int64_t ck_raw(int64_t nr, int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f);

/* clone3 or -ENOSYS: whether the call is there at all. */
int ck_has_clone3(void);

/* Which of the descriptors 0, 1 and 2 are open: bits 0, 1 and 2. */
int ck_open_stdio(void);

/* The cycle counter, and how many nanoseconds CLOCK_MONOTONIC says at the same moment. */
uint64_t ck_read_cycles(uint64_t *nanoseconds);

/* clone3 without shared memory, returning twice, with Python's at-fork hooks. */
int64_t ck_fork_like(uint64_t flags, uint64_t exit_signal, int cgroup, int32_t *pidfd);

/* The first stage, as a file that can be run. */
const char *ck_stage_image(uint64_t *size);

/* "name=number " for each system call that the headers of the build machine know. */
const char *ck_syscall_table(void);

#endif
