"""Visits: single requests to an app, sent as the preview would send them."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from http import HTTPStatus
from urllib.parse import urlsplit

import httptools

from builderd.domain.errors import machine_fault
from builderd.domain.qa import Visit
from builderd.ports.testers import Target

#: So much of a body is read, and so long it is waited for once the head has come.
EXCERPT_BYTES = 300
BODY_SECONDS = 0.5
#: The most that the proxy takes as an answer's head (tune.bufsize - tune.maxrewrite), and header lines of it.
HEAD_BYTES, MAX_HEADERS = 15_360, 100
#: The most that is read before the end of the last head, with all heads of status 1xx.
ALL_HEADS_BYTES = 100_000
READ_BYTES = 1 << 16
MAX_LOCATION, MAX_FAULT, SHOWN_BYTES = 1000, 300, 20
#: The beginning of a client's connection of HTTP/2: its preface, and a SETTINGS frame without settings.
PREFACE, EMPTY_SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
#: Bytes of a frame's head: its length (3), type, flags and stream (4).
FRAME_HEAD, SETTINGS = 9, 4
_BEGIN, _END_OF_HEAD = b"HTTP/", re.compile(rb"\n\r?\n")
_LENGTH = re.compile(rb"^content-length:[ \t]*([0-9]+)[ \t]*\r?\n", re.IGNORECASE | re.MULTILINE)


class _NoAnswer(Exception):
    """Raised for bytes that are no answer of HTTP, with that as its text."""


async def visit(target: Target, path: str, timeout_seconds: float) -> Visit:
    """Send one request; any response, or none, is returned. Raises ``MachineFault`` if it could not be sent.

    It has a connection of its own: requests on one that was used again after a 500 failed at healthy apps.
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
        answer = await _read_answer(reader)
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
    """An answer whose whole head is known. It takes what the proxy takes, which serves the app's visitors."""

    def __init__(self, head: bytes) -> None:
        """Parse the head. Raises ``_NoAnswer``."""
        self._parser = httptools.HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(
            lenient_headers=True,
            lenient_chunked_length=True,
            lenient_version=True,
            lenient_optional_cr_before_lf=True,
        )
        self._headers = 0
        self._encodings: list[bytes] = []
        self.status = 0
        self.location = b""
        self.body = b""
        self.is_over = False
        try:
            self._parser.feed_data(_without_repeated_length(head))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self.status != HTTPStatus.SWITCHING_PROTOCOLS:
                raise _no_http(str(error)) from error
        self._check(head)

    def _check(self, head: bytes) -> None:
        """Refuse what the parser takes and the proxy does not."""
        if self.status == HTTPStatus.SWITCHING_PROTOCOLS:
            raise _no_http("it has status 101, and no other protocol was asked for")
        if len(head) > HEAD_BYTES:
            raise _long_head(HEAD_BYTES)
        if self._headers > MAX_HEADERS:
            raise _no_http(f"its head has more than {MAX_HEADERS} header lines")
        if self._encodings not in ([], [b"chunked"]):
            raise _no_http(f"its Transfer-Encoding is {_shown(b', '.join(self._encodings))}, not chunked")
        if b"\0" in head:
            raise _no_http("its head has a byte of zero")

    def feed(self, data: bytes) -> None:
        """Parse more of the body, which is only an excerpt for messages."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.is_over = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.status:  # of a trailer, or of another answer
            return
        self._headers += 1
        if name.lower() == b"location":
            self.location = value
        elif name.lower() == b"transfer-encoding":
            self._encodings.append(value.strip().lower())

    def on_headers_complete(self) -> None:
        self.status = self.status or self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        if not self.is_over:
            self.body += data

    def on_message_complete(self) -> None:
        self.is_over = True


def _without_repeated_length(head: bytes) -> bytes:
    """Drop each Content-Length but the first, if all have the same value (RFC 9112, section 6.3)."""
    found = list(_LENGTH.finditer(head))
    if len({one[1] for one in found}) == 1:
        for one in reversed(found[1:]):
            head = head[: one.start()] + head[one.end() :]
    return head


async def _read_answer(reader: asyncio.StreamReader) -> _Answer:
    """Read to the end of the first head that is not of status 1xx. Raises ``_NoAnswer``."""
    data, size, searched = b"", 0, 0
    while True:
        if not _BEGIN.startswith(data[: len(_BEGIN)]):
            raise _no_http(f"it begins with {_shown(data)}")
        if end := _END_OF_HEAD.search(data, max(searched - 2, 0)):
            answer = _Answer(data[: end.end()])
            data, searched = data[end.end() :], 0
            if answer.status >= HTTPStatus.OK:
                answer.feed(data)
                return answer
            data = data.lstrip(b"\r\n")
            continue
        if size > ALL_HEADS_BYTES or len(data) > HEAD_BYTES:
            raise _long_head(ALL_HEADS_BYTES if size > ALL_HEADS_BYTES else HEAD_BYTES)
        searched = len(data)
        more = await reader.read(READ_BYTES)
        if not more:
            where = " (it ended before the end of a head)" if size else ""
            raise _NoAnswer(f"the connection ended without an HTTP answer{where}")
        size += len(more)
        data = data + more if data else more.lstrip(b"\r\n")


def _no_http(why: str) -> _NoAnswer:
    return _NoAnswer(f"what it sent is no HTTP answer: {why[:MAX_FAULT]}")


def _long_head(most: int) -> _NoAnswer:
    return _NoAnswer(f"its answer's head is longer than {most} bytes")


def _shown(data: bytes) -> str:
    return f'"{repr(data[:SHOWN_BYTES])[2:-1]}"'


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
    said = f"its answer begins with {_shown(head)}" if head else "it closed the connection"
    return Visit(None, seconds, f"it does not speak HTTP/2 without TLS ({said}), which protocol h2c asks for")


def _fault(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "the connection was refused"
    if isinstance(error, _NoAnswer):
        return str(error)
    return f"the connection ended without an HTTP answer ({str(error)[:MAX_FAULT] or type(error).__name__})"
