"""A supervisor of calls: how it begins, and how it and its targets end."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from filtered import START
from parent_snapshot import descriptors
from supervised import served, target

from clonekit import DeclarationError, Filter, SpawnError, Spec, nascent, spawn
from clonekit.linux.abi import NUMBERS
from clonekit.notify import Listener, Request

pytestmark = pytest.mark.usefixtures("no_hang", "nothing_left")


def test_a_supervisor_that_goes_holds_nobody() -> None:
    code = "print(call(nr['getpgid'], 0)); print(call(nr['getpgid'], 0))"
    with target(code) as made:
        assert made.listener.receive() is not None
        made.listener.close()
        assert made.printed() == ["ENOSYS", "ENOSYS"]


def test_a_supervisor_that_dies_holds_nobody() -> None:
    code = f"""
import os, sys
from clonekit import Filter, spawn
from clonekit.notify import Listener
listener = Listener()
made = Filter("ALLOW").notify("getpgid", to=listener)
child = {START + f"print(call({NUMBERS['getpgid']}, 0))"!r}
spawn([sys.executable, "-c", child], no_new_privs=True, seccomp=made)
listener.receive()
os.kill(os.getpid(), 9)
"""
    reader, writer = os.pipe()
    with open(writer, "wb") as end:
        process = spawn([sys.executable, "-c", code], fds={0: 0, 1: end, 2: 2})
    with open(reader) as lines:  # until the grandchild has ended, too
        assert lines.read() == "ENOSYS\n"
    assert process.wait().signal == signal.SIGKILL


def test_the_program_has_no_descriptor_of_the_listener() -> None:
    code = "print(sorted(os.readlink(f'/proc/self/fd/{n}').partition(':')[0]"
    code += " for n in (0, 1, 2)), len(os.listdir('/proc/self/fd')))"
    with target(code) as made:
        made.listener.serve(lambda request: request.continue_())
        assert "seccomp" not in made.printed()[0]


def test_our_other_children_have_no_descriptor_of_the_listener() -> None:
    with target("call(nr['getpgid'], 0)") as made:
        with spawn(["sleep", "9"]) as other:
            assert not [name for name in descriptors(other.pid).values() if "seccomp" in name]
            other.kill()
        made.listener.serve(lambda request: request.result())


def test_serving_ends_when_no_process_is_left() -> None:
    code = "os.fork() or (time.sleep(0.1), call(nr['getpgid'], 0))"
    assert served(code, lambda request: request.result()) == []


def test_the_end_of_a_copy_of_our_process_does_not_end_the_serving() -> None:
    with target("print(call(nr['getpgid'], 0))") as made:
        pid = os.fork()
        if pid == 0:
            made.listener.close()
            os._exit(0)
        os.waitpid(pid, 0)
        request = made.listener.receive()
        assert request is not None
        request.result(5)
        assert made.printed() == ["5"]


def test_a_request_whose_caller_was_killed_is_passed_over() -> None:
    with target("call(nr['getpgid'], 0)") as made:
        request = made.listener.receive()
        assert request is not None
        assert request.is_valid()
        made.process.kill()
        assert made.process.wait().signal == signal.SIGKILL
        assert not request.is_valid()
        for answer in (request.result, request.continue_, lambda: request.add_fd(0)):
            with pytest.raises(ProcessLookupError):
                answer()
        with pytest.raises(ProcessLookupError):
            request.read(0x1000, 1)
        made.listener.serve(lambda _: None)


def test_a_handler_whose_caller_was_killed_goes_on() -> None:
    code = "if os.fork(): os.wait(); print(call(nr['getpgid'], 2))\nelse: call(nr['getpgid'], 1)"

    def handler(request: Request) -> None:
        if request.arguments[0] == 1:
            os.kill(request.pid, signal.SIGKILL)
            while request.is_valid():
                pass
        request.result(5)

    assert served(code, handler) == ["5"]


def test_a_signal_does_not_interrupt_a_call_that_was_received() -> None:
    code = """
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
print(call(nr["getpgid"], 0))
"""
    seen = []

    def handler(request: Request) -> None:
        seen.append(request.id)
        os.kill(request.pid, signal.SIGUSR1)
        request.result(9)

    assert sorted(served(code, handler)) == ["9", "handled"]
    assert len(seen) == 1


def test_serving_stops_and_goes_on_elsewhere() -> None:
    with target("print(call(nr['getpgid'], 0))") as made:
        made.listener.stop()
        made.listener.serve(lambda request: request.result())
        assert made.listener.receive() is None
        made.listener.close()
        assert made.printed() == ["ENOSYS"]


def test_a_thread_that_serves_is_stopped() -> None:
    listener = Listener()
    thread = threading.Thread(target=listener.serve, args=(lambda request: request.result(),))
    thread.start()
    listener.close()
    thread.join()
    assert listener.receive() is None


def test_receiving_ends_with_its_time() -> None:
    with Listener() as listener:
        assert listener.receive(0) is None
        assert listener.receive(0.01) is None


def test_several_threads_serve_one_listener() -> None:
    code = "print(sum(call(nr['getpgid'], n) for n in range(200)))"
    with target(code) as made:
        threads = [
            threading.Thread(
                target=made.listener.serve, args=(lambda request: request.result(1),)
            )
            for _ in range(4)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert made.printed() == ["200"]


def test_the_exec_of_the_program_is_answered_by_a_thread_that_serves_already() -> None:
    seen = []

    def handler(request: Request) -> None:
        seen.append(request.read_string(request.arguments[0]))
        request.continue_()

    with Listener() as listener:
        made = Filter("ALLOW").notify("execve", to=listener)
        thread = threading.Thread(target=listener.serve, args=(handler,))
        thread.start()
        while not listener._attending:
            pass
        with spawn(["/bin/true"], no_new_privs=True, seccomp=made) as process:
            assert process.wait().status == 0
        thread.join()
    assert seen == [b"/bin/true"]


def test_an_exec_that_nobody_answers_is_refused() -> None:
    with Listener() as listener:
        made = Filter("ALLOW").notify("execve", to=listener)
        with pytest.raises(SpawnError, match="another thread serve") as caught:
            spawn(["/bin/true"], no_new_privs=True, seccomp=made)
        assert caught.value.errno == errno.EDEADLK
        with pytest.raises(ValueError, match="has no filter"):
            listener.fd  # noqa: B018


def test_a_spawn_that_fails_takes_the_listener_back() -> None:
    with Listener() as listener:
        made = Filter("ALLOW").notify("getpgid", to=listener)
        with pytest.raises(FileNotFoundError):
            spawn(["/nonexistent"], no_new_privs=True, seccomp=made)
        with spawn(["true"], no_new_privs=True, seccomp=made) as process:
            listener.serve(lambda request: request.result())
            assert process.wait().status == 0
        with pytest.raises(SpawnError, match="one for each spawn") as caught:
            spawn(["true"], no_new_privs=True, seccomp=made)
        assert caught.value.errno == errno.EBUSY


def test_one_filter_of_a_process_has_a_listener() -> None:
    code = """
