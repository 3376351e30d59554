"""The claim on one builder: a lease that keeps other workers away while one works on it."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta

from builderd.domain.errors import RecordDamaged
from builderd.domain.ids import BuilderId
from builderd.reconciler.core.observe import StoredState, read
from builderd.services.application import Application
from builderd.store import UnitOfWork

LEASE = timedelta(seconds=30)
#: Seconds between renewals; two may fail before the lease expires.
RENEW_INTERVAL = 10.0

log = logging.getLogger(__name__)


class Claim:
    def __init__(self, application: Application, builder_id: BuilderId) -> None:
        self._app = application
        self._id = builder_id
        #: A record released it (``transitions.apply``).
        self.released = False

    async def take_and_read(self) -> tuple[bool, StoredState | None]:
        """Take the claim and read the stored state in one transaction: a visitor's request may wait for it.

        Returns False while another control plane holds it.
        """
        released, self.released = self.released, False
        try:
            return await self._app.store.write(lambda uow: (self._claim(uow), self._read(uow)))
        except Exception:
            # A caller that is cancelled has it: the write runs to its end.
            self.released = released
            raise

    def _read(self, uow: UnitOfWork) -> StoredState | None:
        """Return the stored state; None for one that is damaged, of which a builder that is deleted is cleared."""
        try:
            return read(uow, self._id)
        except RecordDamaged:
            if uow.builders.owner_of_live(self._id) is not None:
                return None
            uow.builders.replace_undecodable(self._id, self._app.clock.now())
            return read(uow, self._id)

    def _claim(self, uow: UnitOfWork) -> bool:
        now = self._app.clock.now()
        return uow.builders.claim(self._id, self._app.instance, now, now + LEASE)

    async def renew(self) -> bool:
        """Renew the claim, unless a record released it; return False while another control plane holds it."""
        now, owner = self._app.clock.now(), self._app.instance
        return await self._app.store.write(lambda uow: uow.builders.renew(self._id, owner, now, now + LEASE))

    async def hold(self) -> None:
        """Renew the claim every ``RENEW_INTERVAL`` seconds; return when it is lost."""
        while True:
            await asyncio.sleep(RENEW_INTERVAL)
            if self.released:
                continue
            try:
                if not await self.renew():
                    return
            except Exception:
                log.warning("claim renewal failed, retrying in 10 s builder=%s", self._id, exc_info=True)

    async def release(self, due_at: datetime | None) -> None:
        """Release the claim if still held; the builder is due at ``due_at``, or (None) only when something changes."""
        if not self.released:
            await self._release(due_at)
        elif due_at is not None:
            await self._app.store.write(lambda uow: uow.builders.make_due(self._id, due_at))

    async def _release(self, due_at: datetime | None) -> None:
        owner = self._app.instance
        await self._app.store.write(lambda uow: uow.builders.release(self._id, owner, due_at))
