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

#ifdef CK_CHILD
/* long ck_clone(long nr, long a, long b, long c, struct ck_frame *frame)
 * clone3(a, b) or clone(a, b, c, 0, 0). The child wakes on the stack that the call was
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
        "    mov %r8, %r9\n"
        "    xor %r10d, %r10d\n"
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
