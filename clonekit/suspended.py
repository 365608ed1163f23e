"""A process whose program is loaded and has not run an instruction: changed, then let go.

It is held by ptrace. Any system call can be made in it, by the same records as everywhere; its
memory can be read, written and mapped; its registers set. Every ptrace call must come from the
thread that made the process: that is the kernel's rule, and so this handle's.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading

from clonekit.child import DEADLINE, Child, send
from clonekit.compiled import immediate
from clonekit.completion import CHANNEL
from clonekit.errors import DeclarationError, SpawnError, errno_name, spawn_error
from clonekit.explain import one
from clonekit.failure import details_of, failure, late
from clonekit.injection import AUXILIARY, MACHINES, Run, injected, placed
from clonekit.linux.abi import call, ffi, lib
from clonekit.linux.memory import address as address_of
from clonekit.manners import INJECTED
from clonekit.process import blank
from clonekit.records import Fd
from clonekit.steps.sandbox import set_attribute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from clonekit.compiled import Compiled
    from clonekit.completion import Suspension
    from clonekit.orders import Order
    from clonekit.process import Process
    from clonekit.records import Slot

PAGE = os.sysconf("SC_PAGE_SIZE")
PROTECTIONS = {"r": lib.PROT_READ, "w": lib.PROT_WRITE, "x": lib.PROT_EXEC}


FILTERED = "a filter of its own must allow prctl, which ends its bond to us; or declare pdeathsig"
LARGEST_VDSO = 8 * PAGE


class Suspended(Child):
    """A process stopped after exec, before its first instruction: made by `suspended=True`.

    It has a memory of its own, so steps that would change ours elsewhere may be done here. It is
    killed if we die or the handle is left without `resume`. All its signals are blocked until then.

    Use it only from the thread that made it: RuntimeError elsewhere.
    """

    __slots__ = ("_argv", "_busy", "_mask", "_suspension", "_thread", "_traced")
    manner = INJECTED

    def __init__(self, program: Any) -> None:
        super().__init__(-1, -1, program.setup.deadline or DEADLINE)
        self._argv = program.argv
        self._busy = False
        self._thread = threading.get_native_id()
        self._suspension: Suspension = program.setup.suspension
        mask = self._suspension.mask
        self._mask = current_mask() if mask is None else mask
        self._traced = ffi.new("struct ck_traced *")

    def adopt(self, outcome: Any) -> None:
        """Own the child of a struct ck_outcome: for a handle that was made before it."""
        self.pid, self._pidfd = outcome.pid, outcome.pidfd
        outcome.pidfd = -1

    def hold(self) -> None:
        """Hold it where it is about to stop."""
        result = lib.ck_hold(self._traced, self.pid, self._pidfd)
        if result == -errno.ESRCH:
            raise self._gone()
        if result < 0:
            msg = f"ptrace: {os.strerror(-result)}"
            if result == -errno.EOPNOTSUPP:
                msg = "the program has another word size than we; it cannot be suspended"
            raise OSError(-result, msg)
        self._traced.gate = self._find_gate()
        if self._suspension.clears:
            try:
                self.do(set_attribute("PR_SET_PDEATHSIG", 0))
            except SpawnError as error:
                error.hint = error.hint or FILTERED
                raise
        self.state = "suspended"

    # Its memory and registers.

    def read(self, address: int, size: int) -> bytes:
        """Read so many bytes of its memory: process_vm_readv, PTRACE_PEEKDATA.

        Raises: OSError (EIO, EFAULT) where nothing is mapped.
        """
        self._check()
        word(address, "address", lowest=0)
        data = bytearray(word(size, "size", lowest=0))
        done = lib.ck_peek(self._traced, address, ffi.from_buffer(data), size)
        self._reached(done, size, address)
        return bytes(data)

    def write(self, address: int, data: bytes) -> None:
        """Write its memory, also where it is mapped read-only: process_vm_writev, PTRACE_POKEDATA.

        A private copy of the page is written, never the program's file.

        Raises: OSError (EIO, EFAULT) where nothing is mapped.
        """
        self._check()
        word(address, "address", lowest=0)
        if not isinstance(data, bytes | bytearray | memoryview):
            msg = f"{data!r} cannot be written; give bytes"
            raise DeclarationError(msg)
        buffer = ffi.from_buffer(data)
        self._reached(lib.ck_poke(self._traced, address, buffer, len(data)), len(data), address)

    def _reached(self, done: int, size: int, address: int) -> None:
        """Tell where not all of it was read or written."""
        if done == -errno.ESRCH:
            raise self._gone()
        if done < size:
            number = -done if done < 0 else errno.EFAULT
            msg = f"{size} bytes at {address:#x} of child {self.pid}: {os.strerror(number)}"
            raise OSError(number, msg)

    def map(
        self,
        fd: object,
        size: int,
        *,
        address: int | None = None,
        offset: int = 0,
        protection: str = "rw",
        shared: bool = True,
        deadline: float | None = None,
    ) -> int:
        """Map a file or a memfd of ours into its memory, and give the address: mmap.

        With `address` it is there, or EEXIST where something is mapped already
        (MAP_FIXED_NOREPLACE). `protection` is of "r", "w" and "x"; `size` and `offset` are in
        bytes, the offset a multiple of the page's. Without `shared`, what the program writes there
        is its own. The program gets no descriptor of it.

        Raises: EACCES, EEXIST, EINVAL, ENOMEM. Since: an address Linux 4.17. See: mmap(2).
        """
        unknown = set(protection) - set(PROTECTIONS)
        if unknown:
            msg = f'protection is {protection!r}; use some of "r", "w" and "x"'
            raise DeclarationError(msg)
        word(size, "size", lowest=1)
        for what, value in (("address", address or 0), ("offset", offset)):
            if word(value, what, lowest=0) % PAGE or (what == "address" and address == 0):
                msg = f"{what} is {value:#x}; give a multiple of {PAGE} bytes, not 0 for an address"
                raise DeclarationError(msg)
        rights = sum(PROTECTIONS[letter] for letter in set(protection))
        flags = lib.MAP_SHARED if shared else lib.MAP_PRIVATE
        if address is not None:
            flags |= lib.MAP_FIXED_NOREPLACE
        where = address or 0
        result: int = self.syscall(
            "mmap", where, size, rights, flags, Fd(fd), offset, deadline=deadline
        )
        return result

    @property
    def registers(self) -> dict[str, int]:
        """The registers that it begins with, by the names of the kernel's structure."""
        self._check()
        machine = MACHINES[os.uname().machine]
        values = struct.unpack_from(f"<{len(machine.names)}Q", ffi.buffer(self._traced.registers))
        return dict(zip(machine.names, values, strict=True))

    def set_registers(self, **values: int) -> None:
        """Change registers that it begins with: `set_registers(rdi=7)`. See: ptrace(2)."""
        registers = self.registers
        unknown = values.keys() - registers.keys()
        if unknown:
            msg = f"no register is called {sorted(unknown)}; there are {', '.join(registers)}"
            raise DeclarationError(msg)
        for name, value in values.items():
            registers[name] = word(value, f"register {name}") & (1 << 64) - 1
        struct.pack_into(
            f"<{len(registers)}Q", ffi.buffer(self._traced.registers), 0, *registers.values()
        )

    def auxv(self) -> dict[str, int]:
        """What the kernel tells the program at its start, by name: `entry`, `phdr`, `base`...

        Addresses are the program's: `entry` less that of the file says where the file was loaded.
        See: getauxval(3).
        """
        at = self.registers[MACHINES[os.uname().machine].stack]
        at += 8 * (self._word(at) + 2)  # argc, its arguments, NULL
        while self._word(at):  # the environment
            at += 8
        found = {}
        for place in range(at + 8, at + 8 + 16 * 64, 16):
            key, value = struct.unpack("<QQ", self.read(place, 16))
            if not key:
                break
            found[AUXILIARY.get(key, str(key))] = value
        return found

    def _word(self, address: int) -> int:
        return int.from_bytes(self.read(address, 8), "little")

    def _find_gate(self) -> int:
        """An instruction that makes a system call: the vDSO has one in every process."""
        start = self.auxv().get("sysinfo_ehdr", 0)
        code = bytearray(LARGEST_VDSO)
        size = lib.ck_peek(self._traced, start, ffi.from_buffer(code), len(code)) if start else 0
        at = code[: max(size, 0)].find(MACHINES[os.uname().machine].gate)
        if at < 0:
            msg = "the program has no vDSO (vdso=0 on the kernel's command line?), which is needed"
            raise OSError(errno.EOPNOTSUPP, msg)
        return start + at

    # Orders.

    def reserved(self) -> dict[Slot, int]:
        """Each order that is given descriptors opens a socket for them: its number is not known."""
        return {CHANNEL: -1}

    def _carry_out(self, order: Order, deadline: float | None) -> list[Any]:
        self._check()
        limit = self.limit(deadline)
        run = Run(order, limit)
        theirs = -1
        try:
            if order.given:
                channel, theirs = self._open_channel()
                order.values[order.setup.inputs.index(CHANNEL)] = theirs
                with channel:
                    send(channel.fileno(), order.given)
            return self._run(order, run)
        finally:
            if theirs >= 0 and self._pidfd >= 0:
                self._call(run, "close", theirs)

    def _run(self, order: Order, run: Run) -> list[Any]:
        """Bring an order into the process, run it there, and take it out again."""
        image, scratch = ffi.buffer(order.image)[:], order.setup.scratch
        image += bytes(-len(image) % 16)
        size = len(image) + len(scratch)
        room = 0
        if size:
            rights = lib.PROT_READ | lib.PROT_WRITE
            private = lib.MAP_PRIVATE | lib.MAP_ANONYMOUS
            room = self._call(run, "mmap", 0, size, rights, private, -1 & (1 << 64) - 1, 0)
            self.write(room, placed(order, image, scratch, room))
        injection, registers = injected(order, room, room + len(image))
        state = self._inject(injection, run)
        after = self.read(room + len(image), len(scratch)) if scratch else b""
        if size:
            self._call(run, "munmap", room, size)
        if state == lib.CK_FAILED:
            outcome = ffi.new("struct ck_outcome *")
            report = injection.frame.report
            outcome.stage, outcome.record, outcome.result = (
                lib.CK_REFUSED, report.record, report.result,
            )  # fmt: skip
            error = failure(order, outcome)
            self._close_given(order, registers)
            raise error
        return order.outcome(self, registers, after)

    def _inject(self, injection: Any, run: Run) -> int:
        """Run records in the process, and look at signals for us meanwhile."""
        if self._busy:
            msg = "the process is at another order, in which this handler of a signal has come"
            raise RuntimeError(msg)
        self._busy = True
        injection.traced = self._traced
        state: int = lib.CK_RUNNING
        try:
            while state == lib.CK_RUNNING and run.slice():
                state = lib.ck_inject(injection, run.slice())
        except BaseException:  # a handler raised: the call cannot be abandoned
            self.kill()
            raise
        finally:
            self._busy = False
        if state == lib.CK_GONE:
            raise self._gone(run.order, injection.frame.report.record)
        if state == lib.CK_RUNNING:
            self.kill()
            raise late(run.order, injection.frame.report, run.limit)
        return state

    def _call(self, run: Run, name: str, *values: int) -> int:
        """One call of ours, for an order."""
        record = immediate(name, *values)
        record.result = 0
        registers = ffi.new("int64_t[1]")
        injection = ffi.new("struct ck_injection *")
        injection.frame.records, injection.frame.count = record, 1
        injection.frame.registers = registers
        if self._inject(injection, run) == lib.CK_FAILED:
            number = -injection.frame.report.result
            raise spawn_error(
                number, step=f"room in child {self.pid}", syscall=name, arguments=name,
                phase="suspended", hint="a filter of its own may refuse the call",
            )  # fmt: skip
        return int(registers[0])

    def _open_channel(self) -> tuple[socket.socket, int]:
        """A socket whose other end is in the process, and that end's number, for one order."""
        ends = bytearray(8)
        kind = socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
        self.syscall("socketpair", socket.AF_UNIX, kind, 0, ends)
        theirs, ours = struct.unpack("<ii", ends)
        try:
            return socket.socket(fileno=self.getfd(ours)), theirs
        except OSError:
            self.syscall("close", theirs)
            raise
        finally:
            self.syscall("close", ours)

    # The end of it.

    def resume(self) -> Process:
        """Let the program begin, and let go of it completely: PTRACE_DETACH.

        It has its declared signal mask then; a SIGSTOP that came meanwhile is sent again.

        Raises: ChildProcessError when it has died.
        """
        self._check()
        if self._busy:
            msg = "the process is at an order; resume it after that"
            raise RuntimeError(msg)
        process = blank(self._argv)
        result = lib.ck_let_go(self._traced, self._mask)
        if result == -errno.ESRCH:
            raise self._gone()
        if result < 0:
            self.kill()
            msg = f"ptrace: {errno_name(-result)}: are its registers valid?"
            raise OSError(-result, msg)
        self.state = "it was resumed; use what resume() has returned"
        process.become(self)
        return process

    def kill(self) -> None:
        """End the process, and reap it. One that was resumed is not touched."""
        if self._pidfd < 0:
            return
        self.state = "it was killed"
        if not self._is_ours():
            self._pidfd = -1  # a copy of us may have another file there
            return
        process = blank(self._argv)
        process.become(self)
        process.__exit__(None, None, None)

    def __del__(self) -> None:
        if getattr(self, "_pidfd", -1) >= 0 and self._is_ours():
            self.kill()

    def _gone(self, order: Compiled | None = None, record: int = 0) -> SpawnError:
        """The error for a process that has ended; it is reaped."""
        self.state = "it has died"
        with blank(self._argv) as process:
            process.become(self)
            ended = process.wait()
        details = {} if order is None else details_of(order, one(order, record))
        own = {"step": f"suspended child {self.pid}", "phase": "suspended", "arguments": "ptrace"}
        details = {**own, **details}
        message = f"it ended {ended.how} before its first instruction"
        return spawn_error(errno.ECHILD, message, **details, signal=ended.signal)

    def _check(self) -> None:
        """Only the tracer's thread may ask the kernel."""
        self.check()
        if threading.get_native_id() != self._thread:
            msg = "a suspended process is driven by the thread that made it: ptrace(2) wants it so"
            raise RuntimeError(msg)

    def __repr__(self) -> str:
        return f"<Suspended {self.pid}: {self.state}>"


def word(value: object, what: str, lowest: int = -(1 << 63)) -> int:
    """A number of 64 bits, checked."""
    if type(value) is not int or not lowest <= value < 1 << 64:
        msg = f"{what} is {value!r}; give an int from {lowest:#x} to 2**64 - 1"
        raise DeclarationError(msg)
    return value


def current_mask() -> int:
    """The calling thread's signal mask, with what libc hides."""
    mask = bytearray(8)
    call("rt_sigprocmask", lib.SIG_BLOCK, 0, address_of(mask), len(mask))
    return int.from_bytes(mask, "little")
