"""Credentials: write, list, delete. What was written is never answered."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response

from builderd.application import Application
from builderd.builders import service as builders
from builderd.core.errors import BuilderdError, ValidationFailed
from builderd.core.ids import BuilderId
from builderd.credentials import service as credentials
from builderd.credentials.model import NAME, name_error
from builderd.credentials.service import CredentialView, Use
from builderd.database.unit_of_work import UnitOfWork
from builderd.schemas import account as wire
from builderd.schemas.account import Credential, NewCredential
from builderd.schemas.shape import Page, Parameters, Success
from builderd.server import openapi
from builderd.server.answers import PREFIX, success
from builderd.server.auth import Identity, Reader, TheApplication, Writer
from builderd.server.bodies import Received, json_body
from builderd.server.pages import ThePage

router = APIRouter(prefix=PREFIX, tags=[openapi.CREDENTIALS])

#: 64,000 bytes of values, of which JSON can make six each.
MAX_BODY_BYTES = 500_000

Body = Annotated[Received[NewCredential], Depends(json_body(NewCredential, MAX_BODY_BYTES))]
Name = Annotated[str, Path(description="The credential's name.", json_schema_extra={"pattern": f"^{NAME.pattern}$"})]


class PutQuery(Parameters):
    """``restart``: the builders that run with the values before are started again."""

    restart: bool = False


class DeleteQuery(Parameters):
    """``force``: also while builders use it."""

    force: bool = False


@router.put(
    "/credentials/{name}",
    responses={
        **openapi.answer(200, Success[Credential], "It has new values."),
        **openapi.answer(201, Success[Credential], "It is stored."),
        **openapi.failures(400, 401, 403, 413, 422, 429),
    },
    openapi_extra=openapi.body_of(NewCredential, {"values": {"API_KEY": "a secret"}}),
)
async def put_credential(
    application: TheApplication, identity: Writer, name: Name, query: Annotated[PutQuery, Query()], body: Body
) -> Response:
    """Store secrets under a name, in place of all that were there.

    Builders that name it in `credentials` get them as environment variables, and as files
    `/run/credentials/<name>/<variable>`, when they start.
    """
    why = name_error(name)
    if why is not None:
        raise ValidationFailed({"name": [why]})
    tenant, now = identity.token.tenant_id, application.clock.now()
    values = {variable: secret.get_secret_value() for variable, secret in body.value.values.items()}

    def put(uow: UnitOfWork) -> tuple[CredentialView, bool]:
        _, is_new = credentials.put(uow, application.vault, tenant, name, values, now)
        # Looked at here: a moment later it may be deleted.
        return credentials.get(uow, tenant, name), is_new

    view, is_new = await application.store.write(put)
    stale = [use for use in view.uses if use.needs_restart]
    not_restarted = await _restart(application, identity, stale) if query.restart else {}
    message = _put_message(name, stale, not_restarted, restarted=query.restart)
    answer = Success[Credential](message=message, data=_present(view, not_restarted))
    return success(answer, 201 if is_new else 200).response()


async def _restart(application: Application, identity: Identity, stale: list[Use]) -> dict[BuilderId, str]:
    """Restart these builders if possible; return the reasons of the others by their ids.

    The credential is stored in any case.
    """
    not_restarted = {}
    for use in stale:
        try:
            await _begin_restart(application, identity, use.builder.id)
        except BuilderdError as error:
            not_restarted[use.builder.id] = error.message
    return not_restarted


async def _begin_restart(application: Application, identity: Identity, builder_id: BuilderId) -> None:
    now = application.clock.now()
    await application.commit(lambda uow: builders.restart(uow, application, identity.caller, builder_id, now))


def _put_message(name: str, stale: list[Use], not_restarted: Mapping[BuilderId, str], *, restarted: bool) -> str:
    names = ", ".join(use.builder.name for use in stale if use.builder.id not in not_restarted)
    stored = f"The credential {name} is stored"
    if not restarted and names:
        return f"{stored}; {names} have the values before until they are restarted (?restart=true)."
    begun = f"; being restarted with it: {names}" if names else ""
    left = [
        f" {use.builder.name} is not restarted: {not_restarted[use.builder.id]}"
        for use in stale
        if use.builder.id in not_restarted
    ]
    return f"{stored}{begun}.{''.join(left)}"


@router.get("/credentials", responses=openapi.answers(200, Page[Credential], "A page of them, by name.", 422))
async def list_credentials(application: TheApplication, identity: Reader, query: ThePage) -> Response:
    """All credentials: their names, what they set, and who uses them."""
    views = await application.store.read(lambda uow: credentials.list_all(uow, identity.token.tenant_id))
    data = [_present(view) for view in query.cut(views)]
    message = f"There are {len(views)} credentials."
    return success(Page[Credential](message=message, data=data, meta=query.of(len(views)))).response()


@router.get(
    "/credentials/{name}",
    responses=openapi.answers(200, Success[Credential], "The credential, without its values.", 404),
)
async def read_credential(application: TheApplication, identity: Reader, name: Name) -> Response:
    """One credential, without its values."""
    view = await application.store.read(lambda uow: credentials.get(uow, identity.token.tenant_id, name))
    return success(Success[Credential](message=f"The credential {name}.", data=_present(view))).response()


@router.delete("/credentials/{name}", responses=openapi.answers(200, Success[Credential], "It is gone.", 404, 409, 422))
async def delete_credential(
    application: TheApplication, identity: Writer, name: Name, query: Annotated[DeleteQuery, Query()]
) -> Response:
    """Remove a credential. While builders use it, only with `force`: they could not start again without it."""
    tenant = identity.token.tenant_id
    view = await application.store.write(lambda uow: credentials.delete(uow, tenant, name, force=query.force))
    return success(Success[Credential](message=f"The credential {name} is gone.", data=_present(view))).response()


def _present(view: CredentialView, not_restarted: Mapping[BuilderId, str] = MappingProxyType({})) -> wire.Credential:
    return wire.Credential.of(
        view.credential,
        used_by=[
            wire.CredentialUse(
                uuid=use.builder.id,
                name=use.builder.name,
                needs_restart=use.needs_restart,
                not_restarted=not_restarted.get(use.builder.id),
            )
            for use in view.uses
        ],
    )
