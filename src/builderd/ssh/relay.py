"""A forwarded connection, from inside the sandbox: its end is a small program there.

So what listens on the sandbox's own loopback address is reached as well, and this door need not know where the
sandbox runs.
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

#: What a client may call the sandbox itself.
LOCAL = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0", "ip6-localhost"})  # noqa: S104 -- a name, not an address


def relay_to_port(port: int) -> tuple[str, ...]:
    """The program that leads from its own input and output to this port of the sandbox."""
    return (*_PYTHON, "port", str(port))


def relay_to_socket(path: str) -> tuple[str, ...]:
    """The same to a Unix socket, as the app's user may reach it in the sandbox."""
    return (*_PYTHON, "socket", path)
