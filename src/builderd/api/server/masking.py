"""ASGI middleware: answers without the values of the caller's credentials, for callers that ask for it by a header."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from builderd.domain.credentials import Masker
from builderd.services import credentials
from builderd.services.application import Application

#: Header of the request that asks for it, and its only value.
HEADER, VALUE = "Builderd-Mask", "credentials"
#: Beginnings of media types in which no text can be found: pictures, compressed archives.
OPAQUE = ("image/", "application/zstd")
#: Bytes of a JSON document that are collected; a longer one is masked as text, while it is sent.
MAX_DOCUMENT = 16_000_000
EVENTS = "text/event-stream"


class Masking:
    """Mask the values of the tenant's credentials in everything that is answered with ``Builderd-Mask: credentials``.

    A JSON document is collected before it is masked, an event stream is masked event by event (so a command's output
    must not be streamed where its secrets matter), and all else while it is sent.
    """

    def __init__(self, app: ASGIApp, application: Application) -> None:
        self._app = app
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or Headers(scope=scope).get(HEADER) != VALUE:
            await self._app(scope, receive, send)
            return
        await self._app(scope, receive, _MaskedAnswer(self._application, scope, send))


class _MaskedAnswer:
    """The ``send`` of one request."""

    def __init__(self, application: Application, scope: Scope, send: Send) -> None:
        self._application = application
        self._scope = scope
        self._send = send
        self._masker = Masker(())
        self._type = ""
        self._held = bytearray()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
            return
        if message["type"] != "http.response.body" or not self._masker:
            await self._send(message)
            return
        self._held += message.get("body", b"")
        more = message.get("more_body", False)
        async for piece in self._pieces(last=not more):
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        if not more:
            await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, message: Message) -> None:
        headers = MutableHeaders(scope=message)
        self._type = headers.get("content-type", "")
        if not self._type.startswith(OPAQUE):
            self._masker = await self._read_values()
        if self._masker:
            del headers["content-length"]
        await self._send(message)

    async def _read_values(self) -> Masker:
        tenant_id = self._scope.get("state", {}).get("tenant_id")
        if tenant_id is None:
            return Masker(())
        application = self._application
        return Masker(
            await application.store.read(lambda uow: credentials.all_values(uow, application.vault, tenant_id))
        )

    async def _pieces(self, *, last: bool) -> AsyncIterator[bytes]:
        if self._type.startswith(EVENTS):
            *events, rest = bytes(self._held).split(b"\n\n")
            self._held = bytearray(rest)
            for event in events:
                yield b"\n".join(self._line(line) for line in event.split(b"\n")) + b"\n\n"
        elif "json" not in self._type or len(self._held) > MAX_DOCUMENT:
            self._type = ""  # a document that was too long goes on as text
            if not last:
                masked, rest = self._masker.beginning(bytes(self._held))
                self._held = bytearray(rest)
                yield masked
        if last and self._held:
            body, self._held = bytes(self._held), bytearray()
            yield await asyncio.to_thread(self._whole, body)

    def _line(self, line: bytes) -> bytes:
        field, colon, value = line.partition(b": ")
        return field + colon + self._json(value) if field == b"data" else line

    def _whole(self, body: bytes) -> bytes:
        return self._json(body) if "json" in self._type else self._masker.data(body)

    def _json(self, text: bytes) -> bytes:
        try:
            document = json.loads(text)
        except ValueError:
            return self._masker.data(text)
        return json.dumps(self._masker.document(document), ensure_ascii=False, separators=(",", ":")).encode()
