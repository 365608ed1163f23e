/* What Python writes and the machine reads. This one header is compiled by C and
 * read by cffi (which drops the lines that start with '#'). */
#ifndef CLONEKIT_RECORD_H
#define CLONEKIT_RECORD_H
#include <stdint.h>

/* The kinds of record. There are never more than four. */
enum ck_kind {
    CK_CALL = 1,                /* make a system call */
    CK_MOVE = 2,                /* move a value between a register and scratch */
    CK_SET = 3,                 /* say in the cell that the parent is asked to do something */
    CK_WAIT = 4,                /* wait until it has answered; its answer is the result.
                                 * Operand 0, where it is not 0: awake, without a call */
};

/* What an operand's 64 bits mean. */
enum ck_operand {
    CK_IMMEDIATE = 0,           /* the value itself */
    CK_IMAGE = 1,               /* an offset into the program's image: its address */
    CK_SCRATCH = 2,             /* an offset into this spawn's scratch: its address */
    CK_REGISTER = 3,            /* the number of a register: its content */
};

enum ck_flag {
    CK_EXACT = 1,               /* only a result equal to `expected` is success */
    CK_RETRY = 2,               /* EINTR: make the call again */
    CK_TRY = 4,                 /* one of several candidates: a failure goes on to the next */
    CK_EXEC = 8,                /* success does not return: the program has begun */
    CK_AGAIN = 16,              /* EAGAIN: make the call again, but not for ever */
};

enum { CK_NOWHERE = 0xffff, CK_TOLERATED = 8, CK_OPERANDS = 6 };

struct ck_record {
    uint8_t kind;
    uint8_t flags;
    uint16_t step;              /* the step it belongs to, for the report */
    uint32_t nr;                /* CALL: the system call. MOVE: 4 or 8 bytes */
    uint16_t result;            /* the register for the result, or CK_NOWHERE.
                                 * MOVE: with a register, load it from operand 0;
                                 * without, store operand 1 there */
    uint8_t operand_kind[6];
    uint8_t tolerated[8];       /* errnos that are no failure; the first 0 ends them */
    uint64_t operand[6];
    int64_t expected;
};

/* Where a child is. The kernel itself writes CK_GONE, when an exec or the child's end takes our
 * memory from it: the cell is what clone3 calls child_tid, to be cleared. */
enum ck_state { CK_GONE = 0, CK_RUNNING = 1, CK_DONE = 2, CK_FAILED = 3, CK_ASKS = 4 };

/* After which states a child waits for another order. Otherwise it ends. */
enum ck_stays { CK_ENDS = 0, CK_STAYS_DONE = 4, CK_STAYS = 12 };

/* Written by the child while it runs, read by the parent when it has stopped. */

struct ck_report {
    uint32_t state;             /* enum ck_state: what the parent waits for */
    uint32_t ended;             /* how the order ended, also when its child is gone since */
    uint32_t record;            /* the record that runs, or that failed */
    int64_t result;             /* of the failed call: -errno, or not what was expected */
};

/* One for each record, when the spawn is traced: readings of the cycle counter. */
struct ck_stamp {
    uint64_t before;
    uint64_t after;
    int64_t result;
};

/* All that a running child may touch. It lives in memory of this spawn alone. */
struct ck_frame {
    const struct ck_record *records;
    const uint8_t *image;
    uint8_t *scratch;
    int64_t *registers;
    struct ck_stamp *trace;     /* or NULL */
    /* Calls of immediate operands, or NULL: one made after each order; one made now and then by a
     * child that waits, whose result above 0 says that nobody is there any more. */
    const struct ck_record *bell;
    const struct ck_record *watch;
    uint32_t count;
    uint32_t stays;             /* enum ck_stays */
    uint32_t spins;             /* how often it looks for the next order before it sleeps */
    uint32_t order;             /* how many orders and answers have come; the parent counts it up */
    uint32_t served;            /* how many of these it has taken */
    uint32_t asked;             /* the record by which it asks */
    int64_t answer;             /* 0 or -errno */
    struct ck_report report;
};

/* Where the first stage finds its frame, and behind it all that the frame points at. */
enum { CK_PLAN_AT = 0x10000000 };

