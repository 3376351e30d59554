"""Commands beside the app: executions, terminals over a WebSocket (RFC 6455), and tokens for SSH."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response, WebSocket
from starlette.datastructures import QueryParams

from builderd.application import Application
from builderd.builders.api import Uuid
from builderd.builders.model import Builder
from builderd.core.errors import BuilderdError, EngineUnavailable, ValidationFailed
from builderd.core.ids import TenantId
from builderd.executions import service as executions
from builderd.executions import ssh
from builderd.executions.model import LOGIN_SHELL, Grant, ProcessSpec, shell
from builderd.sandboxes.model import ExecResult, command_error
from builderd.schemas.builder_parts import Execution, NewExecution, NewSshGrant, SshEnded, SshGrant
from builderd.schemas.shape import Success
from builderd.server import openapi
from builderd.server.answers import PREFIX, failure, success
from builderd.server.auth import Identity, TheApplication, Writer, identity_of, operations_of
from builderd.server.bodies import Received, json_body, optional_json_body
from builderd.server.limits import Turns
from builderd.server.streams import ResourceStream, event, refuse, relay, stream, window_of
from builderd.tokens import service as tokens
from builderd.tokens.model import Scope

router = APIRouter(prefix=PREFIX, tags=[openapi.WATCHING])

#: A command has at most 100,000 bytes and its input 1,000,000, of which JSON can make six each.
MAX_BODY_BYTES = 8_000_000
#: So much of an output is made JSON at once.
PIECE = 1 << 14

Body = Annotated[Received[NewExecution], Depends(json_body(NewExecution, MAX_BODY_BYTES))]

STREAM = (
    "With `stream`: an `output` event (`text`, with `separate` also `stream`: `stdout` or `stderr`) per piece of "
    "output, then `exit` (`exit_code`, `truncated`, `hint`), or `failed` when it could not begin."
)


@router.post(
    "/builders/{uuid}/exec",
    responses=openapi.answers(
        200,
        Success[Execution],
        "The command ended, or its timeout ended it.",
        *(400, 404, 409, 413, 422),
        content=openapi.events(STREAM),
    ),
    openapi_extra=openapi.body_of(NewExecution, {"command": "ls -l", "timeout": 60}),
)
async def run_command(
    request: Request, application: TheApplication, identity: Writer, uuid: Uuid, body: Body
) -> Response:
    """Run a command beside the app, with its environment and in its folder, and wait for it.

    Of its output, both streams as they come (apart with `separate`), 10 MB are kept. A stream that its reader leaves
    ends the command.
    """
    new, caller, uuid = body.value, identity.caller, uuid.lower()
    memory, encoding = operations_of(request).memory, request.app.state.encoding
    command = executions.Command(new.command, new.timeout, new.stdin.encode(), new.cwd, new.env, new.separate)
    if new.stream:
        sandbox = await executions.running(application, caller, uuid, new.process)
        pieces = executions.follow(application, caller, sandbox, command, memory)
        return stream(_events(pieces, encoding, caller.tenant_id, separate=new.separate))
    async with AsyncExitStack() as stack:
        ended = await stack.enter_async_context(executions.run(application, caller, uuid, command, memory, new.process))
        return ResourceStream(stack.pop_all(), _answer(ended, encoding, caller.tenant_id), 200, {}, "application/json")


async def _answer(ended: executions.Ended, encoding: Turns, tenant_id: TenantId) -> AsyncGenerator[str]:
    """An ``Success[Execution]`` in pieces: as JSON the output may be six times as long."""
    message = json.dumps(f"The command ended with exit code {ended.exit_code}.")
    text = f'{{"success":true,"message":{message},"data":{{"exit_code":{ended.exit_code},"output":"'
    for is_error in (False, True):
        for piece in ended.output.pieces(PIECE, errors=is_error):
            await encoding.wait(tenant_id)
            text += json.dumps(piece, ensure_ascii=False)[1:-1]
            if len(text) >= PIECE:
                yield text
                text = ""
        text += '"' if is_error else '","stderr":"'
    yield f'{text},"truncated":{json.dumps(ended.output.truncated)},"hint":{json.dumps(ended.hint)}}}}}'


async def _events(
    pieces: AsyncGenerator[executions.Text | ExecResult],
    encoding: Turns,
    tenant_id: TenantId,
    *,
    separate: bool,
) -> AsyncGenerator[bytes]:
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                if isinstance(piece, ExecResult):
                    yield event(
                        "exit", {"exit_code": piece.exit_code, "truncated": piece.truncated, "hint": piece.hint}
                    )
                    return
                name = {"stream": "stderr" if piece.is_error else "stdout"} if separate else {}
                for start in range(0, len(piece.text), PIECE):
                    await encoding.wait(tenant_id)
                    yield event("output", {"text": piece.text[start : start + PIECE], **name})
    except BuilderdError as error:
        yield event("failed", failure(error).body)


log = logging.getLogger(__name__)

terminal_router = APIRouter(prefix=PREFIX)

#: The protocol that is spoken here. A browser, which cannot send a header, names its token as a second one.
PROTOCOL = "builderd.terminal.v1"
TOKEN_PROTOCOL = "bearer."  # noqa: S105


@terminal_router.websocket("/builders/{uuid}/terminal")
async def open_terminal(websocket: WebSocket, uuid: str) -> None:
    """Open a terminal of ``columns`` by ``rows`` with a login shell, or the query's ``command``."""
    application: Application = websocket.app.state.application
    try:
        identity = await identity_of(websocket, _websocket_secret(websocket))
        identity.require(Scope.WRITE)
        spec = _spec(websocket.query_params)
        async with executions.session(application, identity.caller, uuid.lower(), spec) as process:
            offered = websocket.scope["subprotocols"]
            await websocket.accept(PROTOCOL if PROTOCOL in offered else None)
            log.info("terminal opened builder=%s token=%s", uuid.lower(), identity.token.id)
            await relay(websocket, process, partial(_check_token, application, websocket))
    except BuilderdError as error:
        await refuse(websocket, error)


