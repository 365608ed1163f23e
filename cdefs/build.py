"""The recipe of `clonekit._machine`: what cffi is told, and which constants it takes along.

No constant's value is written by hand where a header has it: the compiler is asked for the
names that the headers define, and each becomes an attribute of `lib`.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sysconfig
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent

INCLUDES = """
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/const.h>
#include <linux/futex.h>
#include <linux/filter.h>
#include <linux/if.h>
#include <linux/ioprio.h>
#include <linux/keyctl.h>
#include <linux/landlock.h>
#include <linux/memfd.h>
#include <linux/mempolicy.h>
#include <linux/nsfs.h>
#include <linux/openat2.h>
#include <linux/personality.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <linux/sockios.h>
#include "newer.h"
"""

# Every integer macro that begins so becomes an attribute of `lib`.
PREFIXES = """
_LINUX_CAPABILITY_VERSION_ AF_ AT_ CAP_ CLD_ CLONE_ CLOSE_RANGE_ F_ FD_ FSMOUNT_ FSOPEN_ FUTEX_
IFF_UP IFNAMSIZ IOPRIO_ KEYCTL_ KEY_SPEC_ LANDLOCK_ MAP_ MFD_ MNT_ MOUNT_ATTR_ MOVE_MOUNT_ MPOL_
MSG_ MS_ NS_GET_ OPEN_TREE_ O_ PIDFD_ POLL PRIO_ PROT_ PR_ RESOLVE_ RLIMIT_ SA_ SCHED_ SECBIT_
SECCOMP_ SHUT_ SIG SIOCGIFFLAGS SIOCSIFFLAGS SOCK_ SOL_ SO_ TIOCSCTTY TIOCNOTTY TIOCSPGRP TIOCSTI
UMOUNT_ W
"""

# Integer constants that are enumerators, not macros.
ENUMERATORS = """
IOPRIO_CLASS_NONE IOPRIO_CLASS_RT IOPRIO_CLASS_BE IOPRIO_CLASS_IDLE IOPRIO_WHO_PROCESS
MPOL_DEFAULT MPOL_PREFERRED MPOL_BIND MPOL_INTERLEAVE MPOL_LOCAL MPOL_PREFERRED_MANY
ADDR_NO_RANDOMIZE MMAP_PAGE_ZERO ADDR_COMPAT_LAYOUT READ_IMPLIES_EXEC ADDR_LIMIT_32BIT
SHORT_INODE WHOLE_SECONDS STICKY_TIMEOUTS ADDR_LIMIT_3GB UNAME26
PER_LINUX PER_LINUX32
PTRACE_TRACEME
FSCONFIG_SET_FLAG FSCONFIG_SET_STRING FSCONFIG_SET_BINARY FSCONFIG_SET_PATH FSCONFIG_SET_PATH_EMPTY
FSCONFIG_SET_FD FSCONFIG_CMD_CREATE FSCONFIG_CMD_RECONFIGURE
MNT_FORCE MNT_DETACH MNT_EXPIRE UMOUNT_NOFOLLOW
"""

# Macros that begin right but are no integers, or not this machine's.
NOT_INTEGERS = re.compile(
    r"^(F_(U|T)?LOCK|F_TEST|MAP_FAILED|RLIMIT_OFILE|SIGCLD|SIGIOT|SIGPOLL|SIG_(DFL|IGN|ERR|HOLD)|SIGRT(MIN|MAX)|SIGSTKSZ|MINSIGSTKSZ|WCOREFLAG|SECBIT.*_MASK"
    r"|W[A-Z]+_MASK|SCHED_ATTR_.*|.*_H|W(CHAR|INT)_.*|WORDSIZE.*)$"
)

# Calls that are younger than some machines' headers. Since Linux 5.1 a new call has one number
# on every architecture (include/uapi/asm-generic/unistd.h).
YOUNGER_CALLS = {
    "cachestat": 451,
    "fchmodat2": 452,
    "map_shadow_stack": 453,
    "futex_wake": 454,
    "futex_wait": 455,
    "futex_requeue": 456,
    "statmount": 457,
    "listmount": 458,
    "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460,
    "lsm_list_modules": 461,
    "mseal": 462,
    "setxattrat": 463,
    "getxattrat": 464,
    "listxattrat": 465,
    "removexattrat": 466,
    "open_tree_attr": 467,
    "file_getattr": 468,
    "file_setattr": 469,
}


def macros() -> list[str]:
    """The names of all object-like macros that the headers define, from the compiler."""
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    text = subprocess.run(
        [*compiler, "-E", "-dM", f"-I{HERE}", "-x", "c", "-"],
        input=INCLUDES,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return sorted(re.findall(r"^#define (\w+) \S", text, re.MULTILINE))


def declarations(header: str) -> str:
    """A header as cffi reads it: without the lines that start with '#'."""
    text = (HERE / header).read_text()
    return re.sub(r"^#.*$", "", text, flags=re.MULTILINE)


def system_calls(names: list[str]) -> str:
    """A C function that returns the table of the calls' names and numbers."""
    calls = [name[5:] for name in names if name.startswith("__NR_") and name != "__NR_syscalls"]
    known = "".join(f'    "{name}=" NUMBER(__NR_{name}) " "\n' for name in calls)
    younger = "".join(
        f'    "{name}={number} "\n' for name, number in YOUNGER_CALLS.items() if name not in calls
    )
    return (
        "#define TEXT(x) #x\n#define NUMBER(x) TEXT(x)\n"
        f"const char *ck_syscall_table(void)\n{{\n    return\n{known}{younger}    ;\n}}\n"
    )


#: The parent's side, file by file.
SOURCES = ("parent", "guard", "driven", "traced", "link", "calls", "carried")
NAMES = macros()
CONSTANTS = sorted(
    {
        name
        for name in NAMES
        if name.startswith(tuple(PREFIXES.split())) and not NOT_INTEGERS.match(name)
    }
    | set(ENUMERATORS.split())
)

ffibuilder = FFI()
ffibuilder.cdef(
    declarations("record.h")
    + declarations("parent.h")
    + "".join(f"#define {name} ...\n" for name in CONSTANTS)
)
ffibuilder.set_source(
    "clonekit._machine",
    INCLUDES
    + '#include "arch.h"\n#include "child.h"\n'
    + (HERE / "fork.c").read_text()
    + system_calls(NAMES),
    sources=[f"cdefs/{name}.c" for name in SOURCES],
    include_dirs=["cdefs"],
    depends=[
        f"cdefs/{path.relative_to(HERE)}"
        for path in sorted(HERE.rglob("*"))
        if path.suffix in {".h", ".c", ".py"}
    ],
    extra_compile_args=["-std=gnu11", "-Wall", "-Wextra", "-O2", "-fvisibility=hidden"],
    py_limited_api=True,
)
