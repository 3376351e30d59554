"""Base of all calls of one subject, lists that come in pages, and streams that survive a broken connection."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Generic, Self, TypeVar

import httpx2
from pydantic import BaseModel

from builderd.client._async.transport import AsyncTransport, parsed
from builderd.client.errors import NoAnswer, TimedOut, Unavailable
from builderd.client.options import RequestPath, api_path
from builderd.client.retries import async_sleep

T = TypeVar("T")

#: Seconds for which a broken stream is opened again, and between two attempts.
RECONNECT_SECONDS = 60.0
RECONNECT_INTERVAL = 1.0


class AsyncStream(Generic[T]):
    """Entries that come as they happen. Iterate over it to its end, or in a ``with`` block, which closes it."""

    def __init__(self, entries: AsyncIterator[T]) -> None:
        self._entries = entries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
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
    """Yield the rows of an answer that has no pages."""
    for row in (await transport.json("GET", path, params=params, waits=True))["data"]:
        yield read(row)


M = TypeVar("M", bound=BaseModel)

PER_PAGE = 100


class AsyncPages(Generic[T]):
    """List of the service. Iterate over it: each page is fetched when it is needed."""

    def __init__(
        self,
        transport: AsyncTransport,
        path: RequestPath,
        read: Callable[[Any], T],
        params: Mapping[str, Any] | None = None,
    ) -> None:
        self._transport = transport
        self._path = path
        self._read = read
        self._params = params or {}

    async def page(self, number: int = 1, per_page: int = PER_PAGE) -> tuple[list[T], int]:
        """Return one page and the length of the whole list."""
        params = {**self._params, "page": number, "per_page": per_page}
        answer = await self._transport.json("GET", self._path, params=params)
        return [self._read(one) for one in answer["data"]], answer["meta"]["total"]

    async def all(self) -> list[T]:
        """Return the whole list."""
        return [one async for one in self]

    async def __aiter__(self) -> AsyncIterator[T]:
        number, seen = 1, 0
        while True:
            found, total = await self.page(number)
            for one in found:
                yield one
            seen, number = seen + len(found), number + 1
            if not found or seen >= total:
                return


class AsyncCalls:
    """Calls of one subject, whose paths begin with ``base``."""

    def __init__(self, transport: AsyncTransport, *base: str) -> None:
        self._transport = transport
        self._base = base

    def _path(self, *segments: str | int) -> RequestPath:
        return api_path(*self._base, *segments)

    async def _read(self, shape: type[M], method: str, *segments: str | int, **options: Any) -> M:
        return await self._transport.read(shape, method, self._path(*segments), **options)

    async def _send(self, method: str, *segments: str | int, **options: Any) -> httpx2.Response:
        return await self._transport.request(method, self._path(*segments), **options)

    def _list(self, shape: type[M], *segments: str | int, **params: Any) -> AsyncPages[M]:
        return AsyncPages(self._transport, self._path(*segments), partial(parsed, shape), params)
