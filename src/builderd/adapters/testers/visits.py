"""Visits: single requests to an app, sent as the preview would send them."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from http import HTTPStatus
from urllib.parse import urlsplit

import httpx

from builderd.domain.machine_faults import machine_fault
from builderd.domain.qa_gate import Visit
from builderd.ports.testers import Target

#: So much of a body is read, and so long it is waited for once the head has come.
EXCERPT_BYTES = 300
BODY_SECONDS = 0.5
MAX_FAULT = 300
#: The beginning of a client's connection of HTTP/2: its preface, and a SETTINGS frame without settings.
PREFACE, EMPTY_SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
#: Bytes of a frame's head: its length (3), type, flags and stream (4).
FRAME_HEAD, SETTINGS = 9, 4


class Visitor:
    """Every request has a connection of its own: one that is used again after a 500 gave failures that were none."""

    def __init__(self) -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        self._client = httpx.AsyncClient(trust_env=False, verify=False, limits=limits)  # noqa: S501 -- plain HTTP only

    async def visit(self, target: Target, path: str, timeout_seconds: float) -> Visit:
        """Send the request; any response, or none, is returned. Raises ``MachineFault`` if it could not be sent."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(timeout_seconds):
                if target.h2c:
                    return await _begin_http2(target, begun)
                return await self._get(target, path, timeout_seconds, begun)
        except (TimeoutError, httpx.TimeoutException):
            return Visit(None, time.monotonic() - begun, f"nothing came within {timeout_seconds:.0f} seconds")
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            # Out of descriptors, say, which is no answer of the app's.
            if (fault := machine_fault(error)) is not None:
                raise fault from error
            return Visit(None, time.monotonic() - begun, _fault(error))

    async def _get(self, target: Target, path: str, timeout_seconds: float, begun: float) -> Visit:
        url = f"http://{target.address}{path}"
        async with self._client.stream("GET", url, headers=_headers(target), timeout=timeout_seconds) as response:
            seconds = time.monotonic() - begun
            excerpt = await _excerpt(response) if response.status_code >= 400 else ""
            return Visit(response.status_code, seconds, "", excerpt, response.headers.get("location", "")[:1000])

    async def close(self) -> None:
        await self._client.aclose()


async def _begin_http2(target: Target, begun: float) -> Visit:
    """Begin a connection of HTTP/2, to which the server's first answer is a SETTINGS frame (RFC 9113, section 3.4)."""
    reader, writer = await asyncio.open_connection(target.address.ip, target.address.port)
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


def _headers(target: Target) -> dict[str, str]:
    parts = urlsplit(target.url)
    return {
        "Host": parts.netloc,
        "X-Forwarded-Host": parts.netloc,
        "X-Forwarded-Proto": parts.scheme,
        "User-Agent": "builderd-qa",
        "Accept": "text/html,*/*;q=0.8",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }


async def _excerpt(response: httpx.Response) -> str:
    body = b""
    with suppress(TimeoutError, httpx.HTTPError):
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) >= EXCERPT_BYTES:
                    break
    return body[:EXCERPT_BYTES].decode(errors="replace")


def _fault(error: Exception) -> str:
    if isinstance(error, httpx.ConnectError | ConnectionRefusedError):
        return "the connection was refused"
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        return f"the connection ended without an HTTP answer ({str(error)[:MAX_FAULT] or type(error).__name__})"
    return f"{type(error).__name__}: {error}"[:MAX_FAULT]
