/* Says what a program sees of itself, a line for each thing, its name first: what /proc/self tells
 * and what only system calls do. What cannot be asked is left out. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/utsname.h>
#include <termios.h>
#include <unistd.h>

#define IOPRIO_WHO_PROCESS 1
#define KEYCTL_GET_KEYRING_ID 0
#define KEY_SPEC_SESSION_KEYRING (-3)

static const char *const FILES[] = {
    "status", "stat", "limits", "cgroup", "oom_score_adj", "coredump_filter", "personality",
    "uid_map", "gid_map", "mountinfo",
};
static const char *const DIRECTORIES[] = {"ns", "fd"};
static const char *const LINKS[] = {"cwd", "root"};

static void
tell_file(const char *name)
{
    char path[64], line[8192];

    snprintf(path, sizeof path, "/proc/self/%s", name);
    FILE *file = fopen(path, "re");
    if (!file)
        return;
    while (fgets(line, sizeof line, file))
        printf("%s %s%s", name, line, strchr(line, '\n') ? "" : "\n");
    fclose(file);
}

static void
tell_link(const char *directory, const char *name)
{
    char path[512], target[4096];

    snprintf(path, sizeof path, "/proc/self/%s/%s", directory, name);
    ssize_t size = readlink(path, target, sizeof target);
    if (size >= 0)
        printf("%s/%s %.*s\n", directory, name, (int)size, target);
}

static void
tell_links(const char *directory)
{
    char path[64];

    snprintf(path, sizeof path, "/proc/self/%s", directory);
    DIR *links = opendir(path);
    if (!links)
        return;
    char own[16];
    snprintf(own, sizeof own, "%d", dirfd(links));
    for (struct dirent *entry; (entry = readdir(links));)
        if (entry->d_name[0] != '.' && strcmp(entry->d_name, own) != 0)
            tell_link(directory, entry->d_name);
    closedir(links);
}

static void
tell(const char *name, long value)
{
    if (value >= 0)
        printf("%s %ld\n", name, value);
}

int
main(void)
{
    int number = 0;
    unsigned long nodes[16] = {0};
    struct sched_param priority = {0};
    struct itimerval alarm = {0};
    struct utsname names;
    struct termios modes;
    struct ifreq loopback = {.ifr_name = "lo"};

    for (size_t n = 0; n < sizeof FILES / sizeof *FILES; n++)
        tell_file(FILES[n]);
    for (size_t n = 0; n < sizeof LINKS / sizeof *LINKS; n++)
        tell_link("", LINKS[n]);
    for (size_t n = 0; n < sizeof DIRECTORIES / sizeof *DIRECTORIES; n++)
        tell_links(DIRECTORIES[n]);
    for (char **each = environ; *each; each++)
        printf("environment %s\n", *each);

    tell("nice", 20 - syscall(SYS_getpriority, PRIO_PROCESS, 0));
    tell("policy", sched_getscheduler(0));
    if (sched_getparam(0, &priority) == 0)
        tell("priority", priority.sched_priority);
    tell("ioprio", syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0));
    if (syscall(SYS_get_mempolicy, &number, nodes, 8 * sizeof nodes, 0, 0) == 0)
        printf("mempolicy %d %lx\n", number, nodes[0]);
    if (prctl(PR_GET_PDEATHSIG, &number) == 0)
        tell("pdeathsig", number);
    if (prctl(PR_GET_CHILD_SUBREAPER, &number) == 0)
        tell("subreaper", number);
    tell("timer_slack", prctl(PR_GET_TIMERSLACK));
    tell("securebits", prctl(PR_GET_SECUREBITS));
    tell("dumpable", prctl(PR_GET_DUMPABLE));
    tell("no_thp", prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
    if (getitimer(ITIMER_REAL, &alarm) == 0)
        tell("alarm", alarm.it_value.tv_sec || alarm.it_value.tv_usec);
    tell("keyring", syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0));
    if (uname(&names) == 0)
        printf("host %s\n", names.nodename);
    if (tcgetattr(0, &modes) == 0)
        printf("modes %x %x %x %x\n", modes.c_iflag, modes.c_oflag, modes.c_cflag, modes.c_lflag);
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (sock >= 0 && ioctl(sock, SIOCGIFFLAGS, &loopback) == 0)
        tell("loopback", !!(loopback.ifr_flags & IFF_UP));
    printf("unshare %s\n", unshare(0) == 0 ? "works" : strerrorname_np(errno));
    int made = open("written", O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    printf("writing %s\n", made >= 0 ? "works" : strerrorname_np(errno));
    if (made >= 0)
        unlink("written");
    return 0;
}
