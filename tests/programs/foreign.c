/* Asks for its parent's pid by the ABI of 32-bit programs, and prints what came of it:
 *
 *     foreign
 *
 * It ends with 3 where the machine has no such ABI. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void
none(int number)
{
    (void)number;
    _exit(3);
}

int
main(void)
{
#ifdef __x86_64__
    long result;

    signal(SIGSEGV, none);
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(64L) : "memory", "r8", "r9", "r10", "r11");
    printf("%d\n", (int)result < 0 ? -(int)result : 0);
    return 0;
#else
    none(0);
#endif
}
