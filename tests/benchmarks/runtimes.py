"""A process that runs the same program in the same sandbox by clonekit, C, bwrap, crun and runc.

A script, which answers as scene.py does: `runtimes.py '{"root": ..., "sandbox": ..., ...}'`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cffi import FFI  # type: ignore[import-untyped]
from scene import in_python, rounds

import clonekit
from clonekit.filters import Filter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import containers

if TYPE_CHECKING:
    from collections.abc import Callable

    from scene import Contestant

DECLARATIONS = """
struct sandbox {
    char *const *argv; char *const *envp; const char *root; const char *uid_map;
    const char *gid_map; const char *hostname; int cgroup; uint16_t instructions;
    const void *filter;
};
int64_t sandbox_run(const struct sandbox *);
"""
ARGV = ["/bin/true"]
INSTRUCTION_SIZE = 8
#: Twenty rules.
REFUSED = (
    "add_key", "bpf", "delete_module", "finit_module", "init_module", "kexec_load", "keyctl",
    "mount", "name_to_handle_at", "open_by_handle_at", "perf_event_open", "pivot_root",
    "process_vm_readv", "process_vm_writev", "ptrace", "reboot", "request_key", "setns", "umount2",
    "unshare",
)  # fmt: skip
FILTER = Filter("ALLOW").errno(*REFUSED)
#: The same for crun and runc.
RULES = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": [*REFUSED], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
}


def in_c(path: str, root: str, cgroup: int) -> Contestant:
    """The contestant that is written in C, which reads the clock itself."""
    ffi = FFI()
    ffi.cdef(DECLARATIONS)
    lib: Any = ffi.dlopen(path)

    def text(of: str) -> Any:
        keep.append(ffi.new("char[]", of.encode()))
        return keep[-1]

    def vector(*strings: str) -> Any:
        keep.append(ffi.new("char *[]", [*map(text, strings), ffi.NULL]))
        return keep[-1]

    keep: list[Any] = []
    instructions = FILTER.program()
    code = ffi.new("char[]", instructions)
    sandbox = ffi.new(
        "struct sandbox *",
        {
            "argv": vector(*ARGV),
            "envp": vector(*(f"{name}={value}" for name, value in containers.ENV.items())),
            "root": text(root),
            "uid_map": text(f"0 {os.geteuid()} 1"),
            "gid_map": text(f"0 {os.getegid()} 1"),
            "hostname": text(containers.HOSTNAME),
            "cgroup": cgroup,
            "filter": code,
            "instructions": len(instructions) // INSTRUCTION_SIZE,
        },
    )
    keep += code, sandbox

    def timed() -> int:
        taken: int = lib.sandbox_run(sandbox)
        if taken < 0:
            raise OSError(-taken, os.strerror(-taken))
        return taken

    timed.keep = keep  # type: ignore[attr-defined]
    return timed


def bwrap(root: str, *options: str) -> Callable[[], Any]:
    """Its command, with the filter in a file that it reads from where it stands."""
    rules = os.memfd_create("filter")
    os.write(rules, FILTER.program())
    command = [
        "bwrap", "--unshare-all", "--uid", "0", "--gid", "0", "--hostname", containers.HOSTNAME,
        "--ro-bind", root, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp",
        "--seccomp", str(rules), *options, *ARGV,
    ]  # fmt: skip

    def run() -> Any:
        os.lseek(rules, 0, os.SEEK_SET)
        return subprocess.run(command, pass_fds=[rules], check=False)

    return run


def runtime(scene: dict[str, Any], *command: str) -> Callable[[], Any]:
    """One of the OCI's, on a bundle that is made before."""
    work = Path(scene["work"])
    config = containers.configuration(Path(scene["root"]), ARGV, seccomp=RULES)
    directory = containers.bundle(work / "bundle", config)
    state = work / command[0]
    return lambda: subprocess.run(containers.running(command, state, directory), check=False)


def contestants(scene: dict[str, Any]) -> dict[str, Contestant]:
    """All that can be asked for, by name."""
    root = scene["root"]
    cgroup = scene["cgroup"]
    declaration = {**containers.sandbox(root), "seccomp": FILTER}
    if cgroup >= 0:
        declaration["cgroup"] = cgroup
    program = clonekit.Spec(ARGV, **declaration).program()
    named: dict[str, Callable[[], Any]] = {
        "clonekit_compiled": lambda: program.spawn().wait(),
        "clonekit_one_shot": lambda: clonekit.spawn(ARGV, **declaration).wait(),
        "bwrap": bwrap(root),
        "bwrap_as_pid_1": bwrap(root, "--as-pid-1"),
        "crun": runtime(scene, "crun"),
        "crun_without_cgroup": runtime(scene, "crun", "--cgroup-manager=disabled"),
        "runc": runtime(scene, "runc"),
    }
    return {
        "clone3": in_c(scene["sandbox"], root, cgroup),
        **{name: in_python(run) for name, run in named.items()},
    }


def main() -> None:
    """Answer what is asked."""
    scene = json.loads(sys.argv[1])
    known = contestants(scene)
    for line in sys.stdin:
        print(json.dumps(rounds(known, **json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