from clonekit import Filter, SpawnError, spawn
from clonekit.notify import Listener
try:
    spawn(["true"], no_new_privs=True, seccomp=Filter("ALLOW").notify("acct", to=Listener()))
except SpawnError as error:
    print(errno.errorcode[error.errno], error.syscall)
    print("one filter with a listener" in error.hint)
"""
    assert served(code, lambda request: request.result()) == ["EBUSY seccomp", "True"]


def test_the_listener_of_a_child_that_changes_its_ids_takes_the_right_to_trace_it() -> None:
    with Listener() as listener:
        made = Filter("ALLOW").notify("getpgid", to=listener)
        given: dict[str, Any] = {"no_new_privs": True, "seccomp": made}
        if os.geteuid() == 0:
            with spawn(["true"], uid=65534, gid=65534, **given) as process:
                listener.serve(lambda request: request.result())
                assert process.wait().status == 0
            return
        with pytest.raises(DeclarationError, match="CAP_SYS_PTRACE"):
            spawn(["true"], capabilities={"permitted": []}, **given)


def test_a_filter_with_a_listener_takes_the_right_to_install_it() -> None:
    lacks = {"capabilities": []} if os.geteuid() == 0 else {}
    with Listener() as listener:
        made = Filter("ALLOW").notify("getpgid", to=listener)
        with pytest.raises(SpawnError, match="needs no_new_privs=True") as caught:
            spawn(["true"], seccomp=made, **lacks)
        assert (caught.value.errno, caught.value.syscall) == (errno.EACCES, "seccomp")
        assert "has no filter" in repr(listener)


def test_a_program_that_is_suspended_is_supervised() -> None:
    with Listener() as listener:
        made = Filter("ALLOW").notify("mkdir", "mkdirat", to=listener)
        given: dict[str, Any] = {"no_new_privs": True, "seccomp": made, "suspended": True}
        suspended = spawn(["mkdir", "/nonexistent/directory"], **given)
        with suspended, suspended.resume() as process:
            listener.serve(lambda request: request.result())
            assert process.wait().status == 0


def test_a_child_that_has_waited_is_supervised() -> None:
    with Listener() as listener, nascent() as child:
        made = Filter("ALLOW").notify("mkdir", "mkdirat", to=listener)
        given: dict[str, Any] = {"no_new_privs": True, "seccomp": made}
        with child.start(["mkdir", "/nonexistent/directory"], **given) as process:
            listener.serve(lambda request: request.result())
            assert process.wait().status == 0


def test_explain_shows_what_is_fetched() -> None:
    listener = Listener()
    made = Filter("ALLOW").notify("getpgid", to=listener)
    texts = [entry["text"] for entry in Spec(["true"], seccomp=made).program().explain()]
    assert any("NEW_LISTENER" in str(text) for text in texts)
    listener.close()


def test_a_program_in_namespaces_of_its_own_is_supervised(need: Callable[[str], None]) -> None:
    need("user")
    seen = []

    def handler(request: Request) -> None:
        text = request.read_string(request.arguments[0])
        seen.append((text, os.readlink(f"/proc/{request.pid}/ns/pid") != ours))
        request.result(2)

    ours = os.readlink("/proc/self/ns/pid")
    code = """
text = ctypes.create_string_buffer(b"text")
print(os.getpid(), call(nr["getpgid"], ctypes.addressof(text)))
"""
    fields = {"namespaces": ["user", "pid", "uts", "net", "ipc"], "uid_map": 0, "gid_map": 0}
    assert served(code, handler, **fields) == ["1 2"]
    assert seen == [(b"text", True)]


def test_a_supervisor_and_an_init_are_not_had_together(need: Callable[[str], None]) -> None:
    need("user")
    with Listener() as listener:
        made = Filter("ALLOW").notify("getpgid", to=listener)
        with pytest.raises(DeclarationError, match="from the first stage"):
            spawn(["true"], namespaces=["user", "pid"], init=True, seccomp=made)
