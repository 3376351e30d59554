"""Spending caps: look at them, set and lift them."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from builderd.api import openapi
from builderd.api.server.answers import Answer, success
from builderd.api.server.auth import Administrator, Reader, TheApplication
from builderd.api.server.bodies import Received, json_body
from builderd.api.server.paths import PREFIX
from builderd.api.v1.builders import Uuid
from builderd.schemas.v1.spending import NewSpendingCap, SpendingCap, SpendingCapAnswer
from builderd.services import builders, caps
from builderd.services.caps import CapView
from builderd.store import UnitOfWork

router = APIRouter(prefix=PREFIX, tags=[openapi.SPENDING])

MAX_BODY_BYTES = 10_000

Body = Annotated[Received[NewSpendingCap], Depends(json_body(NewSpendingCap, MAX_BODY_BYTES))]
EXAMPLE = {"monthly": 20.0}
SET: dict[str, Any] = {"openapi_extra": openapi.body_of(NewSpendingCap, EXAMPLE)}


@router.get("/spending-cap", responses=openapi.answers(200, SpendingCapAnswer, "The cap."))
async def get_spending_cap(application: TheApplication, identity: Reader) -> Response:
    """The cap of all your builders together, and what they have cost this month."""
    tenant, now = identity.token.tenant_id, application.clock.now()
    view = await application.store.read(lambda uow: caps.view_of_tenant(uow, application, tenant, now))
    return _answer(view).response()


@router.put("/spending-cap", **SET, responses=openapi.answers(200, SpendingCapAnswer, "It is set.", 400, 413, 422))
async def put_spending_cap(application: TheApplication, identity: Administrator, body: Body) -> Response:
    """Cap what all your builders together may cost in a month; null lifts the cap, but not the operator's.

    A warning event comes at 80 %; at 100 % they are stopped, and none is started before the next month.
    """
    tenant, now = identity.token.tenant_id, application.clock.now()
    amount = _amount(body.value)

    def write(uow: UnitOfWork) -> CapView:
        caps.set_for_tenant(uow, application, tenant, amount, now)
        return caps.view_of_tenant(uow, application, tenant, now)

    return _answer(await application.store.write(write)).response()


@router.get("/builders/{uuid}/spending-cap", responses=openapi.answers(200, SpendingCapAnswer, "The cap.", 404))
async def get_builder_spending_cap(application: TheApplication, identity: Reader, uuid: Uuid) -> Response:
    """The cap of one builder, and what it has cost this month. That of all your builders holds besides."""
    now = application.clock.now()

    def load(uow: UnitOfWork) -> CapView:
        builder = builders.get(uow, identity.token.tenant_id, uuid.lower())
        return caps.view_of_builder(uow, application, builder, now)

    return _answer(await application.store.read(load)).response()


@router.put(
    "/builders/{uuid}/spending-cap",
    **SET,
    responses=openapi.answers(200, SpendingCapAnswer, "It is set.", 400, 404, 413, 422),
)
async def put_builder_spending_cap(
    application: TheApplication, identity: Administrator, uuid: Uuid, body: Body
) -> Response:
    """Cap what one builder may cost in a month; null lifts the cap, but not the operator's."""
    now, amount = application.clock.now(), _amount(body.value)

    def write(uow: UnitOfWork) -> CapView:
        builder = builders.get(uow, identity.token.tenant_id, uuid.lower(), lock=True)
        capped = caps.set_for_builder(uow, application, builder, amount, now)
        return caps.view_of_builder(uow, application, capped, now)

    return _answer(await application.store.write(write)).response()


def _amount(cap: NewSpendingCap) -> Decimal | None:
    # From the number's text: a binary 0.1 is not a tenth.
    return None if cap.monthly is None else Decimal(str(cap.monthly))


def _answer(view: CapView) -> Answer:
    data = _present(view)
    if data.applies is None:
        message = f"Nothing is capped; {data.spent:.2f} {data.currency} are spent this month."
    else:
        message = f"{data.spent:.2f} of {data.applies:.2f} {data.currency} are spent this month."
    return success(SpendingCapAnswer(message=message, data=data))


def _present(view: CapView) -> SpendingCap:
    return SpendingCap(
        currency=view.currency,
        monthly=_number(view.own),
        operator_limit=_number(view.operator_limit),
        applies=_number(view.applies),
        spent=float(view.spent),
        resets_at=view.resets_at,
    )


def _number(amount: Decimal | None) -> float | None:
    return None if amount is None else float(amount)
