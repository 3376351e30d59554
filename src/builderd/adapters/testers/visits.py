"""Visits: single requests to an app, sent as the preview would send them."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from http import HTTPStatus
from urllib.parse import urlsplit

import httptools

from builderd.domain.machine_faults import machine_fault
from builderd.domain.qa_gate import Visit
from builderd.ports.testers import Target

#: So much of a body is read, and so long it is waited for once the head has come.
EXCERPT_BYTES = 300
BODY_SECONDS = 0.5
#: The most that an answer may have before the end of its head, with all heads of status 1xx before it.
HEAD_BYTES = 100_000
READ_BYTES = 1 << 16
MAX_LOCATION, MAX_FAULT = 1000, 300
#: The beginning of a client's connection of HTTP/2: its preface, and a SETTINGS frame without settings.
PREFACE, EMPTY_SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
#: Bytes of a frame's head: its length (3), type, flags and stream (4).
FRAME_HEAD, SETTINGS = 9, 4


class _NoAnswer(Exception):
    """Raised for bytes that are no answer of HTTP."""


async def visit(target: Target, path: str, timeout_seconds: float) -> Visit:
    """Send one request; any response, or none, is returned. Raises ``MachineFault`` if it could not be sent.

    It has a connection of its own: one that was used again after a 500 gave failures that were none.
    """
    begun = time.monotonic()
    try:
        async with asyncio.timeout(timeout_seconds):
            if target.h2c:
                return await _begin_http2(target, begun)
            return await _get(target, path, begun)
    except TimeoutError:
        return Visit(None, time.monotonic() - begun, f"nothing came within {timeout_seconds:.0f} seconds")
    except (OSError, _NoAnswer) as error:
        # Out of descriptors, say, which is no answer of the app's.
        if (fault := machine_fault(error)) is not None:
            raise fault from error
        return Visit(None, time.monotonic() - begun, _fault(error))


async def _get(target: Target, path: str, begun: float) -> Visit:
    reader, writer = await _connect(target)
    try:
        writer.write(_request(target, path))
        answer = await _read_head(reader)
        seconds = time.monotonic() - begun
        excerpt = await _excerpt(answer, reader) if answer.status >= 400 else ""
    finally:
        writer.close()
    return Visit(answer.status, seconds, "", excerpt, answer.location.decode("latin-1")[:MAX_LOCATION])


async def _connect(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        return await asyncio.open_connection(target.address.ip, target.address.port)
    except OSError as error:
        if isinstance(error, TimeoutError) or machine_fault(error) is not None:
            raise
        raise ConnectionRefusedError from error


def _request(target: Target, path: str) -> bytes:
    parts = urlsplit(target.url)
    lines = (
        f"GET {path} HTTP/1.1",
        f"Host: {parts.netloc}",
        f"X-Forwarded-Host: {parts.netloc}",
        f"X-Forwarded-Proto: {parts.scheme}",
        "User-Agent: builderd-qa",
        "Accept: text/html,*/*;q=0.8",
        "Accept-Encoding: identity",
        "Connection: close",
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


class _Answer:
    """An answer as its parser finds it; ``status`` is 0 until the whole head is there."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.location = b""
        self.body = b""
        self.is_over = False

    def feed(self, data: bytes) -> None:
        """Parse more of it. Raises ``_NoAnswer``."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.is_over = True
        except httptools.HttpParserError as error:
            if not self.status:
                raise _NoAnswer(str(error)) from error
            self.is_over = True  # the body is only an excerpt for messages

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"location":
            self.location = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= HTTPStatus.OK or status == HTTPStatus.SWITCHING_PROTOCOLS:
            self.status = status

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.is_over = bool(self.status)


async def _read_head(reader: asyncio.StreamReader) -> _Answer:
    answer, size = _Answer(), 0
    while not answer.status:
        if size > HEAD_BYTES:
            raise _NoAnswer(f"its head is longer than {HEAD_BYTES} bytes")
        data = await reader.read(READ_BYTES)
        if not data:
            raise _NoAnswer("it ended before the end of a head")
        size += len(data)
        answer.feed(data)
    return answer


async def _excerpt(answer: _Answer, reader: asyncio.StreamReader) -> str:
    with suppress(TimeoutError, OSError):
        async with asyncio.timeout(BODY_SECONDS):
            while len(answer.body) < EXCERPT_BYTES and not answer.is_over and (data := await reader.read(READ_BYTES)):
                answer.feed(data)
    return answer.body[:EXCERPT_BYTES].decode(errors="replace")


async def _begin_http2(target: Target, begun: float) -> Visit:
    """Begin a connection of HTTP/2, to which the server's first answer is a SETTINGS frame (RFC 9113, section 3.4)."""
    reader, writer = await _connect(target)
    try:
        writer.write(PREFACE + EMPTY_SETTINGS)
        head = await reader.read(FRAME_HEAD)
        while head and len(head) < FRAME_HEAD and (more := await reader.read(FRAME_HEAD - len(head))):
            head += more
    finally:
        writer.close()
    seconds = time.monotonic() - begun
    if len(head) == FRAME_HEAD and head[3] == SETTINGS and head[5:] == bytes(4):
        return Visit(HTTPStatus.OK, seconds)
    said = f'its answer begins with "{repr(head)[2:-1]}"' if head else "it closed the connection"
    return Visit(None, seconds, f"it does not speak HTTP/2 without TLS ({said}), which protocol h2c asks for")


def _fault(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "the connection was refused"
    return f"the connection ended without an HTTP answer ({str(error)[:MAX_FAULT] or type(error).__name__})"
