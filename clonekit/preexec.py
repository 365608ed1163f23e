"""What `preexec_fn` is used for, and the declaration that replaces it."""

from __future__ import annotations

from clonekit.errors import DeclarationError


def refusal(preexec_fn: object) -> DeclarationError:
    """The error for a `preexec_fn`, which says what to write instead."""
    return DeclarationError(
        f"preexec_fn is {preexec_fn!r}; no Python runs between clone and exec: give a "
        "declaration's own keywords instead, as rlimits=, pdeathsig=, namespaces="
    )
