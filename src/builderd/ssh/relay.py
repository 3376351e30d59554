"""Relay programs: a small Python program in the sandbox connects to the target of a forwarded connection.

It runs inside the sandbox's network namespace, so servers on the sandbox's loopback address are reachable, and the
gateway does not need the sandbox's address.
"""

from __future__ import annotations

_PROGRAM = """
import os, socket, sys, threading
if sys.argv[1] == "port":
    peer = socket.create_connection(("localhost", int(sys.argv[2])), 10)
else:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(10)
    peer.connect(sys.argv[2])
peer.settimeout(None)
def pour():
    while piece := os.read(0, 65536):
        peer.sendall(piece)
    peer.shutdown(socket.SHUT_WR)
threading.Thread(target=pour, daemon=True).start()
while piece := peer.recv(65536):
    view = memoryview(piece)
    while view:
        view = view[os.write(1, view):]
"""

_PYTHON = ("/usr/bin/python3", "-I", "-c", _PROGRAM)

#: Host names by which a client may forward to the sandbox itself.
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0", "ip6-localhost"})  # noqa: S104 -- a name, not an address


def relay_to_port(port: int) -> tuple[str, ...]:
    """Return the argv of a program that copies between its stdin and stdout and this port of the sandbox."""
    return (*_PYTHON, "port", str(port))


def relay_to_socket(path: str) -> tuple[str, ...]:
    """Return the argv of a program that copies between its stdin and stdout and a Unix socket of the sandbox."""
    return (*_PYTHON, "socket", path)
