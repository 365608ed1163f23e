/* What the files of the parent's side share: memory for a child, its clone, what became of it. */
#ifndef CLONEKIT_CHILD_H
#define CLONEKIT_CHILD_H
#include "parent.h"

#define HIDDEN __attribute__((visibility("hidden")))

enum { SIGSET_SIZE = 8 };

/* A guard page, a stack, and a frame with room for this program's registers and scratch: its
 * first byte, and the size of the frame with its room. NULL without memory. */
HIDDEN char *ck_take_memory(const struct ck_program *program, size_t *size);
HIDDEN void ck_give_memory(char *memory, size_t size);
HIDDEN struct ck_frame *ck_frame_in(char *memory);

/* How much room a program's registers and scratch take, and where a frame has room for those of
 * the program that it was made for. */
HIDDEN size_t ck_room_of(const struct ck_program *program);
HIDDEN void *ck_room_in(struct ck_frame *frame);

/* Lay a program out for the child: what the frame points at, and registers and scratch in `room`. */
HIDDEN void ck_lay_out(struct ck_frame *frame, void *room, const struct ck_program *program,
                       const int64_t *inputs, uint64_t mask);

/* Whether the parent's descriptors that the program uses are open; if not, the outcome says so. */
HIDDEN int ck_all_open(const struct ck_program *program, struct ck_outcome *outcome);

/* The clone: the child's pid, or -errno. */
HIDDEN int64_t ck_start(const struct ck_program *program, const int64_t *inputs, char *memory,
                        int32_t *pidfd);

/* What became of a child that has no more of our memory: it has begun its program (unless `dead`),
 * or it is reaped here. */
HIDDEN void ck_judge(const struct ck_program *program, const struct ck_frame *frame, int dead,
                     int32_t pidfd, struct ck_outcome *outcome);

/* Block all signals, libc's internal ones too (P1), and give the mask that was. */
HIDDEN uint64_t ck_block_signals(void);
HIDDEN void ck_restore_signals(uint64_t mask);

/* guard.c: for one child, with all signals blocked (P6). The last waits until it is safe (P2). */
HIDDEN void ck_raise_guard(uint32_t guard);
HIDDEN void ck_lower_guard(void);
HIDDEN void ck_lower_guard_after_exec(int pid, int pidfd);

/* In a copy of us that has no other thread: the guard is not its own (P10). */
HIDDEN void ck_forget_guard(void);

#endif
