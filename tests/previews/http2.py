"""HTTP/2 by hand (RFC 9113), without encryption: frames with whatever headers a test wants, well-formed or not."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field

from tests.previews.visitor import Visitor

DATA, HEADERS, RESET, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS, ACKNOWLEDGE = 1, 4, 1

Header = tuple[bytes, bytes]


@dataclass
class Stream:
    """Response on one stream. ``refused`` is set when the stream or the connection was ended with an error."""

    head: bytes = b""
    body: bytes = b""
    refused: bool = False

    @property
    def ok(self) -> bool:
        """Return True if the status is 200: one byte, of HPACK's static table (RFC 7541, A)."""
        return self.head.startswith(b"\x88")


@dataclass
class Connection:
    socket: socket.socket
    streams: dict[int, Stream] = field(default_factory=dict)

    def open(self, stream: int, headers: list[Header], *, ends: bool = True) -> None:
        self.streams[stream] = Stream()
        self.send(HEADERS, END_HEADERS | (END_STREAM if ends else 0), stream, b"".join(map(_literal, headers)))

    def send(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self.socket.sendall(
            struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload
        )

    def finish(self, stream: int, *, head_only: bool = False) -> Stream:
        """Read until this stream has ended, one way or the other, or until the head of its response."""
        for frame in iter(self._frame, None):
            kind, flags, number, payload = frame
            if kind == SETTINGS and not flags & ACKNOWLEDGE:
                self.send(SETTINGS, ACKNOWLEDGE, 0, b"")
            self._take(kind, number, payload)
            ended = kind in (DATA, HEADERS) and (head_only or flags & END_STREAM)
            if kind == GOAWAY or (number == stream and (ended or kind == RESET)):
                break
        else:
            self.streams[stream].refused = True
        return self.streams[stream]

    def _take(self, kind: int, stream: int, payload: bytes) -> None:
        for one in self.streams.values() if kind == GOAWAY else [self.streams.get(stream, Stream())]:
            one.refused = one.refused or kind in (RESET, GOAWAY)
            one.head += payload if kind == HEADERS else b""
            one.body += payload if kind == DATA else b""

    def _frame(self) -> tuple[int, int, int, bytes] | None:
        head = self._exactly(9)
        if head is None:
            return None
        payload = self._exactly(int.from_bytes(head[:3], "big"))
        return None if payload is None else (head[3], head[4], int.from_bytes(head[5:], "big") & 0x7FFFFFFF, payload)

    def _exactly(self, size: int) -> bytes | None:
        read = b""
        while len(read) < size:
            try:
                part = self.socket.recv(size - len(read))
            except ConnectionError:
                return None
            if not part:
                return None
            read += part
        return read


def dial(visitor: Visitor) -> Connection:
    connection = Connection(visitor.dial())
    connection.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    connection.send(SETTINGS, 0, 0, b"")
    return connection


def request(host: str, path: str = "/head", *more: Header, method: str = "GET") -> list[Header]:
    pseudo = ((b":method", method), (b":scheme", "http"), (b":path", path), (b":authority", host))
    return [*((name, value.encode()) for name, value in pseudo), *more]


def _literal(header: Header) -> bytes:
    """A field that is not indexed, in plain bytes (RFC 7541, 6.2.2)."""
    name, value = header
    return b"\0" + _length(name) + name + _length(value) + value


def _length(text: bytes) -> bytes:
    """An integer with a prefix of 7 bits (RFC 7541, 5.1)."""
    size = len(text)
    if size < 127:
        return bytes((size,))
    size -= 127
    encoded = b"\x7f"
    while size > 127:
        encoded += bytes((size % 128 + 128,))
        size //= 128
    return encoded + bytes((size,))
