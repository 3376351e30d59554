"""The terminal: a shell in the sandbox over a WebSocket, for a session cookie of this origin."""

from __future__ import annotations

import json
import logging
from functools import partial

from starlette.responses import Response
from starlette.websockets import WebSocket

from builderd.api.server.terminal_relay import refuse, relay
from builderd.domain.errors import BuilderdError, NotFound, Unauthenticated
from builderd.domain.processes import LOGIN_SHELL, MAX_WINDOW, ProcessSpec, Window
from builderd.domain.tokens import Scope, Session
from builderd.services import executions, sessions
from builderd.services.application import Application
from builderd.services.builders import Caller
from builderd.web.pages.builder import builder_page, frame_of
from builderd.web.policy import check_origin
from builderd.web.visits import Visit, page, recognized, websocket

log = logging.getLogger(__name__)


@page("/builders/{name}/terminal")
async def show_terminal(visit: Visit) -> Response:
    """Show the terminal; its script opens the session."""
    frame = await visit.read(lambda uow: frame_of(uow, visit))
    return await builder_page(visit, "terminal.html", "terminal", frame)


@websocket("/builders/{name}/terminal/session")
async def open_terminal(websocket: WebSocket) -> None:
    """A login shell. Binary messages are what is typed and printed, text messages are sizes and the exit code."""
    application: Application = websocket.app.state.application
    try:
        # An opening changes something: it must come from this very origin.
        check_origin(websocket)
        session, token, _, _ = await recognized(websocket)
        if not token.allows(Scope.WRITE):
            raise Unauthenticated("The terminal needs a token with the scope write.")
        name = websocket.path_params["name"]
        builder = await application.store.read(lambda uow: uow.builders.by_name(token.tenant_id, name))
        if builder is None:
            raise NotFound(f"You have no builder named {name!r}.")
        spec = ProcessSpec(LOGIN_SHELL, window=_window(dict(websocket.query_params)) or Window(80, 24))
        caller = Caller.of(token)
        async with executions.session(application, caller, builder.id, spec) as process:
            await websocket.accept()
            log.info("terminal opened builder=%s session=%s", builder.id, session.id)
            await relay(websocket, process, _window_of, partial(_check, application, session))
    except BuilderdError as error:
        await refuse(websocket, error)


def _window_of(text: str) -> Window | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return _window(found) if isinstance(found, dict) else None


def _window(asked: dict[str, object]) -> Window | None:
    """Return the size in a message or query, None for one that is none."""
    sizes = [str(asked.get(name, "")) for name in ("columns", "rows")]
    if not all(text.isascii() and text.isdecimal() and len(text) < 6 and 0 < int(text) <= MAX_WINDOW for text in sizes):
        return None
    return Window(int(sizes[0]), int(sizes[1]))


async def _check(application: Application, session: Session) -> None:
    """Raise ``Unauthenticated`` once the session has ended."""
    now = application.clock.now()
    if not await application.store.read(lambda uow: sessions.is_good_still(uow, session, now)):
        raise Unauthenticated("The session is over.")
