"""API tokens of the caller's own tenant: create, list, revoke."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response

from builderd.core.ids import TokenId
from builderd.schemas import account as wire
from builderd.schemas.shape import Page, Success
from builderd.server import openapi
from builderd.server.answers import PREFIX, success
from builderd.server.auth import Administrator, Reader, TheApplication, operations_of
from builderd.server.bodies import Received, json_body
from builderd.server.operations import Operations
from builderd.server.pages import ThePage
from builderd.sessions import revocations
from builderd.tokens import service as tokens
from builderd.tokens.model import Token

router = APIRouter(prefix=PREFIX, tags=[openapi.TOKENS])

MAX_BODY_BYTES = 100_000

Body = Annotated[Received[wire.NewToken], Depends(json_body(wire.NewToken, MAX_BODY_BYTES))]
TokenUuid = Annotated[str, Path(description="The token's id.", json_schema_extra={"format": "uuid"})]

EXAMPLE = {"name": "ci", "scopes": ["write"], "expires_at": "2099-01-31T12:00:00Z"}


@router.post(
    "/tokens",
    status_code=201,
    responses=openapi.answers(201, wire.NewTokenAnswer, "It can be used from now on.", 400, 413, 422, 429),
    openapi_extra=openapi.body_of(wire.NewToken, EXAMPLE),
)
async def create_token(request: Request, application: TheApplication, identity: Administrator, body: Body) -> Response:
    """Create an API token of your tenant, with no more scopes and no later expiry than your own.

    The secret is shown this once. Needs the scope `admin`.
    """
    now, new = application.clock.now(), body.value
    token, secret = await application.store.write(
        lambda uow: tokens.derive(uow, identity.token, new.name, now, scopes=new.scopes, expires_at=new.expires_at)
    )
    data = wire.TokenWithSecret(**_shown(operations_of(request), token, identity.token).model_dump(), secret=secret)
    message = "The token is made; keep its secret, which is not shown again."
    return success(wire.NewTokenAnswer(message=message, data=data), 201).response()


@router.get("/tokens", responses=openapi.answers(200, Page[wire.Token], "A page of them.", 422))
async def list_tokens(
    request: Request, application: TheApplication, identity: Administrator, query: ThePage
) -> Response:
    """List your tenant's API tokens without their secrets, revoked ones too, the newest first.

    Needs the scope `admin`.
    """
    found = await application.store.read(lambda uow: uow.tokens.list(identity.token.tenant_id))
    newest = sorted(found, key=lambda token: (token.created_at, token.id), reverse=True)
    data = [_shown(operations_of(request), token, identity.token) for token in query.cut(newest)]
    return success(Page[wire.Token](message=f"{len(found)} tokens.", data=data, meta=query.of(len(found)))).response()


@router.get("/tokens/current", responses=openapi.answers(200, Success[wire.Token], "Yours."))
async def read_current_token(request: Request, identity: Reader) -> Response:
    """Return the API token that this call is made with: its name, its scopes and its expiry."""
    data = _shown(operations_of(request), identity.token, identity.token)
    return success(Success[wire.Token](message=f"The token {data.name}.", data=data)).response()


@router.delete("/tokens/{id}", responses=openapi.answers(200, Success[wire.RevokedToken], "It has ended.", 404))
async def revoke_token(
    request: Request,
    application: TheApplication,
    identity: Administrator,
    token_id: Annotated[TokenUuid, Path(alias="id")],
) -> Response:
    """Revoke an API token of your tenant at once, also your own, and end what it made.

    That is tokens, with what those made, SSH tokens, preview links, webhooks and uploads: `ended` lists them. What it
    streams ends within 15 seconds. Service tokens of builders stay. Needs the scope `admin`.
    """
    caller = identity.caller
    done = await revocations.end(application, caller.tenant_id, TokenId(token_id.lower()), caller.actor)
    shown = _shown(operations_of(request), done.token, identity.token)
    ended = [wire.Ended(kind=one.kind, id=one.id, name=one.name, builder=one.builder_id) for one in done.ended]
    data = wire.RevokedToken(**shown.model_dump(), ended=ended)
    return success(Success[wire.RevokedToken](message=done.message, data=data)).response()


def _shown(operations: Operations, token: Token, current: Token) -> wire.Token:
    calls = token.calls.add_all(operations.token_calls.pending(token.id))
    in_a_day = calls.of_day(operations.application.clock.now())
    return wire.Token.of(token, scopes=sorted(token.scopes), calls_in_24_h=in_a_day, current=token.id == current.id)