def _websocket_secret(websocket: WebSocket) -> str:
    scheme, _, secret = websocket.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return secret.strip()
    named = [name for name in websocket.scope["subprotocols"] if name.startswith(TOKEN_PROTOCOL)]
    return named[0].removeprefix(TOKEN_PROTOCOL) if named else ""


def _spec(query: QueryParams) -> ProcessSpec:
    command = query.get("command")
    if command is not None and (why := command_error(command)):
        raise ValidationFailed({"command": [why]})
    return ProcessSpec(LOGIN_SHELL if command is None else shell(command), window=window_of(query))


async def _check_token(application: Application, websocket: WebSocket) -> None:
    """Raise ``Unauthenticated`` once the token has ended."""
    secret, now = _websocket_secret(websocket), application.clock.now()
    await application.store.read(lambda uow: tokens.authenticate(uow, secret, now))


MAX_SSH_BYTES = 10_000

SshBody = Annotated[Received[NewSshGrant], Depends(optional_json_body(NewSshGrant, MAX_SSH_BYTES))]
Granting = Callable[..., tuple[Builder, Grant, str]]


@router.post(
    "/builders/{uuid}/ssh",
    responses=openapi.answers(201, Success[SshGrant], "A way in.", 400, 404, 409, 413, 422),
    openapi_extra=openapi.body_of(NewSshGrant, {"expires_minutes": 60}, required=False),
)
async def grant_ssh(application: TheApplication, identity: Writer, uuid: Uuid, body: SshBody) -> Response:
    """Create a token with which to log in to the builder by SSH, in addition to the existing ones.

    Everyone who has the token gets a shell, and with it the app's files, environment and secrets.
    """
    return await _grant(ssh.grant, application, identity, uuid, body.value)


@router.post(
    "/builders/{uuid}/ssh/recreate",
    responses=openapi.answers(201, Success[SshGrant], "A way in, the only one.", 400, 404, 409, 413, 422),
    openapi_extra=openapi.body_of(NewSshGrant, {"expires_minutes": 60}, required=False),
)
async def recreate_ssh(application: TheApplication, identity: Writer, uuid: Uuid, body: SshBody) -> Response:
    """A new token; all others end, and their sessions are cut."""
    return await _grant(ssh.recreate, application, identity, uuid, body.value)


@router.delete(
    "/builders/{uuid}/ssh", responses=openapi.answers(200, Success[SshEnded], "All tokens are revoked.", 404)
)
async def end_ssh(application: TheApplication, identity: Writer, uuid: Uuid) -> Response:
    """End all SSH tokens of the builder, and cut their sessions."""
    now = application.clock.now()
    builder = await application.commit(lambda uow: ssh.revoke(uow, identity.caller, uuid.lower(), now))
    answer = Success[SshEnded](message="All SSH tokens of the builder are over.", data=SshEnded(uuid=builder.id))
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
    data = SshGrant.of(gateway, ssh_command=gateway.command(token), token=token, expires_at=made.expires_at)
    message = f"Log in to {builder.name} with: {data.ssh_command}"
    return success(Success[SshGrant](message=message, data=data), 201).response()
