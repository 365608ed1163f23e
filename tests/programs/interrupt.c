/* Interrupts one processor all the while, each time for some microseconds, until it is killed:
 *
 *     interrupt PROCESSOR
 *
 * Whoever runs there is held at any place, in the kernel too, but where that forbids interrupts. It
 * is a profiler that copies the stack at each tick of the processor's clock. Its first byte on
 * standard output says that it has begun; exit status 1, that the kernel refuses it. */
#include <linux/perf_event.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { NANOSECONDS = 10000, STACK = 32768, PAGES = 1 + 1024 };

int
main(int argc, char **argv)
{
    struct perf_event_attr event = {
        .size = sizeof event,
        .type = PERF_TYPE_SOFTWARE,
        .config = PERF_COUNT_SW_CPU_CLOCK,
        .sample_period = NANOSECONDS,
        .sample_type = PERF_SAMPLE_CALLCHAIN | PERF_SAMPLE_STACK_USER,
        .sample_stack_user = STACK,
    };
    int fd;

    if (argc != 2)
        return 2;
    fd = (int)syscall(SYS_perf_event_open, &event, -1, atoi(argv[1]), -1, PERF_FLAG_FD_CLOEXEC);
    /* Mapped to be read only, the oldest samples are overwritten: nobody need take them. */
    if (fd < 0 || mmap(NULL, PAGES * (size_t)sysconf(_SC_PAGESIZE), PROT_READ, MAP_SHARED, fd, 0) ==
                      MAP_FAILED)
        return 1;
    if (write(1, ".", 1) != 1)
        return 2;
    for (;;)
        pause();
}
