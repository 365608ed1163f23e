"""A container from a root file system: its own processes, mounts, network, names and init.

The root is shared and read-only; /proc, /dev and /tmp are the container's own, and so is loopback.
A filter forbids what no program in there needs. Any user may do this. Usage:

    container.py [ROOT [PROGRAM ARG...]]

Without ROOT one is made of a static busybox (Debian: busybox-static). debootstrap makes a larger.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path

import clonekit
from clonekit import mounts

SHOW = """
echo "I am process $$ of $(hostname), and uid $(id -u)."
echo "Here are $(ls / | tr '\\n' ' ')and nothing else."
touch /mine 2>/dev/null || echo "The root cannot be written."
touch /tmp/mine && echo "/tmp can."
mount -t tmpfs none /tmp 2>/dev/null || echo "Nothing more is mounted."
"""
APPLETS = ("sh", "ls", "cat", "echo", "hostname", "id", "touch", "tr", "mount", "ps", "ip")


def make_root(root: Path) -> None:
    """Busybox, and places for mounts."""
    busybox = shutil.which("busybox")
    if busybox is None:
        sys.exit("This needs a static busybox, or a ROOT: apt-get install busybox-static")
    for name in ("bin", "proc", "dev", "tmp", "etc"):
        (root / name).mkdir()
    shutil.copy(busybox, root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")


with contextlib.ExitStack() as stack:
    if len(sys.argv) > 1:
        root = Path(sys.argv[1])
    else:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_root(root)
        root.chmod(0o755)
    container = clonekit.Spec(
        sys.argv[2:] or ["/bin/sh", "-c", SHOW],
        env={"PATH": "/usr/bin:/bin", "HOME": "/tmp"},
        namespaces=["user", "mnt", "pid", "net", "uts", "ipc", "cgroup"],
        uid_map=0,
        gid_map=0,
        rootfs=mounts.bind(root, "/", read_only=True, nosuid=True),
        mounts=[
            mounts.proc(hidepid="invisible"),
            mounts.dev(),
            mounts.tmpfs("/tmp", size=16 << 20),
        ],
        masked_paths=mounts.MASKED_PATHS,
        readonly_paths=mounts.READONLY_PATHS,
        hostname="aquarium",
        loopback=True,
        init=True,
        no_new_privs=True,
        seccomp=clonekit.Filter("ALLOW").errno("mount", "umount2", "fsopen", "unshare", "keyctl"),
        pdeathsig="KILL",
    )
    try:
        with container.spawn() as process:
            ended = process.wait()
    except clonekit.SpawnError as error:
        sys.exit(f"This machine refuses it. {error}")
sys.exit(ended.returncode)
