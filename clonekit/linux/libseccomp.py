"""libseccomp, loaded when a filter is compiled: names of calls, and rules made into BPF."""

from __future__ import annotations

import errno
import os

from clonekit.errors import DeclarationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, TypeAlias

    #: Argument, comparison, and one or two values: struct scmp_arg_cmp.
    Comparison: TypeAlias = tuple[int, int, int, int]
    #: Action, number of the call as libseccomp has it, comparisons.
    Rule: TypeAlias = tuple[int, int, Sequence[Comparison]]

LIBRARY = "libseccomp.so.2"
DECLARATIONS = """
typedef void *scmp_filter_ctx;
struct scmp_arg_cmp { unsigned int arg; int op; uint64_t datum_a; uint64_t datum_b; };
scmp_filter_ctx seccomp_init(uint32_t def_action);
void seccomp_release(scmp_filter_ctx ctx);
int seccomp_attr_set(scmp_filter_ctx ctx, int attr, uint32_t value);
int seccomp_arch_add(scmp_filter_ctx ctx, uint32_t arch_token);
uint32_t seccomp_arch_native(void);
uint32_t seccomp_arch_resolve_name(const char *arch_name);
int seccomp_syscall_resolve_name(const char *name);
char *seccomp_syscall_resolve_num_arch(uint32_t arch_token, int num);
int seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int syscall,
                           unsigned int arg_cnt, const struct scmp_arg_cmp *arg_array);
int seccomp_export_bpf(scmp_filter_ctx ctx, int fd);
int seccomp_export_pfc(scmp_filter_ctx ctx, int fd);
void free(void *ptr);
"""
#: __NR_SCMP_ERROR: no such name.
NO_CALL = -1
#: enum scmp_filter_attr.
ACT_BADARCH = 2
#: enum scmp_compare.
COMPARISONS = {"!=": 1, "<": 2, "<=": 3, "==": 4, ">=": 5, ">": 6}
MASKED = 7

_loaded: list[tuple[Any, Any]] = []


def library() -> tuple[Any, Any]:
    """The library and its ffi, loaded once.

    Raises: DeclarationError where it is not installed.
    """
    if not _loaded:
        from cffi import FFI

        ffi = FFI()
        ffi.cdef(DECLARATIONS)
        try:
            _loaded.append((ffi, ffi.dlopen(LIBRARY)))
        except OSError as error:
            msg = (
                f"a Filter is compiled by libseccomp, which is not here ({error}); install it "
                "(Debian: libseccomp2, Fedora: libseccomp), or give the filter's instructions as "
                "bytes"
            )
            raise DeclarationError(msg) from None
    return _loaded[0]


def number_of(name: str) -> int | None:
    """The number of a call as libseccomp has it, or None for a name that it does not know.

    A call that only other architectures have has a negative number. See:
    seccomp_syscall_resolve_name(3).
    """
    number: int = library()[1].seccomp_syscall_resolve_name(name.encode())
    return None if number == NO_CALL else number


def call_name(architecture: int, number: int) -> str | None:
    """The name of the call with this number on an architecture, given as its AUDIT_ARCH.

    See: seccomp_syscall_resolve_num_arch(3).
    """
    ffi, lib = library()
    text = lib.seccomp_syscall_resolve_num_arch(architecture, number)
    if not text:
        return None
    try:
        return str(ffi.string(text).decode())
    finally:
        lib.free(text)


def architecture(name: str) -> int:
    """The token of an architecture: its AUDIT_ARCH, but for x32.

    Raises: DeclarationError for a name that is none. See: seccomp_arch_resolve_name(3).
    """
    token: int = library()[1].seccomp_arch_resolve_name(name.encode())
    if not token:
        msg = f"{name!r} is no architecture that libseccomp knows; write them as x86, x32, arm"
        raise DeclarationError(msg)
    return token


def native() -> int:
    """The token of this machine's own architecture. See: seccomp_arch_native(3)."""
    return int(library()[1].seccomp_arch_native())


def compiled(
    default: int, foreign: int, architectures: Iterable[int], rules: Iterable[Rule]
) -> tuple[bytes, str]:
    """Rules as the kernel's struct sock_filter, and as text that a person reads.

    `default` is the answer where no rule matches, `foreign` to the calls of an architecture that
    is neither this machine's own nor among `architectures`. Where rules for one call overlap, the
    answer is as libseccomp has it.

    Raises: DeclarationError for what libseccomp refuses.
    See: seccomp_init(3), seccomp_rule_add(3), seccomp_export_bpf(3).
    """
    ffi, lib = library()
    context = lib.seccomp_init(default)
    if not context:
        msg = f"libseccomp takes no filter whose default is {default:#x}; give another default"
        raise DeclarationError(msg)
    try:
        _checked(lib.seccomp_attr_set(context, ACT_BADARCH, foreign), f"foreign={foreign:#x}")
        for token in architectures:
            result = lib.seccomp_arch_add(context, token)
            if result != -errno.EEXIST:
                _checked(result, f"architecture {token:#x}")
        for action, number, comparisons in rules:
            array = ffi.new("struct scmp_arg_cmp[]", list(comparisons))
            _checked(
                lib.seccomp_rule_add_array(context, action, number, len(comparisons), array),
                f"a rule for call {number} with {len(comparisons)} comparisons",
            )
        program = _exported(lib.seccomp_export_bpf, context)
        return program, _exported(lib.seccomp_export_pfc, context).decode()
    finally:
        lib.seccomp_release(context)


def _checked(result: int, what: str) -> None:
    """An error of libseccomp's is a negative errno, and no word of what it means."""
    if result < 0:
        msg = f"libseccomp refuses {what}: {os.strerror(-result)}"
        raise DeclarationError(msg)


def _exported(export: Any, context: Any) -> bytes:
    """What an export writes: into a file in memory, as versions before 2.6 know nothing else."""
    fd = os.memfd_create("filter")
    with open(fd, "r+b") as file:  # noqa: PTH123 - pathlib is slow to import
        _checked(export(context, fd), "to write the filter")
        file.seek(0)
        return file.read()
