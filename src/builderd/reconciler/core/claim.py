"""The claim on one builder: a lease that keeps other control planes away while somebody works on it."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta

from builderd.domain.ids import BuilderId
from builderd.ports.store import UnitOfWork
from builderd.reconciler.core.observe import StoredState, read
from builderd.services.application import Application

LEASE = timedelta(seconds=30)
#: In seconds; two may fail before the lease is over.
RENEW_INTERVAL = 10.0

log = logging.getLogger(__name__)


class Claim:
    def __init__(self, application: Application, builder_id: BuilderId) -> None:
        self._app = application
        self._id = builder_id

    async def take(self) -> bool:
        """Take or renew it; False while somebody else has it."""
        return await self._app.store.write(self._claim)

    async def take_and_read(self) -> tuple[bool, StoredState | None]:
        """The same, and what is recorded of the builder, in one transaction: visitors may be waiting."""
        return await self._app.store.write(lambda uow: (self._claim(uow), read(uow, self._id)))

    def _claim(self, uow: UnitOfWork) -> bool:
        now = self._app.clock.now()
        return uow.builders.claim(self._id, self._app.instance, now, now + LEASE)

    async def hold(self) -> None:
        """Renew it from time to time; returns when it is lost."""
        while True:
            await asyncio.sleep(RENEW_INTERVAL)
            try:
                if not await self.take():
                    return
            except Exception:
                log.warning("claim renewal failed, retrying in 10 s builder=%s", self._id, exc_info=True)

    async def release(self, due_at: datetime | None) -> None:
        """Give it back if it is held still; the builder is due at ``due_at``, or only when something changes."""
        owner = self._app.instance
        await self._app.store.write(lambda uow: uow.builders.release(self._id, owner, due_at))
