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

/* waitid(P_PIDFD) with the status and the resource usage: 0 or -errno. */
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

/* "name=number " for each system call that the headers of the build machine know. */
const char *ck_syscall_table(void);

#endif
