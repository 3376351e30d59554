"""The list of builders, live, with filters in its URL; and the names that the palette offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from starlette.responses import JSONResponse, RedirectResponse, Response

from builderd.builders.lists import ShownBuilder
from builderd.builders.model import JobType, Status
from builderd.builders.store import BuilderQuery
from builderd.database.unit_of_work import UnitOfWork
from builderd.metrics.model import Load, start_of
from builderd.money.model import cents
from builderd.web.shown import is_reachable, plural, spark_area, spark_line, state_in_words
from builderd.web.visits import Visit, number_in, page

PER_PAGE = 25
SORTS = (("-created_at", "Newest first"), ("-updated_at", "Last change"), ("name", "Name"))
#: Filters of the list: key, text, and the query that it adds.
KINDS: Mapping[str, tuple[str, Status | None, JobType | None]] = {
    "all": ("All", None, None),
    "running": ("Running", Status.RUNNING, None),
    "stopped": ("Asleep or stopped", Status.STOPPED, None),
    "failed": ("Failed", Status.FAILED, None),
    "jobs": ("Jobs", None, JobType.ONE_TIME),
}
SPARK_STEP, SPARK_STEPS = timedelta(minutes=30), 48
#: Names that the palette offers.
PALETTE = 500


@page("/builders")
async def show_builders(visit: Visit) -> Response:
    """Show one page of the tenant's builders."""
    query = visit.request.query_params
    show = query.get("show", "all") if query.get("show") in KINDS else "all"
    sort = query.get("sort", "") if query.get("sort") in dict(SORTS) else SORTS[0][0]
    search = query.get("search", "").strip().lower()[:63]
    _, status, job_type = KINDS[show]
    asked = BuilderQuery(
        search=search or None,
        status=status,
        job_type=job_type,
        sort=sort,
        page=max(1, min(number_in(query.get("page"), 1), 10**6)),
        per_page=PER_PAGE,
    )

    def look(uow: UnitOfWork) -> tuple[Mapping[str, int], Sequence[dict[str, Any]], int]:
        counts = _counts(uow, visit)
        total = uow.builder_lists.count(visit.token.tenant_id, asked) if asked.search else counts[show]
        return counts, _rows(uow, visit, asked), total

    counts, rows, total = await visit.read(look)
    base = f"?show={show}&sort={sort}&search={search}&"
    return await visit.page(
        "builders.html",
        rows=rows,
        total=total,
        page=asked.page,
        per_page=PER_PAGE,
        base=base,
        show=show,
        sort=sort,
        sorts=SORTS,
        search=search,
        kinds=[(key, text, counts[key]) for key, (text, _, _) in KINDS.items()],
        counted=counts["all"],
        summary=_summary(counts),
        origin=visit.application.public_url or str(visit.request.base_url).rstrip("/"),
    )


def _counts(uow: UnitOfWork, visit: Visit) -> Mapping[str, int]:
    by_status = uow.builders.count_by_status(visit.token.tenant_id)
    jobs = uow.builder_lists.count(visit.token.tenant_id, BuilderQuery(job_type=JobType.ONE_TIME))
    counts = {key: by_status.get(status, 0) for key, (_, status, _) in KINDS.items() if status is not None}
    deploying = by_status.get(Status.CREATING, 0)
    return {"all": sum(by_status.values()), **counts, "jobs": jobs, "creating": deploying}


def _summary(counts: Mapping[str, int]) -> str:
    words = (
        ("running", "running"),
        ("stopped", "asleep or stopped"),
        ("creating", "being deployed"),
        ("failed", "failed"),
    )
    shown = ", ".join(f"{counts[key]:,} {word}" for key, word in words if counts[key])
    return f"{plural(counts['all'], 'builder')}{': ' + shown if shown else ''}."


def _rows(uow: UnitOfWork, visit: Visit, query: BuilderQuery) -> Sequence[dict[str, Any]]:
    found = uow.builder_lists.shown(visit.token.tenant_id, query, visit.now)
    begin = start_of(visit.now, SPARK_STEP) - (SPARK_STEPS - 1) * SPARK_STEP
    loads = uow.metrics.loads([one.id for one in found], begin, SPARK_STEP)
    return [_row(visit, one, loads.get(one.id, {})) for one in found]


def _row(visit: Visit, one: ShownBuilder, loads: Mapping[int, Load]) -> dict[str, Any]:
    application, limits = visit.application, one.resources
    steps = [loads.get(number) for number in range(SPARK_STEPS)]
    cpu = [load and load.cpu for load in steps]
    memory = [load and load.memory_bytes for load in steps]
    reading = application.usage.get(one.id)
    visited = reading.visited if reading else None
    return {
        "builder": one,
        "is_reachable": is_reachable(one.life.status),
        "url": application.preview_domain.url(one.host),
        "state": state_in_words(one.life, application.limits),
        "reviewed": one.review.reviewed(visit.now),
        "cost": cents(one.spent.money),
        "open": visited.open_connections if visited else 0,
        "cpu_line": spark_line(cpu, limits.cpu / 4),
        "cpu_area": spark_area(cpu, limits.cpu / 4),
        "memory_line": spark_line(memory, limits.memory_bytes),
    }


@page("/palette")
async def palette(visit: Visit) -> Response:
    """Return the names and states of the last changed builders, for the palette."""
    query = BuilderQuery(sort="-updated_at", per_page=PALETTE)
    found = await visit.read(lambda uow: uow.builder_lists.lives(visit.token.tenant_id, query))
    return JSONResponse([[one.name, state_in_words(one, visit.application.limits).word] for one in found])


@page("/")
async def home(visit: Visit) -> Response:
    """Send to the list of builders."""
    return RedirectResponse("/builders", 303)
