"""Base of all calls of one subject, and lists that come in pages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any, Generic, TypeVar

import httpx2
from pydantic import BaseModel

from builderd.client._async.transport import AsyncTransport, parsed
from builderd.client.paths import RequestPath, api_path

T = TypeVar("T")
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
