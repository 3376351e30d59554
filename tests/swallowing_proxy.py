"""A TCP proxy that delivers requests and swallows answers, as a network that breaks at the worst moment."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class SwallowingProxy:
    """``swallow``: answers to requests that begin with ``verb`` are still to be swallowed so many times."""

    url: str
    verb: bytes = b"POST /api/v1/builders "
    swallow: int = 0
    swallowed: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def takes(self, request: bytes) -> bool:
        """Return whether the answer to this request is swallowed."""
        with self.lock:
            if not (request.startswith(self.verb) and self.swallow):
                return False
            self.swallow -= 1
            self.swallowed += 1
            return True


@contextmanager
def swallowing_proxy(target: str, swallow: int = 1, verb: str = "POST /api/v1/builders ") -> Iterator[SwallowingProxy]:
    """Listen in front of the service at ``target`` until the block ends."""
    server = socket.create_server(("127.0.0.1", 0))
    host, port = urlsplit(target).hostname, urlsplit(target).port
    proxy = SwallowingProxy(f"http://127.0.0.1:{server.getsockname()[1]}", verb.encode(), swallow)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = server.accept()
                threading.Thread(target=_serve, args=(proxy, client, (host, port)), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield proxy
    finally:
        server.close()


def _serve(proxy: SwallowingProxy, client: socket.socket, target: tuple[str | None, int | None]) -> None:
    with client, socket.create_connection((target[0] or "", target[1] or 0)) as upstream, suppress(OSError):
        dropped = threading.Event()
        threading.Thread(target=_answer, args=(upstream, client, dropped), daemon=True).start()
        while piece := client.recv(65536):
            if proxy.takes(piece):
                dropped.set()
            upstream.sendall(piece)


def _answer(upstream: socket.socket, client: socket.socket, dropped: threading.Event) -> None:
    with suppress(OSError):
        while piece := upstream.recv(65536):
            if dropped.is_set():
                # The service has begun: the caller sees a connection that breaks, and no byte of the answer.
                client.shutdown(socket.SHUT_RDWR)
                return
            client.sendall(piece)
        client.shutdown(socket.SHUT_RDWR)
