"""A package index for a test's cluster, which does not reach the internet: it asks PyPI for its callers."""

from __future__ import annotations

import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

INDEX, FILES = "https://pypi.org", "https://files.pythonhosted.org"
SECONDS = 60


def source_of(path: str) -> str | None:
    """Return the URL at PyPI that a path of the index stands for; None if it stands for none."""
    if path.startswith("/simple/"):
        return INDEX + path
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
        if url.startswith(INDEX):
            content = content.replace(FILES.encode(), f"http://{self.headers['Host']}/files".encode())
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
def package_index(address: str, network: AbstractContextManager[None]) -> Iterator[str]:
    """URL of an index that listens at the address in this network; PyPI is asked from the network of the caller."""
    with network:
        server = ThreadingHTTPServer((address, 0), _Passing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{address}:{server.server_port}/simple"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
