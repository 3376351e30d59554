"""Events about the machine's storage: tenants hear when their apps cannot write any more, and when they can again.

The operator finds the cause and the cure in the service's log, in ``/readyz`` and in ``builderd doctor``.
"""

from __future__ import annotations

import logging

from builderd.domain.events import SYSTEM, Event
from builderd.services.application import Application
from builderd.store import UnitOfWork

log = logging.getLogger(__name__)

UNAVAILABLE, AVAILABLE = "storage.unavailable", "storage.available"
_REASONS = {
    UNAVAILABLE: "The machine's storage is full or read-only: apps cannot write until its operator makes room.",
    AVAILABLE: "Apps can write to the machine's storage again.",
}


class StorageEvents:
    """Remembers what was reported last; after a restart of the service a fault that continues is reported again."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._reported = AVAILABLE

    async def check(self) -> None:
        """Write an event for each tenant with builders, where the state has changed."""
        readiness = self._app.engine.readiness()
        if readiness.engine_unreachable:
            # Its storage cannot be seen: what was reported last holds.
            return
        state = AVAILABLE if readiness.ready else UNAVAILABLE
        if state == self._reported:
            return
        if readiness.ready:
            log.info("storage available again")
        else:
            log.error("storage unavailable error=%s", readiness.message)
        await self._app.store.write(lambda uow: self._add(uow, state))
        self._reported = state

    def _add(self, uow: UnitOfWork, state: str) -> None:
        now = self._app.clock.now()
        for tenant in uow.builders.tenants():
            uow.events.add(Event(tenant, None, now, state, SYSTEM, _REASONS[state]))
