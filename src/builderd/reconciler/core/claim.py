"""The claim on one builder: a lease that keeps other workers away while one works on it."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta

from builderd.domain.ids import BuilderId
from builderd.services.application import Application

LEASE = timedelta(seconds=30)
#: Seconds between renewals; two may fail before the lease expires.
RENEW_INTERVAL = 10.0

log = logging.getLogger(__name__)


class Claim:
    def __init__(self, application: Application, builder_id: BuilderId) -> None:
        self._app = application
        self._id = builder_id

    async def take(self) -> bool:
        """Take the claim; return False while another control plane has it."""
        now, owner = self._app.clock.now(), self._app.instance
        return await self._app.store.write(lambda uow: uow.builders.claim(self._id, owner, now, now + LEASE))

    async def renew(self) -> bool:
        """Renew the claim; return False while another control plane has it."""
        now, owner = self._app.clock.now(), self._app.instance
        return await self._app.store.write(lambda uow: uow.builders.renew(self._id, owner, now, now + LEASE))

    async def renew_until_lost(self) -> None:
        """Renew the claim every ``RENEW_INTERVAL`` seconds; return when it is lost."""
        while True:
            await asyncio.sleep(RENEW_INTERVAL)
            try:
                if not await self.renew():
                    return
            except Exception:
                log.warning("claim renewal failed, retrying in 10 s builder=%s", self._id, exc_info=True)

    async def release(self, due_at: datetime | None) -> None:
        """Release the claim; the builder is due at ``due_at``, or (None) only when something changes."""
        owner = self._app.instance
        await self._app.store.write(lambda uow: uow.builders.release(self._id, owner, due_at))
