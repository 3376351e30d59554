"""Package indexes for a test's cluster, which does not reach the internet: PyPI and npm's registry are asked for it."""

from __future__ import annotations

import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

INDEX, FILES = "https://pypi.org", "https://files.pythonhosted.org"
REGISTRY = "https://registry.npmjs.org"
#: Of answers that name packages' files: the URL there, and the path here that stands for it.
REPLACED = {INDEX: (FILES, "/files"), REGISTRY: (REGISTRY, "/npm")}
SECONDS = 60


class Indexes(NamedTuple):
    """URLs for uv and for npm."""

    python: str
    npm: str


def source_of(path: str) -> str | None:
    """Return the URL at PyPI or npm's registry that a path of the index stands for; None if it stands for none."""
    if path.startswith("/simple/"):
        return INDEX + path
    if path.startswith("/npm/"):
        return REGISTRY + path.removeprefix("/npm")
    return FILES + path.removeprefix("/files") if path.startswith("/files/") else None


class _Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = source_of(self.path)
        if url is None:
            self.send_error(404)
            return
        headers = {"Accept": self.headers.get("Accept", "*/*"), "User-Agent": self.headers.get("User-Agent", "")}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, headers=headers), timeout=SECONDS, context=ssl.create_default_context()
            ) as answer:
                status, kind, content = answer.status, answer.headers["Content-Type"], answer.read()
        except urllib.error.HTTPError as error:
            status, kind, content = error.code, "text/plain", b""
        except (OSError, HTTPException):
            self.send_error(502)
            return
        for index, (there, here) in REPLACED.items():
            if url.startswith(index) and not url.endswith(".tgz"):
                content = content.replace(there.encode(), f"http://{self.headers['Host']}{here}".encode())
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    #: Without ranges in its answer, who asks takes the whole file.
    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def package_index(address: str, network: AbstractContextManager[None]) -> Iterator[Indexes]:
    """URLs of indexes that listen at the address in this network; the internet is asked from that of the caller."""
    with network:
        server = ThreadingHTTPServer((address, 0), _Passing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://{address}:{server.server_port}"
        yield Indexes(f"{url}/simple", f"{url}/npm/")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
