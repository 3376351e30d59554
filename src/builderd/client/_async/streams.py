"""Streams that go on by themselves after a broken connection."""

from __future__ import annotations

import codecs
import time
from collections.abc import AsyncIterator, Callable, Mapping
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from builderd.client._async.transport import AsyncTransport
from builderd.client.errors import NoAnswer, TimedOut, Unavailable
from builderd.client.logs import RowDecoder
from builderd.client.paths import RequestPath
from builderd.client.waiting import async_sleep

T = TypeVar("T")

#: Seconds for which a broken stream is opened again, and between two attempts.
RECONNECT_SECONDS = 60.0
RECONNECT_INTERVAL = 1.0
#: Read timeout of long answers: a busy machine needs a minute to look 100,000 lines up.
ROWS_SECONDS = 300.0


class AsyncStream(Generic[T]):
    """Entries that come as they happen. Iterate over it to its end, or in a ``with`` block, which closes it."""

    def __init__(self, entries: AsyncIterator[T]) -> None:
        self._entries = entries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[T]:
        return self._entries

    async def aclose(self) -> None:
        """Close the connection."""
        generator: Any = self._entries
        await generator.aclose()


async def follow(
    transport: AsyncTransport,
    path: RequestPath,
    params: Mapping[str, Any],
    read: Callable[[Any], T],
    *,
    last_id: str = "",
    keep_start: bool = False,
) -> AsyncIterator[T]:
    """Yield the entries of an event stream, each once, until the service ends it.

    A broken connection is opened again after the last entry. ``keep_start``: where there was no entry yet, after the
    time at which the stream began. Raises ``NoAnswer`` when that fails for a minute, and ``TimedOut`` after the
    client's ``timeout``.
    """
    query = {**params, "follow": True}
    opened, broken_at, deadline = False, 0.0, transport.deadline()
    while True:
        try:
            headers = {"Last-Event-ID": last_id} if last_id else {}
            async with transport.events("GET", path, headers=headers, params=query, deadline=deadline) as events:
                opened, broken_at = True, 0.0
                if keep_start and not last_id and query.get("since") is None and events.date:
                    query["since"] = parsedate_to_datetime(events.date)
                async for event in events:
                    if event is not None:
                        last_id = event.id or last_id
                        yield read(event.json())
        except TimedOut:
            raise
        except (NoAnswer, Unavailable) as error:
            now = time.monotonic()
            if opened and deadline is not None and now + RECONNECT_INTERVAL >= deadline:
                raise TimedOut("the time is over, and the stream was broken") from error
            broken_at = broken_at or now
            if not opened or now - broken_at > RECONNECT_SECONDS:
                raise
            await async_sleep(RECONNECT_INTERVAL)
        else:
            return


async def rows(
    transport: AsyncTransport, path: RequestPath, params: Mapping[str, Any], read: Callable[[Any], T]
) -> AsyncIterator[T]:
    """Yield the rows of a long answer as they arrive; few of them are held in memory."""
    decoder, text = RowDecoder(), codecs.getincrementaldecoder("utf-8")()
    async with transport.stream("GET", path, params=params, read_seconds=ROWS_SECONDS) as response:
        async for piece in response.aiter_bytes():
            for row in decoder.feed(text.decode(piece)):
                yield read(row)
