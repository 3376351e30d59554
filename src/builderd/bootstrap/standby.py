"""Stand by in a cluster: wait until the owner of the database has ended, or is silent, and may be continued."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

from builderd.bootstrap.membership import Membership
from builderd.bootstrap.supervisor import Supervisor
from builderd.domain.database_lease import (
    CLAIM_AFTER,
    TAKE_AFTER_CLAIM,
    ClusterService,
    DatabaseLease,
    DatabaseOwned,
    SeenService,
    describe_owner,
    unfit_reason,
)
from builderd.domain.errors import EngineUnavailable, StoreUnavailable
from builderd.store import Store, UnitOfWork

log = logging.getLogger(__name__)
#: Seconds between two looks, and between two log lines on what keeps this service from taking over.
WATCH_INTERVAL, LOG_INTERVAL = 1.0, 60.0
#: An owner that renews its lease, but announces no service within so many seconds, is not one of this cluster.
ANNOUNCED_WITHIN = 30.0


@dataclass(frozen=True, slots=True)
class View:
    """State in the database: the lease, its owner's announcement and this service's own."""

    lease: DatabaseLease
    owner: SeenService | None
    own: SeenService | None


class Standby:
    """Waits for one lease. Its own monotonic clock and the database's both count: either may have been set."""

    def __init__(
        self, store: Store, membership: Membership, supervisor: Supervisor, stand_by: Callable[[str | None], None]
    ) -> None:
        self._store = store
        self.membership = membership
        self._supervisor = supervisor
        #: Reports the host of the service that works: ``api.starting.ApiPort.stand_by``.
        self._stand_by = stand_by
        self._began = time.monotonic()
        self._lease: DatabaseLease | None = None
        #: Since when the lease was seen not to be renewed, and when the database answered last.
        self._quiet_since = self._looked_at = time.monotonic()
        #: When the cluster had stored this service's claim.
        self._claimed_at: float | None = None
        #: The cluster may have its claim, which is withdrawn once the owner is seen alive.
        self._has_claimed = False
        #: This service could stand by: should keys differ later, they were changed on either.
        self._was_fit = False
        self._said: tuple[str, float] = ("", 0.0)

    async def wait(self) -> DatabaseLease:
        """Return the lease once this service may take it. Raises ``DatabaseOwned`` when it never may."""
        await self.membership.end_previews()
        self._stand_by("")
        self._supervisor.ready()
        log.info("standing by host=%s port=%d", self.membership.settings.host, self.membership.settings.port)
        async with self._announced():
            while True:
                try:
                    lease = await self._look()
                except (StoreUnavailable, EngineUnavailable) as error:
                    self._say(error.message)
                    lease = None
                if lease is not None:
                    log.warning("taking the cluster over from=%s", describe_owner(lease))
                    self._supervisor.status("")
                    self._stand_by(None)
                    return lease
                await asyncio.sleep(WATCH_INTERVAL)

    @asynccontextmanager
    async def _announced(self) -> AsyncIterator[None]:
        """Take the announcement back when this service ends, or is refused."""
        try:
            yield
        except BaseException:
            with suppress(StoreUnavailable):
                await self._store.write(lambda uow: uow.services.remove(self.membership.instance.member))
            raise

    async def _look(self) -> DatabaseLease | None:
        own = await self.membership.describe()
        view = await self._store.write(partial(_announce, own=own))
        lease, now = view.lease, time.monotonic()
        gap, self._looked_at = now - self._looked_at, now
        # While the database was away, the owner could not renew its lease either.
        if self._lease is None or lease.was_renewed(self._lease) or gap > CLAIM_AFTER:
            await self._restart(lease)
        owner = view.owner.service if view.owner is not None else None
        reason = unfit_reason(own, owner) if owner is not None else None
        self._stand_by(lease.instance.host_name)
        if view.owner is None:
            self._refuse_strangers(lease)
            return None
        if reason is not None:
            if self._was_fit:
                self._say(reason)
                return None
            raise DatabaseOwned(f"This service cannot stand by for {describe_owner(lease)}: {reason}; then start it.")
        self._was_fit = True
        if differences := await self._store.schema_conflict():
            self._say(f"upgrade this service: {differences}")
            return None
        if view.own is None or view.own.known_in != lease.term:
            if time.monotonic() - self._began > ANNOUNCED_WITHIN:
                self._say(f"{describe_owner(lease)} does not know this service")
            return None
        self._supervisor.status(f"standing by for {describe_owner(lease)}")
        return lease if lease.released or await self._may_take(lease, own) else None

    async def _restart(self, lease: DatabaseLease) -> None:
        """Wait anew for an owner that was alive, or may have been."""
        self._lease, self._quiet_since = lease, time.monotonic()
        self._claimed_at = None
        if self._has_claimed:
            await self.membership.claim(lease.instance.member)
            self._has_claimed = False

    async def _may_take(self, lease: DatabaseLease, own: ClusterService) -> bool:
        """Claim the work of a silent owner, and return True once its previews have ended for sure."""
        now = time.monotonic()
        if now - self._quiet_since < CLAIM_AFTER or lease.age < CLAIM_AFTER:
            return False
        if self._claimed_at is None:
            log.warning("owner of the cluster is silent, claiming its work owner=%s", describe_owner(lease))
            self._has_claimed = True
            await self.membership.claim(own.id)
            self._claimed_at = time.monotonic()
        if time.monotonic() - self._claimed_at < TAKE_AFTER_CLAIM:
            return False
        if await self.membership.claimant() == own.id:
            return True
        # Another standby has claimed it since, and takes it. Should it fail, this one claims again, later than that.
        self._say("another service has claimed the work of the cluster")
        self._quiet_since, self._claimed_at = time.monotonic() + TAKE_AFTER_CLAIM, None
        self._has_claimed = False
        return False

    def _refuse_strangers(self, lease: DatabaseLease) -> None:
        if time.monotonic() - self._began > ANNOUNCED_WITHIN and lease.age < ANNOUNCED_WITHIN and not lease.released:
            raise DatabaseOwned(
                f"The database belongs to {describe_owner(lease)}, which is no service of this cluster, or of an "
                "earlier version: stop it, or give this service a database of its own (database_url)."
            )
        self._say(f"{describe_owner(lease)} has not announced itself to the cluster")

    def _say(self, reason: str) -> None:
        """Log what keeps this service from taking over, now and then."""
        said, at = self._said
        # The number of seconds in it changes.
        if reason[:20] != said[:20] or time.monotonic() - at >= LOG_INTERVAL:
            log.warning("cannot take the cluster over now reason=%s", reason)
            self._supervisor.status(f"standing by, cannot take over: {reason}")
            self._said = reason, time.monotonic()


def _announce(uow: UnitOfWork, own: ClusterService) -> View:
    lease = uow.database_lease.get()
    assert lease is not None, "a lease is never removed"
    found = {one.service.id: one for one in uow.services.list()}
    owner = found.get(lease.instance.member)
    if owner is not None and unfit_reason(own, owner.service) is None:
        uow.services.announce(own)
    return View(lease, owner, found.get(own.id))
