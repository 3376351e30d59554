"""A visitor who dials 127.0.0.1 and says which host is meant, byte by byte where that matters."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from functools import cached_property
from typing import Any

#: Against hanging only.
PATIENCE = 20.0
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @cached_property
    def text(self) -> str:
        return self.body.decode()

    @cached_property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        """The only header of this name, or None."""
        values = self.all(name)
        assert len(values) < 2, values
        return values[0] if values else None

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name.lower()]

    @property
    def seen(self) -> dict[str, list[str]]:
        """Return the headers of a request as the app received them."""
        headers: dict[str, list[str]] = {}
        for name, value in self.json["headers"]:
            headers.setdefault(name, []).append(value)
        return headers


@dataclass(frozen=True)
class Visitor:
    port: int

    def get(self, host: str, path: str = "/head", *headers: str, method: str = "GET") -> Answer:
        """One request over a connection of its own; ``headers`` are whole lines."""
        lines = (f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers)
        return self.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), bodiless=method == "HEAD")

    def is_served(self, host: str) -> bool:
        """Return True if a request is answered with 200; False also when the connection is refused, reset or closed."""
        try:
            return self.get(host).status == 200
        except (OSError, IndexError):
            return False

    def browse(self, host: str, path: str = "/", *headers: str) -> Answer:
        return self.get(host, path, f"Accept: {BROWSER}", *headers)

    def send(self, request: bytes, *, bodiless: bool = False) -> Answer:
        return parse(self.exchange(request), bodiless=bodiless)

    def exchange(self, request: bytes) -> bytes:
        """All that comes back until the other side closes."""
        with self.dial() as connection:
            connection.sendall(request)
            return read_all(connection)

    def dial(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)


def ask(connection: socket.socket, host: str, path: str = "/head", *headers: str, method: str = "GET") -> Answer:
    """One request over a connection that stays open."""
    lines = (f"{method} {path} HTTP/1.1", f"Host: {host}", *headers)
    connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    head = read_until(connection, b"\r\n\r\n")
    length = int(parse(head).header("content-length") or 0)
    body = b""
    while len(body) < length:
        part = connection.recv(length - len(body))
        assert part, "the connection ended in mid-answer"
        body += part
    return parse(head + body)


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65_536):
        parts.append(part)
    return b"".join(parts)


def read_until(connection: socket.socket, end: bytes) -> bytes:
    read = b""
    while not read.endswith(end):
        part = connection.recv(1)
        assert part, f"the connection ended after {read!r}"
        read += part
    return read


def parse(answer: bytes, *, bodiless: bool = False) -> Answer:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    if ("transfer-encoding", "chunked") in headers:
        body = unchunked(body)
    assert not (bodiless and body), "an answer to HEAD has no body"
    return Answer(int(first.split(" ")[1]), headers, body)


def unchunked(body: bytes) -> bytes:
    whole = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return whole
        whole, body = whole + body[:length], body[length + 2 :]
