"""A forwarded connection, from inside the sandbox: its end is a small program there.

So what listens on the sandbox's own loopback address is reached as well, and this door need not know where the
sandbox runs.
"""

from __future__ import annotations

_PROGRAM = """
import os, socket, sys, threading
peer = socket.create_connection(("localhost", int(sys.argv[1])), 10)
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

#: What a client may call the sandbox itself.
LOCAL = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0", "ip6-localhost"})  # noqa: S104 -- a name, not an address


def relay(port: int) -> tuple[str, ...]:
    """The program that leads from its own input and output to this port of the sandbox."""
    return ("/usr/bin/python3", "-I", "-c", _PROGRAM, str(port))
