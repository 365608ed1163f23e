/* The instructions that C has no words for, on aarch64. */

static inline long
ck_syscall(long nr, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = nr;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc #0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    return x0;
}

static inline uint64_t
ck_cycles(void)
{
    uint64_t count;
    __asm__ volatile("isb\n\tmrs %0, cntvct_el0" : "=r"(count) : : "memory");
    return count;
}

static inline void
ck_pause(void)
{
    __asm__ volatile("yield" : : : "memory");
}

#ifdef CK_CHILD
/* long ck_clone(long nr, long a, long b, long c, struct ck_frame *frame, long child_tid)
 * clone3(a, b) or clone(a, b, c, child_tid). The child wakes on the stack that the call was
 * given and runs ck_child(frame), which does not return; nothing of the caller's frame
 * is reachable there. The frame travels in a register that the kernel preserves. */
__asm__(".text\n"
        ".globl ck_clone\n"
        ".hidden ck_clone\n"
        ".type ck_clone, %function\n"
        "ck_clone:\n"
        "    mov x8, x0\n"
        "    mov x0, x1\n"
        "    mov x1, x2\n"
        "    mov x2, x3\n"
        "    mov x6, x4\n"
        "    mov x3, xzr\n"
        "    mov x4, x5\n"
        "    svc #0\n"
        "    cbz x0, 1f\n"
        "    ret\n"
        "1:  mov x29, xzr\n"
        "    mov x30, xzr\n"
        "    mov x0, x6\n"
        "    bl ck_child\n"
        "    brk #0\n"
        ".size ck_clone, . - ck_clone\n");
#endif

#ifdef CK_STAGE
/* Where the kernel begins the first stage: argc, argv and envp are on the stack. */
__asm__(".text\n"
        ".globl _start\n"
        "_start:\n"
        "    mov x29, xzr\n"
        "    mov x0, sp\n"
        "    bl ck_stage\n"
        "    brk #0\n");
#endif

#ifdef CK_TRACER
#include <asm/ptrace.h>

typedef struct user_pt_regs ck_registers;

/* The registers of a process that is about to make this call at `gate`. */
static inline void
ck_call_registers(ck_registers *registers, uint64_t gate, long nr, const long *operands)
{
    registers->pc = gate;
    registers->regs[8] = (unsigned long)nr;
    for (int n = 0; n < 6; n++)
        registers->regs[n] = (unsigned long)operands[n];
}

static inline long
ck_call_result(const ck_registers *registers)
{
    return (long)registers->regs[0];
}
#endif
