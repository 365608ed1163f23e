"""Open a port as root, give up root, shut the doors behind, and serve.

The order is the caller's own: the socket is bound while that is allowed, the ids change after
it, then Landlock closes the file system and the network. The server never runs as root and finds
its socket listening, as descriptor 3. Usage: bind_and_drop.py [PORT]
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import urllib.request
from pathlib import Path

from clonekit import Program, Slot, SpawnError
from clonekit.linux import landlock
from clonekit.steps import (
    bind_socket,
    execute,
    listen_socket,
    open_socket,
    place_descriptors,
    restrict_with_landlock,
    set_gid,
    set_groups,
    set_no_new_privs,
    set_rlimit,
    set_socket_option,
    set_uid,
)

SERVER = """
import os, socket
listener = socket.socket(fileno=3)
connection, _ = listener.accept()
connection.recv(65536)
try:
    seen = os.listdir("/")
except PermissionError:
    seen = "nothing"
text = f"served by uid {os.getuid()}, groups {os.getgroups()}, who sees {seen} in /\\n"
connection.sendall(f"HTTP/1.0 200 OK\\r\\nContent-Length: {len(text)}\\r\\n\\r\\n{text}".encode())
"""
NOBODY = 65534
#: The system's own, which nobody may run even where this Python is in somebody's home.
PYTHON = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
DIRECTORIES = ("/usr", "/lib", "/lib64", "/etc", sys.base_prefix)
SYSTEM = [path for path in DIRECTORIES if Path(path).exists()]

root = os.geteuid() == 0
port = int(sys.argv[1]) if len(sys.argv) > 1 else 80 if root else 8080
if not root:
    print("Not root: a port from 1024 up, and the server keeps our uid.")
if landlock.abi():
    # It may read and run what the system has, write nothing, and open no other port.
    ruleset = landlock.Ruleset(
        execute=SYSTEM, read=[], write=[], tcp_bind=[], tcp_connect=[], best_effort=True
    )
    last_door = [restrict_with_landlock(ruleset)]
else:
    print("This kernel has no Landlock: the server sees all files.")
    last_door = []

listener = Slot("listener")
program = Program(
    [
        open_socket(socket.AF_INET, socket.SOCK_STREAM, name="listener"),
        set_socket_option(listener, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),
        bind_socket(listener, ("127.0.0.1", port)),
        listen_socket(listener),
        *([set_groups([]), set_gid(NOBODY), set_uid(NOBODY)] if root else []),
        place_descriptors({1: 1, 2: 2, 3: listener}),
        set_rlimit("nofile", 8),
        set_no_new_privs(),
        *last_door,
        execute([PYTHON, "-I", "-c", SERVER], env={}),
    ]
)
try:
    process = program.spawn()
except SpawnError as error:
    sys.exit(str(error))
with process:
    # The socket listens since before the server began: there is nothing to wait for.
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
        print(f"Port {port}: {answer.read().decode()}", end="")
    sys.exit(process.wait(timeout=30).returncode)
