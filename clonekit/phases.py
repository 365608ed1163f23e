"""The order of a declaration's steps, and why it is this one."""

from __future__ import annotations

#: Each phase with its reason. `Spec` follows this order always; a `Program` built from steps
#: follows the caller's.
PHASES: dict[str, str] = {
    "clone": "what only the clone can say: new namespaces, the cgroup, who is told of the end",
    "table": "the descriptor table becomes the child's own before anything opens or closes",
    "maps": "ids must have a meaning in a new user namespace before anything is done with them",
    "score": "what children inherit is written while /proc is ours: what is joined has another",
    "join": "namespaces are joined while we still have the capabilities that this takes",
    "namespaces": "new namespaces are furnished: names, clocks, interfaces",
    "session": "a session and its terminal come before descriptors of the terminal are replaced",
    "adjust": "/proc/self is opened before credentials change, which make it root's",
    "opening": "files are opened and sockets bound with the parent's ids, in the parent's root",
    "mounts": "mounts are made of what the parent's root has, and then their own root is entered",
    "place": "then the root, the directory and the umask become the program's",
    "rules": "paths of rules are opened in that root, with the parent's ids and descriptors",
    "vector": "descriptors get their numbers before a limit could forbid a number",
    "limits": "limits are raised while we may, and after set-up has used what they bound",
    "scheduling": "so are priorities",
    "signals": "what becomes of each signal; all stay blocked until the last step",
    "privileges": "securebits and the bounding set need CAP_SETPCAP, which new ids may lack",
    "ids": "groups, then gid, then uid: each needs what the next takes away",
    "capabilities": "the change of ids cleared capabilities: they are set after it, ambient last",
    "keys": "a session keyring belongs to the ids that make it",
    "nest": "only ids that the program has by now are mapped in a nested user namespace",
    "parent": "a change of ids clears the parent-death signal: set now, and the parent checked",
    "prctl": "the process's other attributes",
    "memory": "what is kept with the memory is set when the child has one of its own",
    "no_new_privs": "after all that may raise privileges; an unprivileged sandbox needs it",
    "landlock": "the file system closes when nothing more is opened",
    "init": "init has the program's ids and rights, and not its filter, which may forbid to reap",
    "seccomp": "the filter comes last: all that follows, exec included, must pass it",
    "mask": "signals may arrive again when nothing but exec is left",
    "exec": "the program begins",
}
