"""A network made between clone and exec: a child waits in a namespace of its own, we furnish it.

The child opens a netlink socket there, and we fetch that socket: so pyroute2 speaks to the child's
network from this process, without a fork, and without entering the namespace. Then the child begins
its program, which finds the network ready. Any user may do this.
"""

from __future__ import annotations

import os
import socket
import sys

from pyroute2 import IPRoute

import clonekit
from clonekit.steps import map_uid, open_socket

ADDRESS = "10.20.30.40"
SERVE_AND_ASK = f"""
import socket
with socket.create_server(("{ADDRESS}", 80)) as server:
    with socket.create_connection(("{ADDRESS}", 80)) as asking, server.accept()[0] as answering:
        answering.sendall(b"hello")
        print("port 80 of {ADDRESS} says", asking.recv(5).decode())
"""

with clonekit.nascent(namespaces=["user", "net"]) as child:
    child.do(map_uid(0))
    rtnl = child.do(open_socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 0, name="rtnl"))
    with IPRoute(fileno=rtnl.fetch()) as network:  # which closes it
        lo = network.link_lookup(ifname="lo")[0]
        network.link("set", index=lo, state="up")
        network.addr("add", index=lo, address=ADDRESS, prefixlen=24)
        names = [link.get("ifname") for link in network.get_links()]
        print(f"pid {os.getpid()}: the child's network has {', '.join(names)}", flush=True)
    process = child.start([sys.executable, "-c", SERVE_AND_ASK])
sys.exit(process.wait(timeout=60).returncode)
