"""Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from builderd.doors.http.preferences import EVENT_STREAM

#: Proxies and load balancers close what has been silent for a minute or less.
HEARTBEAT_SECONDS = 15.0


def event(name: str, data: Mapping[str, Any] | str, event_id: str | None = None) -> bytes:
    """One event; ``data`` is an object or JSON text."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return format_sse_event(event=name, data_str=text, id=event_id)


def stream(events: AsyncGenerator[bytes], headers: Mapping[str, str] | None = None) -> StreamingResponse:
    """The events as they come, with heartbeats between them. Ends with the generator, or when the client leaves."""
    # nginx, for one, would collect the events instead of passing them on.
    unbuffered = {"X-Accel-Buffering": "no", **(headers or {})}
    return StreamingResponse(_with_heartbeats(events), media_type=EVENT_STREAM, headers=unbuffered)


async def _with_heartbeats(events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    pending = asyncio.ensure_future(_next(events))
    try:
        # The head of the answer is out at once, also when the first event takes a while.
        yield KEEPALIVE_COMMENT
        while True:
            done, _ = await asyncio.wait({pending}, timeout=HEARTBEAT_SECONDS)
            if not done:
                yield KEEPALIVE_COMMENT
                continue
            piece = pending.result()
            if piece is None:
                return
            yield piece
            pending = asyncio.ensure_future(_next(events))
    finally:
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)
        await events.aclose()


async def _next(events: AsyncGenerator[bytes]) -> bytes | None:
    return await anext(events, None)