/* A place in scratch that holds an offset into `target` and wants its address. */
struct ck_relocation {
    uint32_t offset;
    uint32_t target;            /* CK_IMAGE or CK_SCRATCH */
};

/* `count` consecutive 8-byte pointers in the image, each an offset into it. */
struct ck_pointers {
    uint32_t offset;
    uint32_t count;
};

/* How the parent's memory is kept untraceable while a child with other credentials shares it. */
enum ck_guard {
    CK_OPEN = 0,                /* no need */
    CK_GUARDED = 1,             /* a record of the program sets it before the change */
    CK_GUARDED_FROM_CLONE = 2,  /* set before the clone */
};

/* A compiled program. Nothing in it changes once it is linked: many threads may spawn it at once.
 * What differs from spawn to spawn is given as inputs, the first registers. */
struct ck_program {
    const struct ck_record *records;
    const uint8_t *image;
    const uint8_t *scratch;     /* what scratch holds at the start */
    const struct ck_relocation *relocations;
    const int32_t *kept;        /* the parent's descriptors that the program uses */
    uint64_t clone_flags;
    uint32_t exit_signal;
    uint32_t count;
    uint32_t image_size;
    uint32_t scratch_size;
    uint32_t relocation_count;
    uint32_t kept_count;
    uint32_t register_count;
    uint32_t input_count;       /* the first registers are given by the caller */
    int32_t cgroup;             /* the input that holds the cgroup's descriptor, or -1 */
    int32_t mask_at;            /* scratch offset for the caller's signal mask, or -1 */
    int32_t dispositions_at;    /* scratch offset for 64 kernel sigactions, or -1 */
    uint32_t without_clone3;
    uint32_t asleep;            /* it changes its scheduling: it waits asleep, never awake */
    uint32_t guard;
};

/* How far a spawn came. */
enum ck_stage {
    CK_SPAWNED = 0,
    CK_NOT_OPEN = 1,            /* a descriptor of the program is not open: `record` says which */
    CK_NO_MEMORY = 2,
    CK_NO_CLONE = 3,
    CK_RECORD_FAILED = 4,
    CK_KILLED = 5,              /* died by signal `result` while it ran `record` */
    CK_WAITS = 6,               /* has carried out the order, and waits for another */
    CK_REFUSED = 7,             /* `record` of the order failed; it waits for another */
};

struct ck_outcome {
    int32_t stage;
    int32_t pid;
    int32_t pidfd;
    uint32_t record;
    int64_t result;
    uint64_t clone_before;      /* cycle counter around clone, in the parent */
    uint64_t clone_after;
};

/* A child that does not hold its parent: the parent may do other things, and give it orders. */
struct ck_driven {
    struct ck_frame *frame;
    const struct ck_program *program;   /* what it runs, or ran last */
    void *room;                 /* registers and scratch of that, where the frame has none for them */
    char *memory;
    uint64_t size;
    uint32_t guards;            /* how often the guard was raised for it */
    uint32_t uid;               /* our effective uid when it was made */
    int32_t owner;              /* our pid then */
    int32_t channel;            /* our end of the socket to it, or -1: closed with it */
    uint32_t attended;          /* how many threads are waiting for it: none may free it then */
    int32_t pid;
    int32_t pidfd;
};

/* A child that is stopped after its exec, held by ptrace. */
struct ck_traced {
    int32_t pid;
    int32_t pidfd;
    uint64_t gate;              /* the address of an instruction in it that makes a system call */
    uint64_t held;              /* signals that came meanwhile, though all are blocked: bit 0 is 1 */
    uint32_t stage;             /* of the call under way: enum in traced.c */
    uint8_t registers[512];     /* those that it will have when it is let go */
};

/* Records that are run in such a child. */
struct ck_injection {
    struct ck_frame frame;
    struct ck_traced *traced;
    int64_t until;              /* ns of CLOCK_MONOTONIC at which to come back */
};

/* How a child ended: waitid(2). */
struct ck_exit {
    int32_t pid;
    int32_t code;               /* CLD_EXITED, CLD_KILLED, ... */
    int32_t status;
    int64_t usage[18];          /* struct rusage, as the kernel lays it out */
};

#endif
