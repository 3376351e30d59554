"""Templates to answers. Everything that is put into a template is escaped; nothing from outside is marked as safe."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.runtime import Context
from starlette.requests import Request
from starlette.responses import Response

from builderd.domain.ids import TenantId
from builderd.domain.tokens import Scope, Token
from builderd.services import caps
from builderd.services.application import Application
from builderd.services.caps import CapView
from builderd.store import UnitOfWork
from builderd.web import shown
from builderd.web.assets import Assets
from builderd.web.messages import MESSAGES
from builderd.web.telling import telling

T = TypeVar("T")

#: Renders a block of a template.
Region = Callable[[Context], Iterator[str]]

HTML = "text/html; charset=utf-8"
#: Shorter answers are not worth compressing.
LEAST_PACKED = 1_000
#: Level of the compression: 60 KB take a millisecond.
LEVEL = 5
#: Age of the frame's figures, in seconds.
FRAME_SECONDS = 5.0


class Visit(Protocol):
    """A request of a signed-in person, as far as rendering needs it."""

    @property
    def request(self) -> Request: ...
    @property
    def application(self) -> Application: ...
    @property
    def token(self) -> Token: ...
    @property
    def tenant(self) -> str: ...
    @property
    def now(self) -> datetime: ...
    @property
    def part(self) -> str: ...
    @property
    def allows_write(self) -> bool: ...
    def allows(self, scope: Scope) -> bool: ...
    async def read(self, work: Callable[[UnitOfWork], T]) -> T: ...


@dataclass(frozen=True, slots=True)
class Frame:
    """Figures that every page shows: the month's spending, and the number of builders."""

    made_at: float
    month: CapView
    builders: int


class Renderer:
    """The templates, and the page frame around them."""

    def __init__(self, application: Application, assets: Assets) -> None:
        self._application = application
        self._frames: dict[TenantId, Frame] = {}
        self._templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._templates.filters.update(shown.FILTERS, telling=telling)
        self._templates.globals.update(asset=assets.url, currency=application.prices.currency)

    async def page(self, visit: Visit, template: str, values: Mapping[str, Any], status: int) -> Response:
        """Render a page with its frame; with ``visit.part``, only the region of this name, a block of the template."""
        request = visit.request
        context = {
            "p": self._templates.get_template("parts.html").module,
            "visit": visit,
            "token": visit.token,
            "tenant": visit.tenant,
            "now": visit.now,
            "can_write": visit.allows_write,
            "is_operator": visit.allows(Scope.OPERATOR),
            "path": request.url.path,
            "query": request.query_params,
            "message": MESSAGES.get(request.query_params.get("done", "")),
            **values,
        }
        found = self._templates.get_template(template)
        region = self._region(template, visit.part)
        if region is not None:
            text = "".join(region(found.new_context(context)))
        else:
            text = found.render(frame=await self._frame(visit), **context)
        return await compressed(request, text.encode(), status)

    def _region(self, template: str, part: str) -> Region | None:
        """Return the function that renders the region: a block of the template, or of one that it extends."""
        for name in (template, "builder.html") if part else ():
            if part in (blocks := self._templates.get_template(name).blocks):
                return blocks[part]
        return None

    async def _frame(self, visit: Visit) -> Frame:
        """Return the frame's figures, at most ``FRAME_SECONDS`` old: with 10,000 builders they take a while to sum."""
        kept = self._frames.get(visit.token.tenant_id)
        if kept is None or time.monotonic() - kept.made_at > FRAME_SECONDS:
            kept = await visit.read(lambda uow: _frame(uow, visit))
            self._frames[visit.token.tenant_id] = kept
        return kept

    async def plain(self, request: Request, template: str, values: Mapping[str, Any], status: int = 200) -> Response:
        """Render a page without the frame of a signed-in person."""
        parts = self._templates.get_template("parts.html").module
        text = self._templates.get_template(template).render(p=parts, path=request.url.path, **values)
        return await compressed(request, text.encode(), status)


async def compressed(request: Request, body: bytes, status: int = 200, media_type: str = HTML) -> Response:
    """Return an answer with this body, gzipped for a client that takes it."""
    headers = {"Vary": "Accept-Encoding, Cookie"}
    if len(body) >= LEAST_PACKED and "gzip" in request.headers.get("accept-encoding", ""):
        body = await asyncio.to_thread(gzip.compress, body, LEVEL)
        headers["Content-Encoding"] = "gzip"
    return Response(body, status, headers, media_type)


def _frame(uow: UnitOfWork, visit: Visit) -> Frame:
    tenant = visit.token.tenant_id
    month = caps.view_of_tenant(uow, visit.application, tenant, visit.now)
    return Frame(time.monotonic(), month, sum(uow.builders.count_by_status(tenant).values()))
