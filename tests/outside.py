"""A host beside this one, in a network namespace of its own: servers of a test that sandboxes reach."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from ssl import SSLContext

#: Python has setns(2) since 3.12.
LIBC, CLONE_NEWNET = ctypes.CDLL(None, use_errno=True), 0x40000000


@dataclass(frozen=True)
class Outside:
    """A namespace with these addresses, which the host routes to it."""

    namespace: str
    addresses: tuple[str, ...]

    @contextmanager
    def serving(
        self, handler: type[BaseHTTPRequestHandler], port: int, tls: SSLContext | None = None
    ) -> Iterator[ThreadingHTTPServer]:
        """Serve HTTP on every address of the namespace, from this process."""
        with ThreadPoolExecutor(1) as pool:
            server = pool.submit(self._server, handler, port).result()
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def _server(self, handler: type[BaseHTTPRequestHandler], port: int) -> ThreadingHTTPServer:
        """Listen inside the namespace. The thread stays in there, so it must be one that ends."""
        file = os.open(Path("/run/netns", self.namespace), os.O_RDONLY)
        try:
            if LIBC.setns(file, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(file)
        return ThreadingHTTPServer(("0.0.0.0", port), handler)


@contextmanager
def outside(*addresses: str, name: str = "", link: str = "") -> Iterator[Outside]:
    """Make a namespace that has all these addresses, behind a link of the host; ``link`` is its /30, ``a.b.c.4n``.

    Name and link are of this process unless they are given, so that several tests may run beside each other.
    """
    name = name or f"bd-out{os.getpid()}"
    near, far = _ends(link or f"192.0.3.{4 * (1 + os.getpid() % 60)}")
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "address", "add", f"{near}/30", "dev", name)
        _run("ip", "link", "set", name, "up")
        _run("ip", "-n", name, "address", "add", f"{far}/30", "dev", "eth0")
        for device in ("eth0", "lo"):
            _run("ip", "-n", name, "link", "set", device, "up")
        _run("ip", "-n", name, "route", "add", "default", "via", near)
        for address in addresses:
            _run("ip", "-n", name, "address", "add", f"{address}/32", "dev", "lo")
            _run("ip", "route", "add", f"{address}/32", "via", far)
        yield Outside(name, addresses)
    finally:
        # With its namespace alone it would go a moment later, perhaps in the middle of the next test.
        subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)
        _run("ip", "netns", "delete", name)


def _ends(network: str) -> tuple[str, str]:
    """Return the two addresses of a /30."""
    head, _, last = network.rpartition(".")
    return f"{head}.{int(last) + 1}", f"{head}.{int(last) + 2}"


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)
