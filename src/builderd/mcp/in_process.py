"""Calls of the SDK to an ASGI app in the same process, with bodies that arrive piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, MutableMapping
from typing import Any

import httpx2

#: An agent that calls many tools at once does not see that the service takes them one after the other.
PAUSES, PAUSE_SECONDS = 2, 5.0
#: Pieces of an answer that wait for their reader.
AHEAD = 8
Message = MutableMapping[str, Any]
#: Calls that go on after their reader has left, such as a deployment.
_running: set[asyncio.Task[None]] = set()


class InProcess(httpx2.AsyncBaseTransport):
    """Transport to an ASGI app. ``client`` is the address that the app sees.

    Each call runs in a task of its own. A caller that is cancelled disconnects from it, as over a network, and never
    cancels it: what was begun is recorded whole.
    """

    def __init__(self, app: Any, client: tuple[str, int] | None = None) -> None:
        self._app = app
        self._client = client

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Return the answer when its head has been sent. A refusal that ends within moments is waited for."""
        for _ in range(PAUSES):
            response = await self._answer(request)
            pause = _pause_of(response)
            if pause is None:
                return response
            await response.aclose()
            await asyncio.sleep(pause)
        return await self._answer(request)

    async def _answer(self, request: httpx2.Request) -> httpx2.Response:
        exchange = _Exchange(await request.aread())
        task = asyncio.create_task(exchange.run(self._app, self._scope(request)))
        _running.add(task)
        task.add_done_callback(_running.discard)
        try:
            start = await asyncio.shield(exchange.start)
        except asyncio.CancelledError:
            exchange.leave()
            raise
        return httpx2.Response(start["status"], headers=start.get("headers", []), stream=_Body(exchange))

    def _scope(self, request: httpx2.Request) -> Mapping[str, Any]:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "scheme": request.url.scheme,
            "path": request.url.path,
            "raw_path": request.url.raw_path.partition(b"?")[0],
            "query_string": request.url.query,
            "server": (request.url.host, request.url.port),
            "client": self._client,
            "root_path": "",
            "state": {},
        }


def _pause_of(response: httpx2.Response) -> float | None:
    """Return the seconds after which a call that was refused unread can be repeated, as one of too many at once."""
    after = response.headers.get("retry-after", "")
    if response.status_code not in {429, 503} or not (after.isascii() and after.isdecimal()):
        return None
    return float(after) if float(after) <= PAUSE_SECONDS else None


class _Exchange:
    """One request and its answer."""

    def __init__(self, body: bytes) -> None:
        self.start: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._request: Message | None = {"type": "http.request", "body": body, "more_body": False}
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(AHEAD)
        self._left = asyncio.Event()

    async def run(self, app: Any, scope: Mapping[str, Any]) -> None:
        """Call the app. An error after the head ends the answer early, one before it is the caller's."""
        try:
            await app(dict(scope), self._receive, self._send)
        except Exception as error:
            if not self.start.done():
                self.start.set_exception(httpx2.RemoteProtocolError(str(error) or type(error).__name__))
        finally:
            if not self.start.done():
                self.start.set_exception(httpx2.RemoteProtocolError("the call ended without an answer"))
            if self._left.is_set():
                self.start.exception()  # no one else reads it
            else:
                await self._pieces.put(None)

    def leave(self) -> None:
        """Disconnect: the app is notified, and nothing it sends is kept."""
        self._left.set()
        while not self._pieces.empty():
            self._pieces.get_nowait()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the answer's body as it arrives."""
        while (piece := await self._pieces.get()) is not None:
            yield piece

    async def _receive(self) -> Message:
        if self._request is not None:
            message, self._request = self._request, None
            return message
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if not self.start.done():
                self.start.set_result(message)
        elif message.get("body") and not self._left.is_set():
            await self._pieces.put(bytes(message["body"]))


class _Body(httpx2.AsyncByteStream):
    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._exchange.pieces():
            yield piece

    async def aclose(self) -> None:
        self._exchange.leave()
