"""Preview links: make, list, revoke; and the URLs of other ports."""

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
from builderd.domain.previews import Link
from builderd.schemas.v1.domains import (
    NewPreviewLink,
    PortPreview,
    PortPreviewAnswer,
    PreviewLink,
    PreviewLinkAnswer,
    PreviewLinkPage,
    PreviewLinkWithUrl,
)
from builderd.services import builders, preview_links

router = APIRouter(prefix=PREFIX, tags=[openapi.BUILDERS])

MAX_BODY_BYTES = 10_000

Body = Annotated[Received[NewPreviewLink], Depends(json_body(NewPreviewLink, MAX_BODY_BYTES))]
LinkUuid = Annotated[str, Path(description="The link's id.", json_schema_extra={"format": "uuid"})]
Port = Annotated[int, Path(ge=1, le=65535, description="A port on which something listens in the sandbox.")]


@router.get(
    "/builders/{uuid}/ports/{port}/preview-url",
    responses=openapi.answers(200, PortPreviewAnswer, "The URL.", 404, 409, 422),
)
async def get_port_preview(application: TheApplication, identity: Reader, uuid: Uuid, port: Port) -> Response:
    """The URL of another port of the sandbox. It is private, also where the preview is public."""
    tenant_id = identity.token.tenant_id
    builder = await application.store.read(lambda uow: builders.get(uow, tenant_id, uuid.lower()))
    url = preview_links.url_of_port(application, builder, port)
    return success(PortPreviewAnswer(message=url, data=PortPreview(port=port, url=url))).response()


@router.post(
    "/builders/{uuid}/preview-links",
    responses=openapi.answers(
        201, PreviewLinkAnswer, "It opens the preview until it expires.", 400, 404, 409, 413, 422
    ),
    openapi_extra=openapi.body_of(NewPreviewLink, {"expires_minutes": 60, "port": 3000}),
)
async def create_preview_link(application: TheApplication, identity: Writer, uuid: Uuid, body: Body) -> Response:
    """Share a private preview, or one of its ports, for a time and without the service token."""
    new = preview_links.NewLink(body.value.expires_minutes, body.value.port)
    made = await preview_links.create(application, identity.caller, uuid.lower(), new)
    data = PreviewLinkWithUrl(**_shown(made.link).model_dump(), url=made.url)
    return success(PreviewLinkAnswer(message=f"The link opens {made.builder.name}.", data=data), 201).response()


@router.get(
    "/builders/{uuid}/preview-links", responses=openapi.answers(200, PreviewLinkPage, "A page of them.", 404, 422)
)
async def list_preview_links(application: TheApplication, identity: Reader, uuid: Uuid, query: ThePage) -> Response:
    """The links that are valid, without their URLs."""
    now = application.clock.now()
    found = await application.store.read(lambda uow: preview_links.valid_of(uow, identity.caller, uuid.lower(), now))
    data = [_shown(one) for one in query.cut(found)]
    return success(PreviewLinkPage(message=f"{len(found)} links.", data=data, meta=query.of(len(found)))).response()


@router.delete(
    "/builders/{uuid}/preview-links/{link}",
    status_code=204,
    responses={204: {"description": "It opens nothing any more."}, **openapi.failures(401, 403, 404)},
)
async def revoke_preview_link(application: TheApplication, identity: Writer, uuid: Uuid, link: LinkUuid) -> Response:
    """End a link at once."""
    await preview_links.revoke(application, identity.caller, uuid.lower(), link.lower())
    return Response(status_code=204)


def _shown(link: Link) -> PreviewLink:
    return PreviewLink(
        id=link.id,
        port=link.port,
        created_by=link.created_by,
        created_at=link.created_at,
        expires_at=link.expires_at,
    )
