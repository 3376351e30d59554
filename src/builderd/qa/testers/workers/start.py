"""Runs first in every jail: passes a listening socket to the relay outside, then executes the worker."""

import os
import socket
import sys

PORT = 7000

channel, worker = int(sys.argv[1]), sys.argv[2]
with socket.socket(fileno=channel) as outside, socket.create_server(("127.0.0.1", PORT), backlog=64) as listener:
    socket.send_fds(outside, [b"."], [listener.fileno()])
os.execv(sys.executable, [sys.executable, "-I", worker])  # noqa: S606 -- the same interpreter, with no shell
