"""Terminals: a session in a builder's sandbox over a WebSocket (RFC 6455).

Binary messages are what is typed and what is printed. Text messages are JSON: ``{"type": "resize", "columns", "rows"}``
from the client, ``{"type": "exit", "exit_code"}`` from the service, which then closes the connection.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from fastapi import APIRouter, WebSocket
from starlette.datastructures import QueryParams
from starlette.websockets import WebSocketState

from builderd.api.server.answers import failure
from builderd.api.server.auth import identity_of
from builderd.api.server.paths import PREFIX
from builderd.domain.errors import BadRequest, BuilderdError, ValidationFailed
from builderd.domain.processes import LOGIN_SHELL, MAX_WINDOW, ProcessSpec, Window, shell
from builderd.domain.sandboxes import command_error
from builderd.domain.tokens import Scope
from builderd.ports.processes import Process
from builderd.services import executions, tokens
from builderd.services.application import Application

logger = logging.getLogger(__name__)

router = APIRouter(prefix=PREFIX)

#: The protocol that is spoken here. A browser, which cannot send a header, names its token as a second one.
PROTOCOL = "builderd.terminal.v1"
TOKEN_PROTOCOL = "bearer."  # noqa: S105
#: Seconds between checks that the token is still valid.
GUARD_SECONDS = 15.0
#: Close codes of RFC 6455, 7.4.1.
NORMAL, POLICY = 1000, 1008


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
            await _relay(application, websocket, process)
    except BuilderdError as error:
        await _refuse(websocket, error)


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


async def _relay(application: Application, websocket: WebSocket, process: Process) -> None:
    """Relay until the process ends, the client disconnects, or the token expires."""
    tasks = [
        asyncio.ensure_future(_show(websocket, process)),
        asyncio.ensure_future(_take(websocket, process)),
        asyncio.ensure_future(_guard(application, websocket)),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _show(websocket: WebSocket, process: Process) -> None:
    while piece := await process.read():
        await websocket.send_bytes(piece)
    await websocket.send_json({"type": "exit", "exit_code": await process.wait()})
    await websocket.close(NORMAL)


async def _take(websocket: WebSocket, process: Process) -> None:
    while (message := await websocket.receive())["type"] != "websocket.disconnect":
        if (typed := message.get("bytes")) is not None:
            await process.write(typed)
        else:
            process.resize(_window(message.get("text") or ""))


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


async def _guard(application: Application, websocket: WebSocket) -> None:
    """Raise ``Unauthenticated`` once the token has ended."""
    secret = _secret(websocket)
    while True:
        await asyncio.sleep(GUARD_SECONDS)
        now = application.clock.calendar()
        await application.store.read(lambda uow: tokens.authenticate(uow, secret, now))  # noqa: B023


async def _refuse(websocket: WebSocket, error: BuilderdError) -> None:
    """An answer in the envelope where the connection is none yet."""
    if websocket.application_state is WebSocketState.CONNECTING:
        await websocket.send_denial_response(failure(error).response())
    elif websocket.application_state is WebSocketState.CONNECTED:
        await websocket.close(POLICY, error.code)
