"""Leases: take, list, renew, end. Apps make the same calls by ``api.sandbox_api``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response

from builderd.application import Application
from builderd.builders import model as domain
from builderd.builders import service as builders
from builderd.builders.api import Uuid
from builderd.builders.model import Builder
from builderd.database.unit_of_work import UnitOfWork
from builderd.idle import service as wake
from builderd.schemas.builder_parts import Lease, NewLease, RenewedLease
from builderd.schemas.shape import Page, Success
from builderd.server import openapi
from builderd.server.answers import PREFIX, success
from builderd.server.auth import Identity, Reader, TheApplication, Writer
from builderd.server.bodies import Received, json_body
from builderd.server.pages import PageQuery, ThePage

router = APIRouter(prefix=PREFIX, tags=[openapi.BUILDERS])

MAX_LEASE_BYTES = 20_000

LeaseBody = Annotated[Received[NewLease], Depends(json_body(NewLease, MAX_LEASE_BYTES))]
RenewedBody = Annotated[Received[RenewedLease], Depends(json_body(RenewedLease, MAX_LEASE_BYTES))]
LeaseUuid = Annotated[str, Path(description="The lease's id.", json_schema_extra={"format": "uuid"})]

#: Finds the builder, locked for who changes it.
Find = Callable[[UnitOfWork], Builder]


@router.post(
    "/builders/{uuid}/leases",
    responses=openapi.answers(201, Success[Lease], "It is busy until then.", 400, 404, 409, 413, 422),
    openapi_extra=openapi.body_of(NewLease, {"seconds": 600, "reason": "importing last year's orders"}),
)
async def take_lease(application: TheApplication, identity: Writer, uuid: Uuid, body: LeaseBody) -> Response:
    """Say that it is busy: until then it neither sleeps nor stops for idleness."""
    return await take_for(application, _locked(identity, uuid), identity.caller.actor, body.value)


@router.get("/builders/{uuid}/leases", responses=openapi.answers(200, Page[Lease], "A page of them.", 404, 422))
async def list_leases(application: TheApplication, identity: Reader, uuid: Uuid, query: ThePage) -> Response:
    """The leases that last, the oldest first."""
    return await list_active(application, lambda uow: builders.get(uow, identity.token.tenant_id, uuid.lower()), query)


@router.put(
    "/builders/{uuid}/leases/{lease}",
    responses=openapi.answers(200, Success[Lease], "It lasts longer, or shorter.", 400, 404, 413, 422),
    openapi_extra=openapi.body_of(RenewedLease, {"seconds": 600}),
)
async def renew_lease(
    application: TheApplication, identity: Writer, uuid: Uuid, lease: LeaseUuid, body: RenewedBody
) -> Response:
    """Renew a lease: from now on it lasts for so many seconds."""
    return await renew_for(application, _locked(identity, uuid), lease, body.value)


@router.delete("/builders/{uuid}/leases/{lease}", responses=openapi.answers(200, Success[Lease], "It is over.", 404))
async def end_lease(application: TheApplication, identity: Writer, uuid: Uuid, lease: LeaseUuid) -> Response:
    """End a lease before its time."""
    return await end_for(application, _locked(identity, uuid), identity.caller.actor, lease)


def _locked(identity: Identity, uuid: str) -> Find:
    return lambda uow: builders.get(uow, identity.token.tenant_id, uuid.lower(), lock=True)


# What both doors do


async def take_for(application: Application, find: Find, actor: str, new: NewLease) -> Response:
    """201 with the lease."""
    now = application.clock.now()

    def write(uow: UnitOfWork) -> domain.Lease:
        return wake.take_lease(uow, application, find(uow), actor, new.seconds, new.reason, now)

    lease = await application.store.write(write)
    # It may have been asleep.
    application.signals.desired_changed(lease.builder_id)
    return success(_lease_answer("It is busy", lease), 201).response()


async def list_active(application: Application, find: Find, query: PageQuery) -> Response:
    """200 with a page of them."""
    now = application.clock.now()
    found = await application.store.read(lambda uow: wake.active_leases(uow, find(uow), now))
    data = [Lease.of(lease) for lease in query.cut(found)]
    message = f"{len(found)} leases keep it busy."
    return success(Page[Lease](message=message, data=data, meta=query.of(len(found)))).response()


async def renew_for(application: Application, find: Find, lease_id: str, new: RenewedLease) -> Response:
    """200 with the lease as it is now."""
    now = application.clock.now()
    lease = await application.store.write(
        lambda uow: wake.renew_lease(uow, find(uow), lease_id.lower(), new.seconds, new.reason, now)
    )
    return success(_lease_answer("It is busy", lease)).response()


async def end_for(application: Application, find: Find, actor: str, lease_id: str) -> Response:
    """200 with the lease as it was."""
    now = application.clock.now()
    lease = await application.store.write(lambda uow: wake.end_lease(uow, find(uow), actor, lease_id.lower(), now))
    return success(_lease_answer("It was busy", lease)).response()


def _lease_answer(what: str, lease: domain.Lease) -> Success[Lease]:
    return Success[Lease](message=f"{what} until {lease.expires_at:%Y-%m-%d %H:%M:%S} UTC.", data=Lease.of(lease))
