"""Spending, and its caps."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from builderd.builders import service as builders
from builderd.builders.api import Uuid
from builderd.builders.lists import ListedCost
from builderd.core.errors import ValidationFailed
from builderd.database.unit_of_work import UnitOfWork
from builderd.money import caps
from builderd.money import service as spending
from builderd.money.caps import CapView
from builderd.money.model import DAY, MOST_DAYS, day_of, month_of
from builderd.schemas.account import (
    DaySpending,
    DaysSpending,
    Deployment,
    NewSpendingCap,
    Spending,
    SpendingAnswer,
    SpendingCap,
)
from builderd.schemas.shape import Day, PageMeta, Parameters, Success, UtcTime
from builderd.server import openapi
from builderd.server.answers import PREFIX, Answer, success
from builderd.server.auth import Administrator, Reader, TheApplication
from builderd.server.bodies import Received, json_body
from builderd.server.pages import MAX_PER_PAGE, Listing, PageQuery, listed

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


@router.get("/spending/days", responses=openapi.answers(200, Success[DaysSpending], "What each day cost.", 422))
async def read_spending_days(
    application: TheApplication, identity: Reader, query: Annotated[DaysQuery, Query()]
) -> Response:
    """Return the cost of all your builders together, deleted ones included, of each day that has begun."""
    now, tenant_id = application.clock.now(), identity.token.tenant_id
    since = month_of(now) if query.since is None else _midnight(query.since)
    until = day_of(now) + DAY if query.until is None else _midnight(query.until)
    report = await application.store.read(lambda uow: spending.by_day(uow, application, tenant_id, now, (since, until)))
    days = [
        DaySpending(day=one.start.date(), runtime_hours=float(one.hours), cost=float(one.cost)) for one in report.days
    ]
    data = DaysSpending(currency=report.currency, total_cost=float(report.total_cost), days=days)
    message = f"{len(days)} days have cost {report.total_cost} {report.currency}."
    return success(Success[DaysSpending](message=message, data=data)).response()


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


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


MAX_BODY_BYTES = 10_000

CapBody = Annotated[Received[NewSpendingCap], Depends(json_body(NewSpendingCap, MAX_BODY_BYTES))]
CAP_EXAMPLE = {"monthly": 20.0}
SET: dict[str, Any] = {"openapi_extra": openapi.body_of(NewSpendingCap, CAP_EXAMPLE)}


@router.get("/spending-cap", responses=openapi.answers(200, Success[SpendingCap], "The cap."))
async def get_spending_cap(application: TheApplication, identity: Reader) -> Response:
    """The cap of all your builders together, and what they have cost this month."""
    tenant, now = identity.token.tenant_id, application.clock.now()
    view = await application.store.read(lambda uow: caps.view_of_tenant(uow, application, tenant, now))
    return _cap_answer(view).response()


@router.put("/spending-cap", **SET, responses=openapi.answers(200, Success[SpendingCap], "It is set.", 400, 413, 422))
async def put_spending_cap(application: TheApplication, identity: Administrator, body: CapBody) -> Response:
    """Cap what all your builders together may cost in a month; null lifts the cap, but not the operator's.

    A warning event comes at 80 %; at 100 % they are stopped, and none is started before the next month.
    """
    tenant, now = identity.token.tenant_id, application.clock.now()
    amount = _amount(body.value)

    def write(uow: UnitOfWork) -> CapView:
        caps.set_for_tenant(uow, application, tenant, amount, now)
        return caps.view_of_tenant(uow, application, tenant, now)

    return _cap_answer(await application.store.write(write)).response()


@router.get("/builders/{uuid}/spending-cap", responses=openapi.answers(200, Success[SpendingCap], "The cap.", 404))
async def get_builder_spending_cap(application: TheApplication, identity: Reader, uuid: Uuid) -> Response:
    """The cap of one builder, and what it has cost this month. That of all your builders holds besides."""
    now = application.clock.now()

    def load(uow: UnitOfWork) -> CapView:
        builder = builders.get(uow, identity.token.tenant_id, uuid.lower())
        return caps.view_of_builder(uow, application, builder, now)

    return _cap_answer(await application.store.read(load)).response()


@router.put(
    "/builders/{uuid}/spending-cap",
    **SET,
    responses=openapi.answers(200, Success[SpendingCap], "It is set.", 400, 404, 413, 422),
)
async def put_builder_spending_cap(
    application: TheApplication, identity: Administrator, uuid: Uuid, body: CapBody
) -> Response:
    """Cap what one builder may cost in a month; null lifts the cap, but not the operator's."""
    now, amount = application.clock.now(), _amount(body.value)

    def write(uow: UnitOfWork) -> CapView:
        builder = builders.get(uow, identity.token.tenant_id, uuid.lower(), lock=True)
        capped = caps.set_for_builder(uow, application, builder, amount, now)
        return caps.view_of_builder(uow, application, capped, now)

    return _cap_answer(await application.store.write(write)).response()


def _amount(cap: NewSpendingCap) -> Decimal | None:
    # From the number's text: a binary 0.1 is not a tenth.
    return None if cap.monthly is None else Decimal(str(cap.monthly))


def _cap_answer(view: CapView) -> Answer:
    data = SpendingCap.of(view, monthly=view.own)
    if data.applies is None:
        message = f"Nothing is capped; {data.spent:.2f} {data.currency} are spent this month."
    else:
        message = f"{data.spent:.2f} of {data.applies:.2f} {data.currency} are spent this month."
    return success(Success[SpendingCap](message=message, data=data))
