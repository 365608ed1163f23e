/* Tries, until it is killed, to write one word of another process's memory:
 *
 *     attack ADDRESS VALUE only|recent PID...
 *
 * in the given processes and, if `recent`, in those that are just being made, whose numbers follow
 * the last one given out. It writes by process_vm_writev and, where it may trace, by ptrace. Its
 * first byte on standard output says that it has begun; each further one stands for a process that
 * it wrote. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t address, value;

static void
wrote(void)
{
    if (write(1, "!", 1) != 1 && errno != EAGAIN)
        exit(0);
}

static void
attack(int pid)
{
    struct iovec ours = { &value, sizeof value }, theirs = { (void *)address, sizeof value };
    int status;

    if (process_vm_writev(pid, &ours, 1, &theirs, 1, 0) == sizeof value)
        wrote();
    if (ptrace(PTRACE_SEIZE, pid, 0, 0) != 0)
        return;
    ptrace(PTRACE_INTERRUPT, pid, 0, 0);
    if (waitpid(pid, &status, __WALL) == pid && WIFSTOPPED(status)) {
        if (ptrace(PTRACE_POKEDATA, pid, (void *)address, (void *)value) == 0)
            wrote();
        /* One that was killed meanwhile stays a zombie, for its parent too, until we have seen it. */
        if (ptrace(PTRACE_DETACH, pid, 0, 0) != 0)
            waitpid(pid, &status, __WALL);
    }
}

static int
last_pid(int loadavg)
{
    char text[128];
    ssize_t size = pread(loadavg, text, sizeof text - 1, 0);

    if (size <= 0)
        exit(2);
    text[size] = 0;
    return atoi(strrchr(text, ' ') + 1);
}

int
main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    int loadavg = open("/proc/loadavg", O_RDONLY | O_CLOEXEC), self = getpid();
    int rounds = strcmp(argv[3], "recent") ? 0 : 16;

    address = strtoull(argv[1], NULL, 0);
    value = strtoull(argv[2], NULL, 0);
    /* A full pipe must not hold us, and the process that we have stopped, for ever. */
    fcntl(1, F_SETFL, O_NONBLOCK);
    if (loadavg < 0 || write(1, ".", 1) != 1)
        return 2;
    for (;;) {
        int last = last_pid(loadavg);
        for (int n = 4; n < argc; n++)
            attack(atoi(argv[n]));
        for (int round = 0; round < rounds; round++)
            for (int pid = last - 1; pid <= last + 2; pid++)
                if (pid > 1 && pid != self)
                    attack(pid);
    }
}
