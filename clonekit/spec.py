"""A declaration: what the program shall be, in no order; the phases give the order."""

from __future__ import annotations

import os

from clonekit.completion import open_stdio
from clonekit.errors import DeclarationError
from clonekit.lasting import key_of, lasts
from clonekit.phases import PHASES
from clonekit.prepared import Prepared
from clonekit.program import Program
from clonekit.steps.execute import arguments, execute
from clonekit.steps.namespaces import is_entered
from clonekit.steps.signals import PYTHON_IGNORES
from clonekit.steps.step import KINDS, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, Literal, overload

    from clonekit.process import Process
    from clonekit.steps.execute import Text
    from clonekit.suspended import Suspended
else:
    from clonekit.steps.step import overload

#: Which steps each field of a declaration stands for.
FIELDS: dict[str, list[Any]] = {}
for _kind in KINDS.values():
    if _kind.field:
        FIELDS.setdefault(_kind.field, []).append(_kind)
#: Fields that no step has: those of exec, and steps given as they are.
OTHER_FIELDS = ("executable", "env", "steps", "check", "deadline")
#: Fields that have a mount namespace furnished.
OF_MOUNTS = ("mounts", "rootfs", "masked_paths", "readonly_paths")
#: Steps whose path is looked up where others may have put a symlink, if one of these is given.
OF_OTHERS = {"change_directory": ("root", "rootfs", "join"), "change_root": ("rootfs", "join")}
OF_EXEC = ("executable", "env")
#: What `subprocess` calls otherwise.
SAID_ELSEWHERE = {
    "stdin": "fds={0: file, 1: 1, 2: 2}",
    "stdout": "fds={0: 0, 1: file, 2: 2}",
    "stderr": "fds={0: 0, 1: 1, 2: file}",
    "pass_fds": "fds={0: 0, 1: 1, 2: 2, 7: file}",
    "close_fds": "nothing: the program has the descriptors of fds and no others",
    "user": "uid=",
    "group": "gid=",
    "extra_groups": "groups=",
    "start_new_session": "setsid=True",
    "process_group": "pgid=",
    "preexec_fn": "the fields for what it does, or steps=",
    "chdir": "cwd=",
    "capture_output": "fds={0: 0, 1: file, 2: 2}, as the writing end of a pipe",
    "shell": "the program as ['sh', '-c', ...]",
    "volumes": "mounts=[clonekit.mounts.bind(...)]",
    "unshare": "namespaces=",
    "timeout": "process.wait(timeout=...) for the program, deadline= for its set-up",
    "memory": "cgroup=Cgroup(limits={'memory.max': ...}), or rlimits={'as': ...} for each process",
    "limits": "cgroup=Cgroup(limits={...}), or rlimits=",
    "capability": "capabilities=",
    "devices": "mounts=[clonekit.mounts.dev(devices=...)]",
}
#: Fields that furnish a namespace, and which.
FURNISHING = {
    "hostname": "uts", "domainname": "uts", "loopback": "net", "network": "net",
    **dict.fromkeys((*OF_MOUNTS, "propagation"), "mnt"),
}  # fmt: skip
MOST_KNOWN = 64
#: What was compiled last, by `key_of` its fields.
_known: dict[tuple[object, ...], Prepared] = {}
RANK = {phase: rank for rank, phase in enumerate(PHASES)}
ORDER = {name: order for order, name in enumerate(KINDS)}


class Spec:
    """A declaration as a value: `Spec(argv, fds=..., uid=..., ...)`. Immutable.

    Fields are those of the steps (see the reference), and

    - `executable`, `env`: as in the step `execute`;
    - `steps`: further steps, each run at the end of its own phase, in the order given;
    - `check`: ask the kernel before the spawn whether the file may be executed (AT_EXECVE_CHECK,
      Linux 6.14);
    - `deadline`: how many seconds the set-up may take. Without it, the thread that spawns sleeps
      until exec, whatever a step waits for.

    A field that is None is as if it was not given.

    Raises: DeclarationError for an unknown field, when it is made; for values, when compiled.
    """

    __slots__ = ("argv", "fields")

    def __init__(self, argv: Sequence[Text], /, **fields: Any) -> None:
        for name in fields:
            if name not in FIELDS and name not in OTHER_FIELDS:
                raise unknown_field(name)
        self.argv = argv
        self.fields: Mapping[str, Any] = {
            name: value for name, value in fields.items() if value is not None
        }

    def replace(self, **fields: Any) -> Spec:
        """The same declaration with these fields instead; None takes one away."""
        return Spec(self.argv, **{**self.fields, **fields})

    def steps(self) -> list[Step]:
        """The declaration as steps, in the order of the phases."""
        refuse_whole_machine(self.fields)
        of_exec = {name: self.fields[name] for name in OF_EXEC if name in self.fields}
        return [*in_order(with_defaults(self.fields)), execute(self.argv, **of_exec)]

    def program(self) -> Program:
        """Compile it.

        Equal declarations share what does not depend on argv; the last ones are remembered whole.

        Raises: DeclarationError; OSError where `check` finds that the file may not be executed.
        """
        fields = self.fields
        executable, env = fields.get("executable"), fields.get("env")
        if fields.get("check"):
            from clonekit.linux.execution import check_executable

            arguments(self.argv)
            check_executable(self.argv[0], executable, env)
        key = key_of(fields)
        known = None if key is None else _known.get(key)
        if known is not None:
            return known.program(self.argv, executable, env)
        program = Program(self.steps(), deadline=fields.get("deadline"))
        if key is not None and lasts(program.setup) and key == key_of(fields):
            if len(_known) >= MOST_KNOWN:
                _known.clear()
            _known[key] = Prepared(program.setup)
        return program

    def prepared(self) -> Prepared | None:
        """What `program` has remembered of all but the argv, if that lasts."""
        key = key_of(self.fields)
        return None if key is None else _known.get(key)

    def spawn(self, **slots: object) -> Process:
        """Compile it and spawn it once."""
        return self.program().spawned(slots)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Spec):
            return NotImplemented
        return (list(self.argv), self.fields) == (list(other.argv), other.fields)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        inside = "".join(f", {name}={value!r}" for name, value in self.fields.items())
        return f"Spec({list(self.argv)!r}{inside})"


