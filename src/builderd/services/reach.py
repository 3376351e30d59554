"""Waits for an engine that is out of reach: they end after a while, what they wait for goes on."""

from __future__ import annotations

import asyncio

from builderd.services.application import Application

#: Seconds without an outcome after which a call is answered while nothing that starts or ends sandboxes answers.
MAX_UNREACHABLE_SECONDS = 10.0


class Reach:
    """Watches the engine during one wait."""

    def __init__(self, application: Application) -> None:
        self._engine = application.engine
        self._lost_since: float | None = None

    def lost(self) -> str | None:
        """Return what is out of reach, once it has been so for ``MAX_UNREACHABLE_SECONDS`` of looks; None before."""
        readiness, now = self._engine.readiness(), asyncio.get_running_loop().time()
        if not readiness.engine_unreachable:
            self._lost_since = None
        elif self._lost_since is None:
            self._lost_since = now
        elif now - self._lost_since >= MAX_UNREACHABLE_SECONDS:
            return readiness.message
        return None
