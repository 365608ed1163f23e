"""Two hosts with a cable between them, that talk over TCP. Any user may do this.

Each host is a process in a network of its own. The networks are made first, and connected; then
each process joins one. The server's socket is bound and listens when its spawn returns, so that
nobody waits for it. Where we are not root, both networks belong to a new user namespace, in which
the hosts are root, and the server may have port 80.
"""

from __future__ import annotations

import socket
import sys

import clonekit
from clonekit.network import Veth, networks
from clonekit.steps import bind_socket, listen_socket, open_socket

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
SERVE = """
import socket
listener = socket.socket(fileno=3)
connection, (address, _) = listener.accept()
with listener, connection:
    connection.sendall(f"hello, {address}".encode())
"""
ASK = f"""
import socket
names = ", ".join(name for _, name in socket.if_nameindex())
with socket.create_connection(("{SERVER}", 80), timeout=30) as connection:
    print("this host has", names, "and", connection.getsockname()[0], flush=True)
    print("port 80 of {SERVER} says", connection.makefile().read(), flush=True)
"""

left, right = networks(2)
with left, right:
    left.add(
        Veth(
            "eth0", addresses=[f"{SERVER}/24"], into=right, peer="eth0",
            peer_addresses=[f"{CLIENT}/24"],
        )
    )  # fmt: skip
    listener = clonekit.Slot("listener")
    server = clonekit.spawn(
        [sys.executable, "-c", SERVE],
        join=left.join,
        loopback=True,
        steps=[
            open_socket(socket.AF_INET, socket.SOCK_STREAM, name="listener"),
            bind_socket(listener, (SERVER, 80)),
            listen_socket(listener),
        ],
        fds={0: 0, 1: 1, 2: 2, 3: listener},
    )
    client = clonekit.spawn([sys.executable, "-c", ASK], join=right.join, loopback=True)
with server, client:
    ended = client.wait(60).status, server.wait(60).status
sys.exit(any(ended))
