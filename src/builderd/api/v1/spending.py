"""Spending: what all builders cost."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from builderd.api import openapi
from builderd.api.server.auth import Reader, TheApplication
from builderd.api.server.paths import PREFIX
from builderd.api.v1.pages import Listing, listed
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
    request: Request, application: TheApplication, identity: Reader, query: Annotated[SpendingQuery, Query()]
) -> Response:
    """Return the cost of your builders, deleted ones included."""
    since, until = query.since, query.until
    if since is not None and until is not None and since >= until:
        raise ValidationFailed({"to": ["must be later than from"]})
    now = application.clock.now()
    tenant_id = identity.token.tenant_id

    async def listing() -> Listing:
        report = await application.store.read(
            lambda uow: spending.report(uow, application, tenant_id, now, since=since, until=until)
        )
        return _present(report)

    return await listed(request, tenant_id, listing)


def _present(report: spending.Spending) -> Listing:
    """Return a ``SpendingAnswer`` whose deployments are encoded in pieces: there is one of each builder ever made."""
    count = len(report.deployments)
    message = f"{count} builders have cost {report.total_cost} {report.currency}."
    total = Spending(currency=report.currency, total_cost=float(report.total_cost), vm_count=count, deployments=[])
    head, empty, tail = SpendingAnswer(message=message, data=total).model_dump_json().rpartition("[]")
    assert empty, "deployments come last"
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
