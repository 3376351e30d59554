"""Custom domains and preview links of builders, and the URLs of other ports."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response

from builderd.application import Application
from builderd.builders import service as builders
from builderd.builders.api import Uuid
from builderd.core.addresses import a_labels, shown
from builderd.domains import model as domain
from builderd.domains import service as domains
from builderd.previews import service as preview_links
from builderd.schemas.builder_parts import (
    Domain,
    NewDomain,
    NewPreviewLink,
    PortPreview,
    PreviewLink,
    PreviewLinkAnswer,
    PreviewLinkWithUrl,
    TxtRecord,
)
from builderd.schemas.shape import Page, Success
from builderd.server import openapi
from builderd.server.answers import PREFIX, success
from builderd.server.auth import Reader, TheApplication, Writer
from builderd.server.bodies import Received, json_body
from builderd.server.pages import ThePage

router = APIRouter(prefix=PREFIX, tags=[openapi.BUILDERS])

MAX_BODY_BYTES = 20_000

Body = Annotated[Received[NewDomain], Depends(json_body(NewDomain, MAX_BODY_BYTES))]
Host = Annotated[str, Path(description="The domain's host name.")]


@router.post(
    "/builders/{uuid}/domains",
    responses=openapi.answers(201, Success[Domain], "It is added, and is being checked.", 400, 404, 409, 413, 422, 429),
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
    return success(
        Success[Domain](message=message, data=present(application, added)), 201 if is_new else 200
    ).response()


@router.get("/builders/{uuid}/domains", responses=openapi.answers(200, Page[Domain], "A page of them.", 404, 422))
async def list_domains(application: TheApplication, identity: Reader, uuid: Uuid, query: ThePage) -> Response:
    """List the builder's domains by host, with what is wrong with each."""
    found = await application.store.read(lambda uow: domains.of_builder(uow, identity.token.tenant_id, uuid.lower()))
    data = [present(application, one) for one in query.cut(found)]
    message = "1 domain." if len(found) == 1 else f"{len(found)} domains."
    return success(Page[Domain](message=message, data=data, meta=query.of(len(found)))).response()


@router.delete(
    "/builders/{uuid}/domains/{host}",
    responses=openapi.answers(200, Success[Domain], "It leads nowhere any more.", 404),
)
async def remove_domain(application: TheApplication, identity: Writer, uuid: Uuid, host: Host) -> Response:
    """Remove a domain. For 90 days another tenant gets it only by a TXT record."""
    now = application.clock.now()
    removed = await application.store.write(lambda uow: domains.remove(uow, identity.caller, uuid.lower(), host, now))
    application.signals.change(removed.builder_id)
    message = f"{shown(removed.host)} is removed."
    return success(Success[Domain](message=message, data=present(application, removed))).response()


@router.post(
    "/builders/{uuid}/domains/{host}/check",
    responses=openapi.answers(200, Success[Domain], "It is being checked.", 404),
)
async def check_domain(application: TheApplication, identity: Writer, uuid: Uuid, host: Host) -> Response:
    """Have a domain checked now, after its records were changed; not sooner than the certificate authority allows."""
    now = application.clock.now()
    asked = await application.store.write(lambda uow: domains.ask_again(uow, identity.caller, uuid.lower(), host, now))
    application.signals.change(asked.builder_id)
    message = f"{shown(asked.host)} is {asked.status}{f': {asked.reason}' if asked.reason else ''}."
    return success(Success[Domain](message=message, data=present(application, asked))).response()


def present(application: Application, found: domain.Domain) -> Domain:
    txt = TxtRecord(name=found.txt_name, value=found.txt_value)
    return Domain.of(found, name=shown(found.host), url=application.domain_rules.url(found), txt=txt)


MAX_LINK_BYTES = 10_000

LinkBody = Annotated[Received[NewPreviewLink], Depends(json_body(NewPreviewLink, MAX_LINK_BYTES))]
LinkUuid = Annotated[str, Path(description="The link's id.", json_schema_extra={"format": "uuid"})]
Port = Annotated[int, Path(ge=1, le=65535, description="A port on which something listens in the sandbox.")]


@router.get(
    "/builders/{uuid}/ports/{port}/preview-url",
    responses=openapi.answers(200, Success[PortPreview], "The URL.", 404, 409, 422),
)
async def get_port_preview(application: TheApplication, identity: Reader, uuid: Uuid, port: Port) -> Response:
    """The URL of another port of the sandbox. It is private, also where the preview is public."""
    tenant_id = identity.token.tenant_id
    builder = await application.store.read(lambda uow: builders.get(uow, tenant_id, uuid.lower()))
    url = preview_links.url_of_port(application, builder, port)
    return success(Success[PortPreview](message=url, data=PortPreview(port=port, url=url))).response()


@router.post(
    "/builders/{uuid}/preview-links",
    responses=openapi.answers(
        201, PreviewLinkAnswer, "It opens the preview until it expires.", 400, 404, 409, 413, 422
    ),
    openapi_extra=openapi.body_of(NewPreviewLink, {"expires_minutes": 60, "port": 3000}),
)
async def create_preview_link(application: TheApplication, identity: Writer, uuid: Uuid, body: LinkBody) -> Response:
    """Share a private preview, or one of its ports, for a time and without the service token."""
    new = body.value
    made = await preview_links.create(application, identity.caller, uuid.lower(), new.expires_minutes, new.port)
    data = PreviewLinkWithUrl.of(made.link, url=made.url)
    return success(PreviewLinkAnswer(message=f"The link opens {made.builder.name}.", data=data), 201).response()


@router.get(
    "/builders/{uuid}/preview-links", responses=openapi.answers(200, Page[PreviewLink], "A page of them.", 404, 422)
)
async def list_preview_links(application: TheApplication, identity: Reader, uuid: Uuid, query: ThePage) -> Response:
    """The links that are valid, without their URLs."""
    now = application.clock.now()
    found = await application.store.read(lambda uow: preview_links.valid_of(uow, identity.caller, uuid.lower(), now))
    data = [PreviewLink.of(one) for one in query.cut(found)]
    return success(Page[PreviewLink](message=f"{len(found)} links.", data=data, meta=query.of(len(found)))).response()


@router.delete(
    "/builders/{uuid}/preview-links/{link}",
    status_code=204,
    responses={204: {"description": "It opens nothing any more."}, **openapi.failures(401, 403, 404)},
)
async def revoke_preview_link(application: TheApplication, identity: Writer, uuid: Uuid, link: LinkUuid) -> Response:
    """End a link at once."""
    await preview_links.revoke(application, identity.caller, uuid.lower(), link.lower())
    return Response(status_code=204)
