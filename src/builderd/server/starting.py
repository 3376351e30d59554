"""The API's port while the service starts: health checks are answered, all other calls wait for the rest.

A service that stands by refuses them: another one of its cluster works.

Imports little: what it needs is imported before the service listens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from builderd import __version__
from builderd.core.errors import EngineUnavailable
from builderd.schemas.monitoring import Health, Part, Readiness
from builderd.schemas.shape import Success
from builderd.server.answers import PREFIX, Answer, failure, stamped, success
from builderd.server.limits import Limiter
from builderd.server.listener import Servers

#: Seconds that a call waits for the service to start.
PATIENCE = 30.0


class ApiPort:
    """The API's address. ``open`` passes its calls to the app, also those that wait."""

    def __init__(self, servers: Servers, host: str, port: int, waits_for: Callable[[], str] = str) -> None:
        """``waits_for`` returns what keeps the service from starting, "" for nothing unusual."""
        self._waits_for = waits_for
        self._servers = servers
        self._address = host, port
        self._listening: set[object] = set()
        self._app: ASGIApp | None = None
        self._decided = asyncio.Event()
        #: Host of the service that works, "" for one not known yet, while this one stands by.
        self._worker: str | None = None
        self._limiter = Limiter()

    async def listen(self) -> None:
        """Listen from now on. Idempotent. Raises ``EngineUnavailable`` when the port is taken."""
        if self._address not in self._listening:
            await self._servers.add(self, *self._address, "--host and --port", self._limiter)
            self._listening.add(self._address)

    async def listen_behind_proxy(self, socket: Path, user: str | None) -> None:
        """Listen there, too, as ``Servers.add_behind_proxy`` says. Idempotent."""
        if socket not in self._listening:
            await self._servers.add_behind_proxy(self, socket, user, self._limiter)
            self._listening.add(socket)

    def open(self, app: ASGIApp) -> None:
        """Pass all calls to this app."""
        self._app = app
        self._decided.set()

    def stand_by(self, worker: str | None) -> None:
        """Refuse calls from now on as a standby of the service on this host, "" for one that is not known yet.

        None: this service takes the work over, and calls wait.
        """
        self._worker = worker

    def give_up(self) -> None:
        """Refuse what still waits: the service does not start."""
        self._decided.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app or await self._while_starting(scope)
        await app(scope, receive, send)

    async def _while_starting(self, scope: Scope) -> ASGIApp:
        path = scope["path"].removeprefix(PREFIX)
        if path == "/healthz":
            return stamped(scope, alive(self._worker))
        if self._worker is not None:
            return stamped(scope, _stands_by(self._worker, readiness=path == "/readyz"))
        if path == "/readyz":
            return stamped(scope, _not_ready(self._waits_for()))
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self._decided.wait()
        return self._app or stamped(scope, _not_started(self._waits_for()))


def alive(worker: str | None = None, *, shows_money: bool = False) -> Answer:
    """Return the answer of ``/healthz``; with ``worker``, of a service that stands by."""
    if worker is None:
        return success(
            Success[Health](message="builderd is alive.", data=Health(version=__version__, shows_money=shows_money))
        )
    data = Health(version=__version__, role="standby", worker=worker or None)
    return success(Success[Health](message="builderd is alive and stands by.", data=data))


def _stands_by(worker: str, *, readiness: bool) -> Answer:
    works = f"the service on {worker}" if worker else "another service of its cluster"
    message = f"This service stands by for {works}: call that one, or the address that moves with it."
    part = Part(ready=False, message="this service stands by")
    state = Readiness(database=part, engine=part, previews=part, public_url=part, role="standby", worker=worker or None)
    data = state.model_dump(mode="json") if readiness else None
    return failure(EngineUnavailable(message, data=data, retry_after=5))


def _not_ready(reason: str) -> Answer:
    part = Part(ready=False, message="the service is starting")
    database = Part(ready=False, message=reason or part.message)
    state = Readiness(database=database, engine=part, previews=part, public_url=part)
    message = f"builderd is not ready yet. The service is {reason or 'starting'}."
    return failure(EngineUnavailable(message, data=state.model_dump(mode="json"), retry_after=1))


def _not_started(reason: str) -> Answer:
    message = f"The service has not started yet: it is {reason}." if reason else "The service has not started yet."
    return failure(EngineUnavailable(f"{message} Its log says what it waits for.", retry_after=5))
