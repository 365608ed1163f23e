"""What is mounted for a program, as values: `mounts=[proc(), tmpfs("/tmp"), bind("/usr", "/usr")]`.

They are mounted in the order given. A source is a path in the root that the caller has; a target is
a path in the program's root, where a missing mount point is made. A value whose target is "/" is a
root: `rootfs=tmpfs("/")`.
"""

from __future__ import annotations

from clonekit.mounts.binds import attach, bind
from clonekit.mounts.filesystems import cgroup2, devpts, file_system, mqueue, proc, sysfs, tmpfs
from clonekit.mounts.furnished import dev, file
from clonekit.mounts.layers import overlay
from clonekit.mounts.value import Mount

__all__ = [
    "MASKED_PATHS",
    "READONLY_PATHS",
    "Mount",
    "attach",
    "bind",
    "cgroup2",
    "dev",
    "devpts",
    "file",
    "file_system",
    "mqueue",
    "overlay",
    "proc",
    "sysfs",
    "tmpfs",
]

#: What Docker and Podman hide of the machine in every container.
MASKED_PATHS = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
    "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
    "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
)  # fmt: skip
#: What they let nobody write.
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
