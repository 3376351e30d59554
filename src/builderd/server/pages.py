"""Pages: which part of a list is asked for, and its answer."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Query, Request, Response
from pydantic import BaseModel, Field

from builderd.core.ids import TenantId
from builderd.executions.service import MemoryReservation
from builderd.schemas.builders import MAX_INTEGER
from builderd.schemas.shape import PageMeta, Parameters
from builderd.server.auth import operations_of
from builderd.server.streams import ResourceStream

T = TypeVar("T")

MAX_PER_PAGE = 100
#: Characters of an answer that are collected before they are sent.
PIECE = 1 << 16
#: An answer up to here is sent at once, and counts no more from then on: a hundred usual builders take 110 kB.
WHOLE = 1 << 17


class PageQuery(Parameters):
    """A page of a list: its number, and its number of entries."""

    page: int = Field(default=1, ge=1, le=MAX_INTEGER)
    per_page: int = Field(default=25, ge=1, le=MAX_PER_PAGE)

    def of(self, total: int) -> PageMeta:
        """Return the page's metadata for a list of ``total`` entries."""
        return PageMeta(page=self.page, per_page=self.per_page, total=total)

    def cut(self, found: Sequence[T]) -> Sequence[T]:
        """Return this page of a whole list."""
        start = (self.page - 1) * self.per_page
        return found[start : start + self.per_page]


ThePage = Annotated[PageQuery, Query()]


@dataclass(frozen=True, slots=True)
class Listing:
    """A successful answer to be encoded in pieces: JSON text before the entries, the entries, and text after them.

    An entry that is text is JSON already.
    """

    head: str
    entries: Iterable[BaseModel | str]
    tail: str


def page_of(message: str, meta: PageMeta, entries: Iterable[BaseModel | str]) -> Listing:
    """Return a ``Page``. The entries may be made while they are encoded."""
    head = f'{{"success":true,"message":{json.dumps(message)},"meta":{meta.model_dump_json()},"data":['
    return Listing(head, entries, "]}")


def single(message: str, data: BaseModel) -> Listing:
    """Return a ``Success`` whose ``data`` may be large."""
    return Listing(f'{{"success":true,"message":{json.dumps(message)},"data":', [data], "}")


async def listed(request: Request, tenant_id: TenantId, load: Callable[[], Awaitable[Listing]]) -> Response:
    """Load and encode a large answer: one of each tenant at a time, with turns of the event loop for others.

    It counts in the tenant's memory budget, a long one until it is sent. Raises ``RateLimited`` when too many wait
    already.
    """
    operations = operations_of(request)
    async with AsyncExitStack() as stack:
        reservation = stack.enter_context(operations.memory.reserve(tenant_id))
        async with operations.lists.one(tenant_id):
            pieces = await _encoded(await load())
            size = sum(map(len, pieces))
            await reservation.take(size)
        headers = {"Content-Length": str(size)}
        if size <= WHOLE:
            return Response(b"".join(pieces), 200, headers, "application/json")
        return ResourceStream(stack.pop_all(), _sent(pieces, reservation), 200, headers, "application/json")


async def _encoded(listing: Listing) -> deque[bytes]:
    pieces: deque[bytes] = deque()
    collected, size, between = [listing.head], 0, ""
    for entry in listing.entries:
        encoded = entry if isinstance(entry, str) else entry.model_dump_json()
        collected.append(between + encoded)
        size, between = size + len(encoded), ","
        if size >= PIECE:
            pieces.append("".join(collected).encode())
            collected, size = [], 0
            await asyncio.sleep(0)
    pieces.append("".join([*collected, listing.tail]).encode())
    return pieces


async def _sent(pieces: deque[bytes], reservation: MemoryReservation) -> AsyncGenerator[bytes]:
    while pieces:
        piece = pieces.popleft()
        yield piece
        reservation.release(len(piece))
