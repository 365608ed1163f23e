/* The instructions that C has no words for, on x86_64. */

static inline long
ck_syscall(long nr, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static inline uint64_t
ck_cycles(void)
{
    uint32_t low, high;
    __asm__ volatile("lfence\n\trdtsc" : "=a"(low), "=d"(high) : : "memory");
    return ((uint64_t)high << 32) | low;
}

static inline void
ck_pause(void)
{
    __asm__ volatile("pause" : : : "memory");
}

#ifdef CK_CHILD
/* long ck_clone(long nr, long a, long b, long c, struct ck_frame *frame, long child_tid)
 * clone3(a, b) or clone(a, b, c, child_tid). The child wakes on the stack that the call was
 * given and runs ck_child(frame), which does not return; nothing of the caller's frame
 * is reachable there. The frame travels in a register that the kernel preserves. */
__asm__(".text\n"
        ".globl ck_clone\n"
        ".hidden ck_clone\n"
        ".type ck_clone, @function\n"
        "ck_clone:\n"
        "    mov %rdi, %rax\n"
        "    mov %rsi, %rdi\n"
        "    mov %rdx, %rsi\n"
        "    mov %rcx, %rdx\n"
        "    mov %r9, %r10\n"
        "    mov %r8, %r9\n"
        "    xor %r8d, %r8d\n"
        "    syscall\n"
        "    test %rax, %rax\n"
        "    jz 1f\n"
        "    ret\n"
        "1:  xor %ebp, %ebp\n"
        "    and $-16, %rsp\n"
        "    mov %r9, %rdi\n"
        "    call ck_child\n"
        "    hlt\n"
        ".size ck_clone, . - ck_clone\n");
#endif

#ifdef CK_STAGE
/* Where the kernel begins the first stage: argc, argv and envp are on the stack. */
__asm__(".text\n"
        ".globl _start\n"
        "_start:\n"
        "    xor %ebp, %ebp\n"
        "    mov %rsp, %rdi\n"
        "    and $-16, %rsp\n"
        "    call ck_stage\n"
        "    hlt\n");
#endif

#ifdef CK_TRACER
#include <sys/user.h>

typedef struct user_regs_struct ck_registers;

/* The registers of a process that is about to make this call at `gate`. */
static inline void
ck_call_registers(ck_registers *registers, uint64_t gate, long nr, const long *operands)
{
    registers->rip = gate;
    registers->rax = (unsigned long)nr;
    registers->orig_rax = (unsigned long)-1;
    registers->rdi = (unsigned long)operands[0];
    registers->rsi = (unsigned long)operands[1];
    registers->rdx = (unsigned long)operands[2];
    registers->r10 = (unsigned long)operands[3];
    registers->r8 = (unsigned long)operands[4];
    registers->r9 = (unsigned long)operands[5];
}

static inline long
ck_call_result(const ck_registers *registers)
{
    return (long)registers->rax;
}
#endif
