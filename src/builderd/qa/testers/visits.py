"""Visits: single requests to an app, sent as the preview would send them."""

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from urllib.parse import urljoin, urlsplit, urlunsplit

from builderd.core.errors import machine_fault
from builderd.qa.model import Visit
from builderd.qa.port import Target

#: So much of a body is read, of an error and of a page, and so long it is waited for once the head has come.
EXCERPT_BYTES, PAGE_BYTES = 300, 20_000
BODY_SECONDS = 0.5
#: The most that the proxy takes as an answer's head (tune.bufsize - tune.maxrewrite).
HEAD_BYTES = 15_360
#: The most that is read before the end of the last head, with all heads of status 1xx.
ALL_HEADS_BYTES = 100_000
READ_BYTES = 1 << 16
MAX_FAULT, SHOWN_BYTES = 300, 20
#: The beginning of a client's connection of HTTP/2: its preface, and a SETTINGS frame without settings.
PREFACE, EMPTY_SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
#: Bytes of a frame's head: its length (3), type, flags and stream (4).
FRAME_HEAD, SETTINGS = 9, 4
_BEGIN, _END_OF_HEAD = b"HTTP/", re.compile(rb"\n\r?\n")
_STATUS = re.compile(rb"HTTP/\d\.\d +(\d{3})\b")
_LENGTH = re.compile(rb"^content-length:[ \t]*(\d+)", re.IGNORECASE | re.MULTILINE)
_IS_HTML = re.compile(rb"^content-type:[ \t]*text/html", re.IGNORECASE | re.MULTILINE)
#: Elements whose content is not shown, and those that are without text.
NEVER_SHOWN = frozenset({"script", "style", "title", "noscript", "template"})
PICTURES = frozenset({"img", "svg", "canvas", "video", "iframe", "object", "embed", "input", "textarea", "frame"})
_IS_JSON = re.compile(rb"^content-type:[ \t]*application/(?:\w+\+)?json", re.IGNORECASE | re.MULTILINE)
_LOCATION = re.compile(rb"^location:[ \t]*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_REDIRECTS, MAX_REDIRECTS = frozenset({301, 302, 303, 307, 308}), 5
_IS_CHUNKED = re.compile(rb"^transfer-encoding:[ \t]*chunked", re.IGNORECASE | re.MULTILINE)
#: The line before each chunk, and the last one, which has no bytes (RFC 9112, section 7.1).
_CHUNK = re.compile(rb"(?:\A|\r\n)[0-9a-fA-F]+[^\r\n]*\r\n(?:\r\n)?")


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
            return await _follow(target, path, begun)
    except TimeoutError:
        return Visit(None, time.monotonic() - begun, f"nothing came within {timeout_seconds:.0f} seconds")
    except (OSError, _NoAnswer) as error:
        # Out of descriptors, say, which is no answer of the app's.
        if (fault := machine_fault(error)) is not None:
            raise fault from error
        said = f"the connection ended without an HTTP answer ({str(error)[:MAX_FAULT] or type(error).__name__})"
        if isinstance(error, ConnectionRefusedError | _NoAnswer):
            said = str(error)
        return Visit(None, time.monotonic() - begun, said)


async def _connect(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        return await asyncio.open_connection(target.address.ip, target.address.port)
    except OSError as error:
        if isinstance(error, TimeoutError) or machine_fault(error) is not None:
            raise
        raise ConnectionRefusedError("the connection was refused") from error


async def _follow(target: Target, path: str, begun: float) -> Visit:
    """Follow redirects within the app, as a visitor's browser does."""
    own, at = urlsplit(target.url).netloc, path
    for _ in range(MAX_REDIRECTS + 1):
        seen, location = await _get(target, at, begun)
        try:
            to = urlsplit(urljoin(f"//{own}{at}", location))
        except ValueError:
            break
        if not location or to.netloc != own:
            break
        further = urlunsplit(("", "", to.path or "/", to.query, ""))
        if further == at or not further.isascii() or not further.isprintable() or " " in further:
            break  # to itself it redirects by another scheme, which is the proxy's
        at = further
    return seen if at == path else replace(seen, led_to=at)


async def _get(target: Target, path: str, begun: float) -> tuple[Visit, str]:
    """Return the answer, and where it redirects to."""
    reader, writer = await _connect(target)
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
    try:
        writer.write("".join(f"{line}\r\n" for line in (*lines, "")).encode())
        status, head, body = await _read_head(reader)
        seconds = time.monotonic() - begun
        is_ok, is_json = status == HTTPStatus.OK, _IS_JSON.search(head) is not None
        text = await _excerpt(head, body, reader, PAGE_BYTES) if is_ok and (is_json or _IS_HTML.search(head)) else ""
        is_error = status >= HTTPStatus.INTERNAL_SERVER_ERROR
        excerpt = await _excerpt(head, body, reader, EXCERPT_BYTES) if is_error else ""
    finally:
        writer.close()
    error = text[:EXCERPT_BYTES] if is_json and says_error(text) else ""
    found = _LOCATION.search(head) if status in _REDIRECTS else None
    location = found[1].decode("latin-1").strip() if found else ""
    return Visit(status, seconds, "", excerpt, not is_json and is_shell(text), error=error), location


def says_error(text: str) -> bool:
    """Return True for JSON of an object that says that something failed."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if not isinstance(said, dict):
        return False
    is_bad = (
        said.get("success") is False or said.get("ok") is False or said.get("status") in ("error", "fail", "failed")
    )
    return is_bad or any(said.get(name) for name in ("error", "errors", "exception", "traceback"))


def is_shell(page: str) -> bool:
    """Return whether the HTML has a script, and neither text nor a picture outside of elements that are never shown."""
    inside, has_script = "", False
    for piece in page.split("<")[1:]:
        tag, _, text = piece.partition(">")
        name = (tag.split(None, 1) or [""])[0].lower()
        if inside and name != f"/{inside}":
            continue
        inside = name if name in NEVER_SHOWN else ""
        has_script = has_script or name == "script"
        if not inside and (name in PICTURES or (text.strip() and not tag.startswith("!"))):
            return False
    return has_script


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """Return the status and the head of the answer, and what has come of its body; skip heads of status 1xx.

    Raises ``_NoAnswer``.
    """
    data, size, searched = b"", 0, 0
    while True:
        if not _BEGIN.startswith(data[: len(_BEGIN)]):
            raise _NoAnswer(f"what it sent is no HTTP answer: it begins with {_shown(data)}")
        end = _END_OF_HEAD.search(data, max(searched - 2, 0))
        if size > ALL_HEADS_BYTES or (end.end() if end else len(data)) > HEAD_BYTES:
            most = ALL_HEADS_BYTES if size > ALL_HEADS_BYTES else HEAD_BYTES
            raise _NoAnswer(f"its answer's head is longer than {most} bytes")
        if end:
            head, data, searched = data[: end.end()], data[end.end() :], 0
            found = _STATUS.match(head)
            if not found:
                raise _NoAnswer(f"what it sent is no HTTP answer: it begins with {_shown(head)}")
            status = int(found[1])
            if status == HTTPStatus.SWITCHING_PROTOCOLS:
                raise _NoAnswer("its answer has status 101, and no other protocol was asked for")
            if status >= HTTPStatus.OK:
                return status, head, data
            data = data.lstrip(b"\r\n")
            continue
        searched = len(data)
        more = await reader.read(READ_BYTES)
        if not more:
            where = " (it ended before the end of a head)" if size else ""
            raise _NoAnswer(f"the connection ended without an HTTP answer{where}")
        size += len(more)
        data = data + more if data else more.lstrip(b"\r\n")


async def _excerpt(head: bytes, body: bytes, reader: asyncio.StreamReader, most: int) -> str:
    """Return the beginning of the body."""
    length = _LENGTH.search(head)
    most = min(most, int(length[1][:9])) if length else most
    with suppress(TimeoutError, OSError):
        async with asyncio.timeout(BODY_SECONDS):
            while len(body) < most and (data := await reader.read(READ_BYTES)):
                body += data
    if _IS_CHUNKED.search(head):
        body = _CHUNK.sub(b"", body)
    return body[:most].decode(errors="replace")


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


def _shown(data: bytes) -> str:
    return f'"{repr(data[:SHOWN_BYTES])[2:-1]}"'
