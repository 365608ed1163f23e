"""What can be done from outside to a child that waits, and to one that is stopped."""

from __future__ import annotations

import errno
import os
import struct
from socket import MSG_NOSIGNAL, SCM_RIGHTS, SOL_SOCKET

from clonekit.completion import refuse_others
from clonekit.errors import DeclarationError
from clonekit.linux.abi import call, lib
from clonekit.linux.block import Block, here, is_here
from clonekit.linux.memory import address
from clonekit.manners import deadline_of
from clonekit.orders import Order
from clonekit.records import ChildFd, Fd
from clonekit.steps.opening import CMSGHDR, MSGHDR, close_descriptor
from clonekit.steps.sandbox import system_call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, ClassVar

    from clonekit.manners import Manner
    from clonekit.records import Operand, Slot
    from clonekit.steps.step import Step

#: How many seconds an order may take where nobody says.
DEADLINE = 10.0


class Refused(OSError):  # noqa: N818 - it is an answer, and the child is well
    """An order that the child does not take now: nothing of it was done, and it is as it was."""


class Child(Block):
    """A child that carries out orders: any step, any system call.

    Descriptors among a step's arguments are ours (a number, an object with `fileno()`), and are
    given to the child for that order; or the child's own, a `ChildFd` or a `Slot` that an earlier
    order has made.

    Attributes:
        pid: its number here.
        deadline: how many seconds an order may take. A child that is late is killed: a call that
            blocks cannot be abandoned.
        names: what the slots of earlier orders hold.
        state: what it does, or what became of it, in words.
    """

    __slots__ = ("__weakref__", "_fds", "_owner", "_pidfd", "deadline", "names", "pid", "state")
    manner: ClassVar[Manner]

    def __init__(self, pid: int, pidfd: int, deadline: float) -> None:
        self.pid = pid
        self._owner = here()  # a copy that forks off has no business with the child
        self._pidfd = pidfd
        self._fds: list[ChildFd] = []
        self.deadline = deadline_of(deadline)
        self.names: dict[str, Any] = {}
        self.state = "it is being made"

    # What the drivers give.

    def reserved(self) -> dict[Slot, int]:
        """Where the child has what is kept there for driving it."""
        raise NotImplementedError

    def _carry_out(self, order: Order, deadline: float | None) -> list[Any]:
        """Run an order, and give the results of its steps."""
        raise NotImplementedError

    # What a caller uses.

    @property
    def pidfd(self) -> int:
        """Its pidfd, which this handle owns; -1 when it does not hold the child any more."""
        return self._pidfd

    def fileno(self) -> int:
        """The pidfd, for `select` and its kin: readable when the child has ended.

        Raises: ValueError when this handle does not hold the child any more.
        """
        if self._pidfd < 0:
            msg = f"this handle holds no child any more: {self.state}"
            raise ValueError(msg)
        return self._pidfd

    def do(self, *steps: Step, deadline: float | None = None) -> Any:
        """Have the child carry out these steps, in this order, and give their results.

        One step has one result, several have a list. What a step opens is a `ChildFd`, or a tuple
        of them; any other result is what its last call returned. The slots that it names can be
        used by later orders. `deadline` is in seconds.

        Raises: SpawnError naming the step that failed: those before it are done, those after it
            are not, and the child is as alive as before. TimeoutError when the order took too
            long: the child is killed. ChildProcessError when the child has died. DeclarationError
            for what cannot be done in such a child; nothing was done then.
        """
        results = self._carry_out(self.order_of(steps), deadline)
        return results[0] if len(steps) == 1 else results

    def syscall(
        self, name: str | int, *operands: Operand | bytearray, deadline: float | None = None
    ) -> Any:
        """Have the child make a system call, by name or number, and give its result.

        Operands are integers, bytes (their address is passed), a bytearray for what the kernel
        writes, descriptors as `Fd(ours)` or a `ChildFd`. A new descriptor is a `ChildFd`.

        Raises: what `do` raises; the error's errno is the call's. See: syscalls(2).
        """
        return self.do(system_call(name, *operands), deadline=deadline)  # type: ignore[arg-type]

    def give(self, fd: object, at: int | None = None) -> ChildFd:
        """Give the child a descriptor of ours: SCM_RIGHTS over a socket of its own.

        It has the same open file then, close-on-exec, at a free number, or `at` this one.
        In a suspended program it is not close-on-exec: it is the program's.
        """
        copy: ChildFd = self.do(self.copying(fd, at))
        if at is None or copy.number == at:
            return copy
        given: ChildFd = self.do(self.placing(copy, at))
        copy.close()
        return given

    def copying(self, fd: object, at: int | None) -> Step:
        """The step that keeps a descriptor which is given for the order: at `at` or above."""
        if at in self.reserved().values():
            msg = f"the child keeps something at {at} for being driven; give another number"
            raise DeclarationError(msg)
        command = lib.F_DUPFD_CLOEXEC if self.manner.shares else lib.F_DUPFD
        return system_call("fcntl", Fd(fd), command, at or 0)

    def placing(self, copy: ChildFd, at: int) -> Step:
        """The step that puts it where something else was: what it was given as, perhaps."""
        return system_call("dup3", copy, at, os.O_CLOEXEC if self.manner.shares else 0)

    def getfd(self, fd: int) -> int:
        """A descriptor of ours for the open file behind its descriptor `fd`: pidfd_getfd.

        Raises: EPERM without the right to trace it, EBADF. Since: Linux 5.6. See: pidfd_getfd(2).
        """
        from clonekit.linux.pidfd import pidfd_getfd

        self.check()
        return pidfd_getfd(self.fileno(), fd)

    def limit(self, deadline: float | None) -> float:
        """How many seconds an order may take, which says so itself or not."""
        return self.deadline if deadline is None else deadline_of(deadline)

    # What a ChildFd and an Order use.

    def opened(self, number: int) -> ChildFd:
        """A new descriptor of the child's."""
        for other in self._fds:
            if other.number == number:  # dup3 has put something else there
                other.number = -1
        fd = ChildFd(self, number)
        self._fds = [*(other for other in self._fds if other.number >= 0), fd]
        return fd

    def close_descriptor(self, fd: ChildFd) -> None:
        """Have the child close one of its descriptors."""
        self.do(close_descriptor(fd))

    def order_of(self, steps: Sequence[Step]) -> Order:
        """These steps, compiled for this child."""
        self.check()
        refuse_others(steps)
        if not steps:
            msg = "an order has at least one step; give one"
            raise DeclarationError(msg)
        return Order(steps, self.manner, self, known=self.names, reserved=self.reserved())

    def _close_given(self, order: Order, registers: Any) -> None:
        """Close what an order that failed was given: its last records would have done that."""
        numbers = [
            registers[order.setup.assembler.registers[slot]]
            for slot in order.arranged.given.values()
        ]
        if numbers and max(numbers) >= 0:
            self.do(*(system_call("close", number) for number in numbers if number >= 0))

    def _is_ours(self) -> bool:
        """Whether this process is the one that made the child, not a copy that has forked off."""
        return is_here(self._owner)

    def check(self) -> None:
        """Whether it can be driven from here.

        Raises: ValueError when this handle does not hold the child any more; RuntimeError in a
            process that did not make it.
        """
        self.fileno()
        if not self._is_ours():
            msg = f"child {self.pid} is that of process {self._owner[0]}, of which this is a copy"
            raise RuntimeError(msg)

    def _leave(self) -> None:
        self.kill()

    def kill(self) -> None:
        """End the child, and reap it. One that has begun its program is not touched."""
        raise NotImplementedError


def send(channel: int, fds: Sequence[int]) -> None:
    """Send our descriptors to the child, which is about to take them: sendmsg, SCM_RIGHTS."""
    size = CMSGHDR.size + 4 * len(fds)
    control = bytearray(struct.pack(f"<Qii{len(fds)}i", size, SOL_SOCKET, SCM_RIGHTS, *fds))
    byte = bytearray(b".")
    vector = bytearray(struct.pack("<QQ", address(byte), 1))
    header = MSGHDR.pack(0, 0, address(vector), 1, address(control), size, 0)
    try:
        call("sendmsg", channel, address(header), MSG_NOSIGNAL)
    except (BrokenPipeError, ConnectionResetError):
        return  # it has died, and the order will tell
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        msg = f"one of the descriptors {list(fds)} is not open here; leave it out, or open it first"
        raise DeclarationError(msg) from None


def limit_of(pid: int) -> int | None:
    """How many descriptors a child may have; None where we may not know."""
    import resource

    try:
        return resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
    except (PermissionError, ProcessLookupError):
        return None
