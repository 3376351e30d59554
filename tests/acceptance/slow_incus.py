"""Way to Incus on which copies of volumes take longer, as those of a busy disk do."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: First line of a call that makes or copies a volume.
VOLUME = b"POST /1.0/storage-pools/default/volumes/custom?"


class SlowIncus(socketserver.ThreadingUnixStreamServer):
    """Passes connections to Incus's socket on; a volume is made ``seconds`` after it was asked for."""

    daemon_threads = True

    def __init__(self, path: Path, incus: Path) -> None:
        self.path, self.incus = path, incus
        self.seconds = 0.0
        #: When volumes were asked for, by ``time.monotonic``.
        self.asked: list[float] = []
        super().__init__(str(path), _Connection)


class _Connection(socketserver.BaseRequestHandler):
    server: SlowIncus

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as incus:
            incus.connect(str(self.server.incus))
            back = threading.Thread(target=_pass_on, args=(incus, self.request), daemon=True)
            back.start()
            with suppress(OSError):
                while chunk := self.request.recv(65_536):
                    if chunk.startswith(VOLUME):
                        self.server.asked.append(time.monotonic())
                        time.sleep(self.server.seconds)
                    incus.sendall(chunk)
            with suppress(OSError):
                incus.shutdown(socket.SHUT_WR)
            back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(65_536):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def slow_incus(path: Path, incus: Path) -> Iterator[SlowIncus]:
    with SlowIncus(path, incus) as way:
        thread = threading.Thread(target=way.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield way
        finally:
            way.shutdown()
            thread.join()
