"""Pages: which part of a list is asked for."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Annotated, Any, TypeVar

from fastapi import Query, Request, Response
from pydantic import Field

from builderd.api.server.fair_scheduler import FairScheduler
from builderd.api.server.streams import ResourceStream
from builderd.domain.ids import TenantId
from builderd.schemas.v1.builders import MAX_INTEGER
from builderd.schemas.v1.envelope import Page, PageMeta
from builderd.schemas.v1.shape import Parameters

T = TypeVar("T")

MAX_PER_PAGE = 100
#: Characters of an answer that are collected before they are sent.
PIECE = 1 << 16


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


async def stream_page(request: Request, tenant_id: TenantId, page: Page[Any]) -> Response:
    """Return a page whose entries may be large (an environment, for one): a long one is encoded while it is sent."""
    pieces, start = _encoded(page, request.app.state.scheduler, tenant_id), ""
    async for piece in pieces:
        start += piece
        if len(start) >= PIECE:
            return ResourceStream(AsyncExitStack(), _joined(start, pieces), 200, {}, "application/json")
    return Response(start, media_type="application/json")


async def _joined(start: str, pieces: AsyncGenerator[str]) -> AsyncGenerator[str]:
    yield start
    async with aclosing(pieces):
        async for piece in pieces:
            yield piece


async def _encoded(page: Page[Any], scheduler: FairScheduler, tenant_id: TenantId) -> AsyncGenerator[str]:
    meta = page.meta.model_dump_json()
    yield f'{{"success":true,"message":{json.dumps(page.message)},"meta":{meta},"data":['
    entries, between = iter(page.data), ""
    while True:
        # Releases the turn before the piece is sent: its reader may be slow.
        async with scheduler.acquire(tenant_id):
            piece = ",".join(_until_large(entries))
        if not piece:
            break
        yield between + piece
        between = ","
    yield "]}"


def _until_large(entries: Iterator[Any]) -> Iterator[str]:
    """Encode entries as JSON until they fill a piece."""
    size = 0
    while size < PIECE and (entry := next(entries, None)) is not None:
        encoded = entry.model_dump_json()
        size += len(encoded)
        yield encoded
