"""Activity: the events of all builders of a tenant, by day, filtered by builder and type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from starlette.responses import Response

from builderd.domain.events import Event, is_pattern
from builderd.domain.ids import BuilderId
from builderd.store import UnitOfWork
from builderd.store.events import EventQuery
from builderd.web.visits import Visit, page

PER_PAGE = 50
KINDS: Sequence[tuple[str, str]] = (
    ("", "All"),
    ("builder.*", "Builders"),
    ("version.*", "Versions"),
    ("review.*", "Reviews"),
    ("backup.*", "Backups"),
    ("spending.*", "Money"),
)


async def show_activity(visit: Visit) -> Response:
    """Show a page of events, the newest first."""
    query = visit.request.query_params
    kind = query.get("type", "")
    types = (kind,) if kind and is_pattern(kind) else ()
    number = max(1, int(query["page"])) if query.get("page", "").isdecimal() and len(query["page"]) < 8 else 1
    name = query.get("builder", "").strip()

    def look(uow: UnitOfWork) -> tuple[Sequence[Event], int, Mapping[BuilderId, str], bool]:
        tenant = visit.token.tenant_id
        builder = uow.builders.by_name(tenant, name) if name else None
        if name and builder is None:
            return (), 0, {}, True
        asked = EventQuery(builder.id if builder else None, types=types)
        events, total = uow.events.page(tenant, asked, page=number, per_page=PER_PAGE)
        found = {one.builder_id for one in events if one.builder_id}
        names = {id_: one.name for id_ in found if (one := uow.builders.get(id_)) and one.desired != "deleted"}
        return events, total, names, False

    events, total, names, is_unknown = await visit.read(look)
    days = [(day, list(group)) for day, group in groupby(events, key=lambda one: one.time.date())]
    return await visit.page(
        "activity.html",
        days=days,
        total=total,
        page=number,
        per_page=PER_PAGE,
        names=names,
        kinds=KINDS,
        kind=kind,
        name=name,
        is_unknown=is_unknown,
    )


ROUTES = [page("/activity", show_activity)]
