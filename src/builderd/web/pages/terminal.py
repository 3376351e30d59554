"""The terminal: a shell in the sandbox over a WebSocket, for a session cookie of this origin."""

from __future__ import annotations

import asyncio
import json
import logging

from starlette.responses import Response
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketState

from builderd.api.server.answers import failure
from builderd.domain.errors import BuilderdError, NotFound, Unauthenticated
from builderd.domain.processes import LOGIN_SHELL, MAX_WINDOW, ProcessSpec, Window
from builderd.domain.sessions import Session
from builderd.domain.tokens import Scope
from builderd.ports.processes import Process
from builderd.services import executions, sessions
from builderd.services.application import Application
from builderd.services.builders import Caller
from builderd.web.pages.builder import builder_page, frame_of
from builderd.web.policy import check_origin
from builderd.web.visits import Visit, page, recognized

log = logging.getLogger(__name__)

#: Seconds between checks that the session is still valid.
GUARD_SECONDS = 15.0
#: Close codes of RFC 6455, 7.4.1.
NORMAL, POLICY = 1000, 1008


async def show_terminal(visit: Visit) -> Response:
    """Show the terminal; its script opens the session."""
    frame = await visit.read(lambda uow: frame_of(uow, visit))
    return await builder_page(visit, "terminal.html", "terminal", frame)


async def open_terminal(websocket: WebSocket) -> None:
    """A login shell. Binary messages are what is typed and printed, text messages are sizes and the exit code."""
    application: Application = websocket.app.state.application
    try:
        # An opening changes something: it must come from this very origin.
        check_origin("", websocket.headers)
        session, token, _, _ = await recognized(websocket)
        if not token.allows(Scope.WRITE):
            raise Unauthenticated("The terminal needs a token with the scope write.")
        name = websocket.path_params["name"]
        builder = await application.store.read(lambda uow: uow.builders.by_name(token.tenant_id, name))
        if builder is None:
            raise NotFound(f"You have no builder named {name!r}.")
        spec = ProcessSpec(LOGIN_SHELL, window=_window(dict(websocket.query_params)) or Window(80, 24))
        caller = Caller(token.tenant_id, f"token {token.name}")
        async with executions.session(application, caller, builder.id, spec) as process:
            await websocket.accept()
            log.info("terminal opened builder=%s session=%s", builder.id, session.id)
            await _talk(application, websocket, process, session)
    except BuilderdError as error:
        await _refuse(websocket, error)


async def _talk(application: Application, websocket: WebSocket, process: Process, session: Session) -> None:
    """Pass bytes on until the process ends, the page leaves, or the session ends."""
    tasks = [
        asyncio.ensure_future(_show(websocket, process)),
        asyncio.ensure_future(_take(websocket, process)),
        asyncio.ensure_future(_guard(application, session)),
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
        elif (window := _window(_parsed(message.get("text") or ""))) is not None:
            process.resize(window)


def _parsed(text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _window(asked: dict[str, object]) -> Window | None:
    """Return the size in a message or query, None for one that is none."""
    sizes = [str(asked.get(name, "")) for name in ("columns", "rows")]
    if not all(text.isascii() and text.isdecimal() and len(text) < 6 and 0 < int(text) <= MAX_WINDOW for text in sizes):
        return None
    return Window(int(sizes[0]), int(sizes[1]))


async def _guard(application: Application, session: Session) -> None:
    """Raise ``Unauthenticated`` once the session has ended."""
    while True:
        await asyncio.sleep(GUARD_SECONDS)
        now = application.clock.calendar()
        if not await application.store.read(lambda uow: sessions.is_good_still(uow, session, now)):  # noqa: B023
            raise Unauthenticated("The session is over.")


async def _refuse(websocket: WebSocket, error: BuilderdError) -> None:
    if websocket.application_state is WebSocketState.CONNECTING:
        await websocket.send_denial_response(failure(error).response())
    elif websocket.application_state is WebSocketState.CONNECTED:
        await websocket.close(POLICY, error.code)


ROUTES: list[BaseRoute] = [
    page("/builders/{name}/terminal", show_terminal),
    WebSocketRoute("/builders/{name}/terminal/session", open_terminal),
]
