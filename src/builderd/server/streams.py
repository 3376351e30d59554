"""Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any
from urllib.parse import quote

from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketState

from builderd.core.errors import BadRequest, BuilderdError, StoreUnavailable, ValidationFailed
from builderd.core.loops import end_tasks
from builderd.engine.port import Process
from builderd.executions.model import MAX_WINDOW, Window
from builderd.server.answers import failure
from builderd.server.preferences import EVENT_STREAM

#: Proxies and load balancers close what has been silent for a minute or less.
HEARTBEAT_SECONDS = 15.0
#: Seconds after which an unread answer is closed: it holds memory, or keeps its builder awake.
STALL_SECONDS = 60.0

log = logging.getLogger(__name__)

#: Returns whether the listener may still receive the stream.
Permission = Callable[[], Awaitable[bool]]


class ResourceStream(StreamingResponse):
    """An answer in pieces, from resources that are released when it was sent, or the client left or stopped reading."""

    def __init__(
        self,
        stack: AsyncExitStack,
        content: AsyncIterator[bytes | str],
        status: int,
        headers: dict[str, str],
        kind: str,
    ) -> None:
        super().__init__(content, status, headers, kind)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_soon(message: Message) -> None:
            async with asyncio.timeout(STALL_SECONDS):
                await send(message)

        async with self._stack:
            try:
                await super().__call__(scope, receive, send_soon)
            except (TimeoutError, ClientDisconnect):
                log.info("answer broken off: the client stopped reading")


def event(name: str, data: Mapping[str, Any] | str, event_id: str | None = None) -> bytes:
    """Return one encoded event; ``data`` is an object or JSON text."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return format_sse_event(event=name, data_str=text, id=event_id)


def stream(
    events: AsyncGenerator[bytes], headers: Mapping[str, str] | None = None, permitted: Permission | None = None
) -> StreamingResponse:
    """Return a response that sends the events as they come, with heartbeats between them.

    It ends with the generator, when the client leaves, or within ``HEARTBEAT_SECONDS`` of losing permission.
    """
    # nginx, for one, would buffer the events instead of passing them on.
    unbuffered = {"X-Accel-Buffering": "no", **(headers or {})}
    return StreamingResponse(_with_heartbeats(events, permitted), media_type=EVENT_STREAM, headers=unbuffered)


async def _with_heartbeats(events: AsyncGenerator[bytes], permitted: Permission | None) -> AsyncGenerator[bytes]:
    beat = time.monotonic() + HEARTBEAT_SECONDS
    pending = asyncio.ensure_future(anext(events, None))
    try:
        # Sends the head of the answer at once, also when the first event takes a while.
        yield KEEPALIVE_COMMENT
        while True:
            done, _ = await asyncio.wait({pending}, timeout=max(0, beat - time.monotonic()))
            # Checked by the clock, since a busy stream never reaches the timeout.
            if time.monotonic() >= beat:
                if permitted is not None and not await permitted():
                    return
                beat = time.monotonic() + HEARTBEAT_SECONDS
            if not done:
                yield KEEPALIVE_COMMENT
                continue
            piece = pending.result()
            if piece is None:
                return
            yield piece
            pending = asyncio.ensure_future(anext(events, None))
    finally:
        await end_tasks(pending)
        await events.aclose()


#: Seconds between checks that the client may still use the terminal.
GUARD_SECONDS = 15.0
#: Close codes of RFC 6455, 7.4.1.
NORMAL, POLICY = 1000, 1008


def attachment(name: str) -> str:
    """Return a ``Content-Disposition`` (RFC 6266): a browser saves the untrusted file, and never shows it."""
    return f"attachment; filename*=UTF-8''{quote(readable(name), safe='')}"


def readable(name: str) -> str:
    """Return a name in a folder as text: bytes that are not UTF-8 are U+FFFD."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


async def relay(
    websocket: WebSocket,
    process: Process,
    check: Callable[[], Awaitable[object]],
) -> None:
    """Relay until the process ends, the client disconnects, or ``check`` raises anything but ``StoreUnavailable``."""
    tasks = [
        asyncio.ensure_future(_show(websocket, process)),
        asyncio.ensure_future(_take(websocket, process)),
        asyncio.ensure_future(_guard(check)),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await end_tasks(*tasks)


async def _show(websocket: WebSocket, process: Process) -> None:
    while piece := await process.read():
        await websocket.send_bytes(piece)
    await websocket.send_json({"type": "exit", "exit_code": await process.wait()})
    await websocket.close(NORMAL)


async def _take(websocket: WebSocket, process: Process) -> None:
    while (message := await websocket.receive())["type"] != "websocket.disconnect":
        if (typed := message.get("bytes")) is not None:
            await process.write(typed)
        else:
            process.resize(_window(message.get("text") or ""))


def window_of(query: QueryParams) -> Window:
    """Return the size of a new terminal. Raises ``ValidationFailed``."""
    return Window(_size("columns", query.get("columns", "80")), _size("rows", query.get("rows", "24")))


def _size(name: str, value: Any) -> int:
    text = str(value)
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and 0 < int(text) <= MAX_WINDOW):
        raise ValidationFailed({name: [f"must be from 1 to {MAX_WINDOW}"]})
    return int(text)


def _window(text: str) -> Window:
    """Return the window size in a text message. Raises ``BadRequest`` or ``ValidationFailed``."""
    try:
        asked = json.loads(text)
        if asked["type"] == "resize":
            return Window(_size("columns", asked["columns"]), _size("rows", asked["rows"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise BadRequest(
        'A text message must be {"type": "resize", "columns": …, "rows": …}; send what is typed as binary.'
    )


async def _guard(check: Callable[[], Awaitable[object]]) -> None:
    while True:
        await asyncio.sleep(GUARD_SECONDS)
        # An unavailable database does not mean that the client lost its access: the next check asks again.
        with suppress(StoreUnavailable):
            await check()


async def refuse(websocket: WebSocket, error: BuilderdError) -> None:
    """Answer in the envelope before the connection is accepted; close it afterwards."""
    if websocket.application_state is WebSocketState.CONNECTING:
        await websocket.send_denial_response(failure(error).response())
    elif websocket.application_state is WebSocketState.CONNECTED:
        await websocket.close(POLICY, error.code)
