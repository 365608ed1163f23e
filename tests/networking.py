"""A test in a process of its own, in a network of its own where it is root: ours stays as it is."""

from __future__ import annotations

import functools
import os
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

import pytest
from step_cases import apart, missing

from clonekit.linux.abi import call, lib
from clonekit.rtnl import Rtnl

P = ParamSpec("P")
#: As long as a busy machine may need, in seconds.
LONG = 60


def alone(
    *needs: str, kinds: int = lib.CLONE_NEWNET
) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Run a test in a fork of this process that has new namespaces and all rights over them."""

    def of(test: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(test)
        def run(*arguments: P.args, **keywords: P.kwargs) -> None:
            for need in ("net", "veth", *needs):
                if reason := missing(need):
                    pytest.skip(reason)

            def attempt() -> None:
                unshare(kinds)
                try:
                    test(*arguments, **keywords)
                except BaseException as error:
                    error.args = ("".join(traceback.format_exception(error)),)
                    raise

            if reason := apart(attempt):
                pytest.fail(reason)

        return run

    return of


def unshare(kinds: int) -> None:
    """New namespaces for this process, in a new user namespace if it is not root."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        call("unshare", kinds)
        return
    call("unshare", kinds | lib.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        Path("/proc/self", name).write_text(text)


def interfaces() -> list[str]:
    """The interfaces that there are here."""
    return sorted(name for _, name in socket.if_nameindex())


def until(true: Callable[[], object]) -> bool:
    """Whether it becomes true: the kernel does some things a little later."""
    end = time.monotonic() + LONG
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def add_bridge(name: str) -> None:
    """Make a bridge here, and bring it up."""
    rtnl = Rtnl.here()
    rtnl.add_link("bridge", [], [("IFLA_IFNAME", name)], name)
    rtnl.set_link(rtnl.index(name), [], name, up=True)


def add_pair(name: str, peer: str) -> None:
    """Make a cable with both ends here, and bring them up."""
    rtnl = Rtnl.here()
    ends = [("VETH_INFO_PEER", {"index": 0, "attrs": [("IFLA_IFNAME", peer)]})]
    rtnl.add_link("veth", ends, [("IFLA_IFNAME", name)], name)
    for each in (name, peer):
        rtnl.set_link(rtnl.index(each), [], each, up=True)


def look(name: str, attribute: str) -> object:
    """What the kernel says of an interface here."""
    return Rtnl.here().look(name).get_attr(attribute)
