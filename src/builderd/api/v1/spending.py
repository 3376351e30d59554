"""Spending: what all builders cost."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from builderd.api import openapi
from builderd.api.server.answers import success
from builderd.api.server.auth import Reader, TheApplication
from builderd.api.server.paths import PREFIX
from builderd.api.v1.pages import MAX_PER_PAGE, Listing, PageQuery, listed
from builderd.domain.errors import ValidationFailed
from builderd.domain.prices import DAY, MOST_DAYS, day_of, month_of
from builderd.schemas.v1.shape import Day, PageMeta, Parameters, UtcTime
from builderd.schemas.v1.spending import (
    DaySpending,
    DaysSpending,
    DaysSpendingAnswer,
    Deployment,
    Spending,
    SpendingAnswer,
)
from builderd.services import spending
from builderd.store.builder_lists import ListedCost

router = APIRouter(prefix=PREFIX, tags=[openapi.SPENDING])


class SpendingQuery(PageQuery):
    """A span of time: from its beginning on, up to before its end. A page has more entries than those of other lists.

    Once all builders came in one answer: most tenants have no more than a page has.
    """

    per_page: int = Field(default=MAX_PER_PAGE, ge=1, le=MAX_PER_PAGE)
    since: UtcTime | None = Field(default=None, alias="from")
    until: UtcTime | None = Field(default=None, alias="to")


@router.get("/builders/spending", responses=openapi.answers(200, SpendingAnswer, "What was spent.", 422))
async def read_spending(
    request: Request, application: TheApplication, identity: Reader, query: Annotated[SpendingQuery, Query()]
) -> Response:
    """Return the cost of your builders, deleted ones included, a page of builders at a time."""
    since, until = query.since, query.until
    if since is not None and until is not None and since >= until:
        raise ValidationFailed({"to": ["must be later than from"]})
    now = application.clock.now()
    tenant_id = identity.token.tenant_id

    async def listing() -> Listing:
        span = spending.Span(since, until, query.page, query.per_page)
        report = await application.store.read(lambda uow: spending.report(uow, application, tenant_id, now, span))
        return _present(report, query.of(report.total))

    return await listed(request, tenant_id, listing)


class DaysQuery(Parameters):
    """Days in UTC: from the first on, up to before the last; without them, this month up to today."""

    since: Day | None = Field(default=None, alias="from", description="The first day.  Default: this month's first.")
    until: Day | None = Field(
        default=None, alias="to", description=f"The day after the last, at most {MOST_DAYS} after the first."
    )


@router.get("/spending/days", responses=openapi.answers(200, DaysSpendingAnswer, "What each day cost.", 422))
async def read_spending_days(
    application: TheApplication, identity: Reader, query: Annotated[DaysQuery, Query()]
) -> Response:
    """Return the cost of all your builders together, deleted ones included, of each day that has begun."""
    now, tenant_id = application.clock.now(), identity.token.tenant_id
    since = month_of(now) if query.since is None else _midnight(query.since)
    until = day_of(now) + DAY if query.until is None else _midnight(query.until)
    report = await application.store.read(lambda uow: spending.by_day(uow, application, tenant_id, now, (since, until)))
    return success(_present_days(report)).response()


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _present_days(report: spending.DayReport) -> DaysSpendingAnswer:
    days = [
        DaySpending(day=one.start.date(), runtime_hours=float(one.hours), cost=float(one.cost)) for one in report.days
    ]
    data = DaysSpending(currency=report.currency, total_cost=float(report.total_cost), days=days)
    message = f"{len(days)} days have cost {report.total_cost} {report.currency}."
    return DaysSpendingAnswer(message=message, data=data)


def _present(report: spending.CostReport[ListedCost], meta: PageMeta) -> Listing:
    """Return a ``SpendingAnswer`` whose deployments are encoded in pieces."""
    count = report.total
    message = f"{count} builders have cost {report.total_cost} {report.currency}."
    total = Spending(currency=report.currency, total_cost=float(report.total_cost), vm_count=count, deployments=[])
    head, empty, tail = SpendingAnswer(message=message, data=total, meta=meta).model_dump_json().rpartition("[]")
    assert empty, "no list comes after the deployments"
    deployments = (
        Deployment(
            uuid=builder.id,
            name=builder.name,
            hourly_rate=float(cost.hourly_rate),
            runtime_hours=float(cost.runtime_hours),
            cost=float(cost.cost),
        )
        for builder, cost in report.deployments
    )
    return Listing(f"{head}[", deployments, f"]{tail}")
