"""Terminals: a session in a builder's sandbox over a WebSocket (RFC 6455).

Binary messages are what is typed and what is printed. Text messages are JSON: ``{"type": "resize", "columns", "rows"}``
from the client, ``{"type": "exit", "exit_code"}`` from the service, which then closes the connection.
"""

from __future__ import annotations

import json
import logging
from functools import partial
from typing import Any

from fastapi import APIRouter, WebSocket
from starlette.datastructures import QueryParams

from builderd.api.server.auth import identity_of
from builderd.api.server.paths import PREFIX
from builderd.api.server.terminal_relay import refuse, relay
from builderd.domain.errors import BadRequest, BuilderdError, ValidationFailed
from builderd.domain.processes import LOGIN_SHELL, MAX_WINDOW, ProcessSpec, Window, shell
from builderd.domain.sandboxes import command_error
from builderd.domain.tokens import Scope
from builderd.services import executions, tokens
from builderd.services.application import Application

logger = logging.getLogger(__name__)

router = APIRouter(prefix=PREFIX)

#: The protocol that is spoken here. A browser, which cannot send a header, names its token as a second one.
PROTOCOL = "builderd.terminal.v1"
TOKEN_PROTOCOL = "bearer."  # noqa: S105


@router.websocket("/builders/{uuid}/terminal")
async def open_terminal(websocket: WebSocket, uuid: str) -> None:
    """Open a terminal of ``columns`` by ``rows`` with a login shell, or the query's ``command``."""
    application: Application = websocket.app.state.application
    try:
        identity = await identity_of(websocket, _secret(websocket))
        identity.require(Scope.WRITE)
        spec = _spec(websocket.query_params)
        async with executions.session(application, identity.caller, uuid.lower(), spec) as process:
            offered = websocket.scope["subprotocols"]
            await websocket.accept(PROTOCOL if PROTOCOL in offered else None)
            logger.info("terminal opened builder=%s token=%s", uuid.lower(), identity.token.id)
            await relay(websocket, process, _window, partial(_check, application, websocket))
    except BuilderdError as error:
        await refuse(websocket, error)


def _secret(websocket: WebSocket) -> str:
    scheme, _, secret = websocket.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return secret.strip()
    named = [name for name in websocket.scope["subprotocols"] if name.startswith(TOKEN_PROTOCOL)]
    return named[0].removeprefix(TOKEN_PROTOCOL) if named else ""


def _spec(query: QueryParams) -> ProcessSpec:
    command = query.get("command")
    if command is not None and (why := command_error(command)):
        raise ValidationFailed({"command": [why]})
    window = Window(_size("columns", query.get("columns", "80")), _size("rows", query.get("rows", "24")))
    return ProcessSpec(LOGIN_SHELL if command is None else shell(command), window=window)


def _size(name: str, value: Any) -> int:
    text = str(value)
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and 0 < int(text) <= MAX_WINDOW):
        raise ValidationFailed({name: [f"must be from 1 to {MAX_WINDOW}"]})
    return int(text)


def _window(text: str) -> Window:
    """Return the window size in a text message. Raises ``BadRequest`` or ``ValidationFailed``."""
    try:
        asked = json.loads(text)
        if asked["type"] == "resize":
            return Window(_size("columns", asked["columns"]), _size("rows", asked["rows"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise BadRequest(
        'A text message must be {"type": "resize", "columns": …, "rows": …}; send what is typed as binary.'
    )


async def _check(application: Application, websocket: WebSocket) -> None:
    """Raise ``Unauthenticated`` once the token has ended."""
    secret, now = _secret(websocket), application.clock.now()
    await application.store.read(lambda uow: tokens.authenticate(uow, secret, now))
