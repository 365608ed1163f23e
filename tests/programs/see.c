/* Says what a program sees of its descriptors: exit status 0 if those that are open are exactly
 * the ones named by the arguments, each NUMBER:DEVICE:INODE and not close-on-exec; else 1, and 2
 * where it cannot tell. Without arguments it prints the current directory. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

int
main(int argc, char **argv)
{
    char room[32768];
    int found = 0;

    if (argc == 1) {
        char *cwd = getcwd(room, sizeof room);
        return cwd && write(1, cwd, strlen(cwd)) > 0 ? 0 : 2;
    }
    int directory = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return 2;
    for (long size; (size = syscall(SYS_getdents64, directory, room, sizeof room)) > 0;)
        for (long at = 0; at < size;) {
            struct dirent64 *entry = (struct dirent64 *)(room + at);
            char text[96];
            struct stat file;
            at += entry->d_reclen;
            if (entry->d_name[0] == '.')
                continue;
            int fd = atoi(entry->d_name), expected = 0;
            if (fd == directory)
                continue;
            if (fstat(fd, &file) != 0)
                return 2;
            snprintf(text, sizeof text, "%d:%llu:%llu", fd, (unsigned long long)file.st_dev,
                     (unsigned long long)file.st_ino);
            for (int n = 1; n < argc; n++)
                expected |= !strcmp(argv[n], text);
            if (!expected || fcntl(fd, F_GETFD) != 0)
                return 1;
            found++;
        }
    return found == argc - (strcmp(argv[1], "-") ? 1 : 2) ? 0 : 1;
}
