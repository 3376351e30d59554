"""Spending of a tenant in a month, its cap, and what it goes on to cost now."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from starlette.responses import Response

from builderd.domain.builders import Desired
from builderd.domain.errors import ValidationFailed
from builderd.domain.prices import SECONDS_PER_HOUR, WARNING_SHARE, Billing, cents, csv_text, month_of, next_month
from builderd.domain.tokens import Scope
from builderd.services import caps, spending
from builderd.store import UnitOfWork
from builderd.web.charts import bars, share
from builderd.web.pages.settings import amount
from builderd.web.visits import Visit, page, see_other

MONTH = re.compile(r"(20\d\d)-(0[1-9]|1[0-2])", re.ASCII)
#: Builders that are listed, the dearest first.
SHOWN = 200
#: Rows of the table for spreadsheets.
MOST_ROWS = 10_000


def _chosen(visit: Visit) -> datetime:
    match = MONTH.fullmatch(visit.request.query_params.get("month", ""))
    month = datetime(int(match[1]), int(match[2]), 1, tzinfo=UTC) if match else month_of(visit.now)
    return min(month, month_of(visit.now))


@page("/spending")
async def show_spending(visit: Visit) -> Response:
    """Show what each builder cost in a month."""
    return await _shown(visit, {})


async def _shown(visit: Visit, errors: dict[str, Sequence[str]], status: int = 200) -> Response:
    month = _chosen(visit)
    found = await visit.read(lambda uow: _month(uow, visit, month))
    return await visit.page(
        "spending.html",
        status,
        month=found,
        chart=bars([float(one.cost) for one in found["days"]], (next_month(month) - month).days),
        dearest_day=max(found["days"], key=lambda one: one.cost, default=None),
        warning=WARNING_SHARE,
        begin=month,
        before=month_of(month - timedelta(days=1)),
        after=next_month(month) if month < month_of(visit.now) else None,
        is_now=month == month_of(visit.now),
        errors=errors,
        is_admin=visit.allows(Scope.ADMIN),
    )


@page("/spending/csv")
async def download(visit: Visit) -> Response:
    """Return a month's costs of the dearest builders as a table for spreadsheets."""
    month = _chosen(visit)
    tenant, application = visit.token.tenant_id, visit.application
    async with visit.operations.lists.one(tenant):
        report = await visit.read(lambda uow: spending.dearest(uow, application, tenant, visit.now, month, MOST_ROWS))
        text = await asyncio.to_thread(_table, report)
    headers = {"Content-Disposition": f'attachment; filename="spending-{month:%Y-%m}.csv"'}
    return Response(text, 200, headers, "text/csv")


def _table(report: spending.Spending) -> str:
    rows = (
        (one.id, one.name, one.desired is Desired.DELETED, cost.runtime_hours, cost.hourly_rate, cost.cost)
        for one, cost in report.deployments
    )
    return csv_text([("uuid", "name", "deleted", "hours", "per_hour", f"cost_{report.currency}"), *rows])


def _month(uow: UnitOfWork, visit: Visit, month: datetime) -> dict[str, Any]:
    """Return a month's costs, and what the open segments cost an hour by billing state."""
    tenant, application = visit.token.tenant_id, visit.application
    report = spending.dearest(uow, application, tenant, visit.now, month, SHOWN)
    spent = [one for one in report.deployments if one[1].cost]
    most = spent[0][1].cost if spent else Decimal(1)
    rows = [
        {"builder": builder, "cost": cost, "share": share(float(cost.cost), float(most))} for builder, cost in spent
    ]
    rates = uow.ledger.rates_of_tenant(tenant)
    now = [(billing.value, *rates[billing]) for billing in Billing if billing in rates]
    cap = caps.view_of_tenant(uow, application, tenant, visit.now)
    days = spending.by_day(uow, application, tenant, visit.now, (month, next_month(month)))
    hourly = sum((rate for _, rate in rates.values()), Decimal(0))
    expected = cents(cap.spent + hourly * hours_between(visit.now, cap.resets_at))
    return {
        "rows": rows,
        "total": report.total_cost,
        "cap": cap,
        "now": now,
        "more": max(0, report.total - SHOWN),
        "days": days.days,
        "expected": expected,
    }


def hours_between(start: datetime, end: datetime) -> Decimal:
    """Return the hours from one time to a later one, to the second."""
    return (end - start) // timedelta(seconds=1) / SECONDS_PER_HOUR


@page("/spending", post=True, scope=Scope.ADMIN)
async def set_cap(visit: Visit) -> Response:
    """Set the tenant's cap."""
    form = await visit.form()
    try:
        monthly = amount(visit, form.get("monthly", "").strip())
        tenant, application = visit.token.tenant_id, visit.application
        await visit.write(lambda uow: caps.set_for_tenant(uow, application, tenant, monthly, visit.now))
    except ValidationFailed as error:
        return await _shown(visit, dict(error.errors), 422)
    return see_other("/spending", done="saved")
