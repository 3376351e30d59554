"""SSH: tokens with which a person or a program logs in to a builder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from builderd.api import openapi
from builderd.api.server.answers import success
from builderd.api.server.auth import Identity, TheApplication, Writer
from builderd.api.server.bodies import Received, optional_json_body
from builderd.api.server.paths import PREFIX
from builderd.api.v1.builders import Uuid
from builderd.domain.builders import Builder
from builderd.domain.errors import EngineUnavailable
from builderd.domain.processes import Grant
from builderd.schemas.v1.running import NewSshGrant, SshEnded, SshEndedAnswer, SshGrant, SshGrantAnswer
from builderd.services import ssh
from builderd.services.application import Application

router = APIRouter(prefix=PREFIX, tags=[openapi.WATCHING])

MAX_BODY_BYTES = 10_000

Body = Annotated[Received[NewSshGrant], Depends(optional_json_body(NewSshGrant, MAX_BODY_BYTES))]
Granting = Callable[..., tuple[Builder, Grant, str]]


@router.post(
    "/builders/{uuid}/ssh",
    responses=openapi.answers(201, SshGrantAnswer, "A way in.", 400, 404, 409, 413, 422),
    openapi_extra=openapi.body_of(NewSshGrant, {"expires_minutes": 60}, required=False),
)
async def grant_ssh(application: TheApplication, identity: Writer, uuid: Uuid, body: Body) -> Response:
    """Create a token with which to log in to the builder by SSH, in addition to the existing ones.

    Everyone who has the token gets a shell, and with it the app's files, environment and secrets.
    """
    return await _grant(ssh.grant, application, identity, uuid, body.value)


@router.post(
    "/builders/{uuid}/ssh/recreate",
    responses=openapi.answers(201, SshGrantAnswer, "A way in, the only one.", 400, 404, 409, 413, 422),
    openapi_extra=openapi.body_of(NewSshGrant, {"expires_minutes": 60}, required=False),
)
async def recreate_ssh(application: TheApplication, identity: Writer, uuid: Uuid, body: Body) -> Response:
    """A new token; all others end, and their sessions are cut."""
    return await _grant(ssh.recreate, application, identity, uuid, body.value)


@router.delete("/builders/{uuid}/ssh", responses=openapi.answers(200, SshEndedAnswer, "All tokens are revoked.", 404))
async def end_ssh(application: TheApplication, identity: Writer, uuid: Uuid) -> Response:
    """End all SSH tokens of the builder, and cut their sessions."""
    now = application.clock.now()
    builder = await application.commit(lambda uow: ssh.revoke(uow, identity.caller, uuid.lower(), now))
    answer = SshEndedAnswer(message="All SSH tokens of the builder are over.", data=SshEnded(uuid=builder.id))
    return success(answer).response()


async def _grant(
    granting: Granting, application: Application, identity: Identity, uuid: str, new: NewSshGrant
) -> Response:
    gateway = application.ssh
    if gateway is None:
        raise EngineUnavailable("This service has no SSH gateway: its operator set ssh.port to 0.")
    now = application.clock.now()
    builder, made, token = await application.store.write(
        lambda uow: granting(uow, identity.caller, uuid.lower(), new.expires_minutes, now)
    )
    application.signals.change(builder.id)
    data = SshGrant(
        ssh_command=gateway.command(token),
        token=token,
        expires_at=made.expires_at,
        host=gateway.host,
        port=gateway.port,
        fingerprint=gateway.fingerprint,
        known_hosts=gateway.known_hosts,
    )
    message = f"Log in to {builder.name} with: {data.ssh_command}"
    return success(SshGrantAnswer(message=message, data=data), 201).response()
