"""Custom domains: add, list, check, remove."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response

from builderd.api import openapi
from builderd.api.server.answers import success
from builderd.api.server.auth import Reader, TheApplication, Writer
from builderd.api.server.bodies import Received, json_body
from builderd.api.server.paths import PREFIX
from builderd.api.v1.builders import Uuid
from builderd.api.v1.pages import ThePage
from builderd.domain import domains as domain
from builderd.domain.addresses import a_labels, shown
from builderd.schemas.v1.domains import Domain, DomainAnswer, DomainPage, NewDomain, TxtRecord
from builderd.services import domains
from builderd.services.application import Application

router = APIRouter(prefix=PREFIX, tags=[openapi.BUILDERS])

MAX_BODY_BYTES = 20_000

Body = Annotated[Received[NewDomain], Depends(json_body(NewDomain, MAX_BODY_BYTES))]
Host = Annotated[str, Path(description="The domain's host name.")]


@router.post(
    "/builders/{uuid}/domains",
    responses=openapi.answers(201, DomainAnswer, "It is added, and is being checked.", 400, 404, 409, 413, 422, 429),
    openapi_extra=openapi.body_of(NewDomain, {"host": "shop.example.com"}),
)
async def add_domain(application: TheApplication, identity: Writer, uuid: Uuid, body: Body) -> Response:
    """Add a host name of your own. Its records are checked at once, and again by themselves until they lead here.

    Then it gets a certificate, which is renewed by itself. A domain that the builder has already is returned with 200.
    """
    host, now = a_labels(body.value.host), application.clock.now()
    added, is_new = await application.store.write(
        lambda uow: domains.add(uow, application, identity.caller, uuid.lower(), host, now)
    )
    application.signals.change(added.builder_id)
    message = f"{shown(added.host)} is {added.status}."
    return success(DomainAnswer(message=message, data=present(application, added)), 201 if is_new else 200).response()


@router.get("/builders/{uuid}/domains", responses=openapi.answers(200, DomainPage, "A page of them.", 404, 422))
async def list_domains(application: TheApplication, identity: Reader, uuid: Uuid, query: ThePage) -> Response:
    """List the builder's domains by host, with what is wrong with each."""
    found = await application.store.read(lambda uow: domains.of_builder(uow, identity.token.tenant_id, uuid.lower()))
    data = [present(application, one) for one in query.cut(found)]
    return success(DomainPage(message=_counted(len(found)), data=data, meta=query.of(len(found)))).response()


@router.delete(
    "/builders/{uuid}/domains/{host}", responses=openapi.answers(200, DomainAnswer, "It leads nowhere any more.", 404)
)
async def remove_domain(application: TheApplication, identity: Writer, uuid: Uuid, host: Host) -> Response:
    """Remove a domain. For 90 days another tenant gets it only by a TXT record."""
    now = application.clock.now()
    removed = await application.store.write(lambda uow: domains.remove(uow, identity.caller, uuid.lower(), host, now))
    application.signals.change(removed.builder_id)
    message = f"{shown(removed.host)} is removed."
    return success(DomainAnswer(message=message, data=present(application, removed))).response()


@router.post(
    "/builders/{uuid}/domains/{host}/check", responses=openapi.answers(200, DomainAnswer, "It is being checked.", 404)
)
async def check_domain(application: TheApplication, identity: Writer, uuid: Uuid, host: Host) -> Response:
    """Have a domain checked now, after its records were changed; not sooner than the certificate authority allows."""
    now = application.clock.now()
    asked = await application.store.write(lambda uow: domains.ask_again(uow, identity.caller, uuid.lower(), host, now))
    application.signals.change(asked.builder_id)
    message = f"{shown(asked.host)} is {asked.status}{f': {asked.reason}' if asked.reason else ''}."
    return success(DomainAnswer(message=message, data=present(application, asked))).response()


def present(application: Application, found: domain.Domain) -> Domain:
    return Domain(
        host=found.host,
        name=shown(found.host),
        status=found.status,
        reason=found.reason,
        next_try_at=found.next_try_at,
        expires_at=found.expires_at,
        url=application.domain_rules.url(found),
        created_at=found.created_at,
        txt=TxtRecord(name=found.txt_name, value=found.txt_value),
    )


def _counted(count: int) -> str:
    return "1 domain." if count == 1 else f"{count} domains."
