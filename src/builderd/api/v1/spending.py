"""Spending: what all builders cost."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import Field

from builderd.api import openapi
from builderd.api.server.answers import success
from builderd.api.server.auth import Reader, TheApplication
from builderd.api.server.paths import PREFIX
from builderd.domain.errors import ValidationFailed
from builderd.schemas.v1.shape import Parameters
from builderd.schemas.v1.spending import Deployment, Spending, SpendingAnswer
from builderd.schemas.v1.times import UtcTime
from builderd.services import spending

router = APIRouter(prefix=PREFIX, tags=[openapi.SPENDING])


class SpendingQuery(Parameters):
    """A span of time: from its beginning on, up to before its end."""

    since: UtcTime | None = Field(default=None, alias="from")
    until: UtcTime | None = Field(default=None, alias="to")


@router.get(
    "/builders/spending",
    response_model=None,
    responses={**openapi.answer(200, SpendingAnswer, "What was spent."), **openapi.failures(401, 403, 422)},
)
async def read_spending(
    application: TheApplication, identity: Reader, query: Annotated[SpendingQuery, Query()]
) -> Response:
    """Return the cost of your builders, deleted ones included."""
    since, until = query.since, query.until
    if since is not None and until is not None and since >= until:
        raise ValidationFailed({"to": ["must be later than from"]})
    now = application.clock.now()
    report = await application.store.read(
        lambda uow: spending.report(uow, application, identity.token.tenant_id, now, since=since, until=until)
    )
    data = _present(report)
    message = f"{data.vm_count} builders have cost {report.total_cost} {data.currency}."
    return success(SpendingAnswer(message=message, data=data)).response()


def _present(report: spending.Spending) -> Spending:
    deployments = [
        Deployment(
            uuid=builder.id,
            name=builder.name,
            hourly_rate=float(cost.hourly_rate),
            runtime_hours=float(cost.runtime_hours),
            cost=float(cost.cost),
        )
        for builder, cost in report.deployments
    ]
    return Spending(
        currency=report.currency,
        total_cost=float(report.total_cost),
        vm_count=len(deployments),
        deployments=deployments,
    )