def in_order(fields: Mapping[str, Any]) -> list[Step]:
    """The steps of these fields, in the order of the phases."""
    steps: list[Step] = []
    for name, value in fields.items():
        for kind in FIELDS.get(name, ()):
            made = kind.of_field(value)
            of_others = OF_OTHERS.get(kind.name, ())
            if any(other in fields for other in of_others):  # H13
                made = [kind(value, magic_links=False)]
            steps += made
    steps.sort(key=place)
    steps += own_steps(fields.get("steps", ()))
    steps.sort(key=lambda step: RANK[step.kind.phase])
    return steps


def own_steps(steps: Any) -> list[Step]:
    """The field `steps`, checked."""
    if isinstance(steps, list | tuple) and all(isinstance(step, Step) for step in steps):
        return list(steps)
    msg = f"steps is {steps!r}; give a list of steps, as [write_file(path, data)]"
    raise DeclarationError(msg)


def place(step: Step) -> tuple[int, int]:
    """Where a step stands: its phase, then the order of definition."""
    return RANK[step.kind.phase], ORDER[step.kind.name]


def with_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a declaration means by what it does not say."""
    fields = dict(fields)
    fields.setdefault("sigdefault", PYTHON_IGNORES)
    if "fds" not in fields:
        fields["fds"] = open_stdio()
    if (
        ("uid" in fields or "gid" in fields)
        and "groups" not in fields
        and not denies_groups(fields)
    ):
        fields["groups"] = ()
    if any(name in fields for name in OF_MOUNTS):
        fields.setdefault("propagation", "private")
        fields.setdefault("rootfs", "/")
    return fields


def refuse_whole_machine(fields: Mapping[str, Any]) -> None:
    """Without a namespace of the child's, root would name, mount or connect the whole machine."""
    names, joined = fields.get("namespaces", ()), fields.get("join", ())
    if fields.get("init") and not is_entered("pid", names, ()):
        msg = 'init is the first process of a new PID namespace; add "pid" to namespaces'
        raise DeclarationError(msg)
    for field, name in FURNISHING.items():
        if fields.get(field, False) is False or is_entered(name, names, joined):
            continue
        if name == "mnt" and fields.get("empty_mounts"):
            continue
        msg = f'{field} would be that of the whole machine; add "{name}" to namespaces'
        raise DeclarationError(msg)


def denies_groups(fields: Mapping[str, Any]) -> bool:
    """A process that maps its own gid itself has given up setgroups."""
    from clonekit.linux.id_map import map_of

    return "gid_map" in fields and map_of(fields["gid_map"], os.getegid()).is_own(os.getegid())


def unknown_field(name: str) -> DeclarationError:
    """What was meant, perhaps."""
    known = [*FIELDS, *OTHER_FIELDS]
    told = meant(name, SAID_ELSEWHERE, known) or f"known are {', '.join(sorted(known))}"
    return DeclarationError(f"a declaration has no field {name!r}; {told}")


def meant(name: str, said: Mapping[str, str], known: Iterable[str]) -> str:
    """What to write instead of a name that is not known, if that can be guessed."""
    import difflib

    if name in said:
        return f"write {said[name]}"
    near = difflib.get_close_matches(name, known, 3)
    return f"did you mean {' or '.join(near)}?" if near else ""


@overload
def spawn(
    argv: Sequence[Text], /, *, suspended: Literal[True], **declaration: Any
) -> Suspended: ...
@overload
def spawn(argv: Sequence[Text], /, **declaration: Any) -> Process: ...
def spawn(argv: Sequence[Text], /, **declaration: Any) -> Any:
    """Make a process: the whole declaration at once, or a SpawnError and nothing.

    With `suspended=True` it is a `Suspended`: loaded, and not begun.

    Example: `spawn(["ls"], cwd="/tmp", fds={1: log}, rlimits={"cpu": 1}).wait()`.

    Raises: SpawnError naming the step that failed; DeclarationError before anything is made.
    """
    return Spec(argv, **declaration).program().spawn()
