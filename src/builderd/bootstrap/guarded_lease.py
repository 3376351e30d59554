"""The lease of a cluster's owner, and the deadline of its previews while another service may take over.

The owner knows a standby only once its own previews end by themselves (``previews.haproxy.fence``), and the standby
takes over only if the owner knows it. While the database is away, the cluster tells whether somebody claims the work.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from builderd.adapters.previews.haproxy import fence, process
from builderd.bootstrap.membership import Membership
from builderd.domain.database_lease import (
    FENCE_AFTER,
    FORGET_AFTER,
    GIVE_UP_AFTER,
    RENEW_INTERVAL,
    RENEWAL_SECONDS,
    ClusterService,
    LeaseLost,
    SeenService,
    unfit_reason,
)
from builderd.domain.errors import EngineUnavailable
from builderd.store import Store, UnitOfWork

log = logging.getLogger(__name__)
#: After a longer gap between two renewals the owner claims its work again: a standby may have claimed it.
CLAIM_AGAIN_AFTER = RENEW_INTERVAL + RENEWAL_SECONDS
#: Seconds between two renewals where one took longer than the interval.
LEAST_PAUSE = 0.1


class GuardedLease:
    """``keep`` runs for as long as this service owns the database, ``end`` once it ends in order."""

    def __init__(self, store: Store, term: int, membership: Membership) -> None:
        self._store = store
        self._term = term
        self._membership = membership
        self._files = membership.proxy_files
        self._own = membership.instance.member
        #: A standby may take over: the previews have a deadline.
        self._guarded = False
        #: The cluster has this service's claim.
        self._claimed = False
        #: Start of the last renewal, or of the last answer of the cluster, by the time since the boot.
        self._confirmed = _since_boot()
        #: Deadline of the previews, by the time since the boot: a renewal that was late never sets it back.
        self._deadline = 0.0
        self._renewal: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Let the previews run without a deadline: no standby is known in this term."""
        await fence.lift(self._files)

    async def keep(self) -> None:
        """Renew the lease every ``RENEW_INTERVAL`` seconds. Raises ``LeaseLost`` without it.

        The deadline has passed then, so that nothing of this service starts the previews again before ``end``.
        """
        try:
            while True:
                began = _since_boot()
                await self._confirm(began)
                await asyncio.sleep(max(began + RENEW_INTERVAL - _since_boot(), LEAST_PAUSE))
        except LeaseLost:
            await self._stop_renewing()
            if self._guarded:
                # The fence rounds up.
                await fence.set_deadline(self._files, _since_boot() - 1)
            raise
        finally:
            await self._stop_renewing()

    async def end(self) -> None:
        """End the previews if a standby may take over: their routes are wrong from then on.

        Nothing of this service may start them any more.
        """
        if self._guarded:
            await process.end(self._files)
            await fence.lift(self._files)

    async def _stop_renewing(self) -> None:
        """Cancel a renewal under way: it would move the deadline."""
        renewal, self._renewal = self._renewal, None
        if renewal is not None:
            renewal.cancel()
            await asyncio.wait({renewal})

    async def _confirm(self, began: float) -> None:
        is_late = self._renewal is not None
        if self._renewal is None:
            self._renewal = asyncio.create_task(self._renew(began))
        await asyncio.wait({self._renewal}, timeout=RENEWAL_SECONDS)
        if self._renewal.done():
            renewal, self._renewal = self._renewal, None
            if (error := renewal.exception()) is None:
                if is_late:
                    # It counts from its begin, several seconds ago.
                    await self._confirm(_since_boot())
                return
            if isinstance(error, LeaseLost):
                raise error
            log.warning("database lease not renewed, retrying delay=%g error=%s", RENEW_INTERVAL, error)
        if self._guarded:
            await self._ask_cluster(began)

    async def _ask_cluster(self, began: float) -> None:
        """Ask whether another service claims the work, while the database does not answer. Raises ``LeaseLost``."""
        try:
            claimant = await self._membership.claimant()
        except EngineUnavailable as error:
            log.warning("claim on the cluster not read error=%s", error.message)
            if _since_boot() - self._confirmed >= GIVE_UP_AFTER:
                raise LeaseLost("Neither the database nor the cluster answers: another service may work now.") from None
            return
        if claimant != self._own:
            raise LeaseLost("Another service takes the cluster over, since this one does not reach the database.")
        await self._hold(began)
        self._confirmed = max(self._confirmed, began)

    async def _hold(self, began: float) -> None:
        """Let the previews run until ``FENCE_AFTER`` seconds after ``began``, or as long as they may already."""
        self._deadline = max(self._deadline, began + FENCE_AFTER)
        await fence.set_deadline(self._files, self._deadline)

    async def _renew(self, began: float) -> None:
        own = await self._describe()
        found = await self._store.write(lambda uow: _renew(uow, self._term, own))
        if began - self._confirmed > CLAIM_AGAIN_AFTER:
            self._claimed = False
        if self._guarded:
            await self._hold(began)
        known = [one.service.id for one in found if one.known_in == self._term]
        standbys = _fit(found, own) if own is not None else known
        if standbys and not self._claimed and not await self._claim():
            standbys = [one for one in standbys if one in known]
        if standbys and not self._guarded:
            self._guarded = True
            await self._hold(began)
        self._confirmed = max(self._confirmed, began)
        if standbys != known:
            await self._store.write(lambda uow: uow.services.set_known(standbys, self._term))
            log.info("standbys of the cluster services=%s", ",".join(standbys) or "none")
        if self._guarded and not standbys:
            await fence.lift(self._files)
            self._guarded = False

    async def _claim(self) -> bool:
        """Claim the work for this service; return False while the cluster does not answer."""
        try:
            await self._membership.claim(self._own)
        except EngineUnavailable as error:
            log.warning("work on the cluster not claimed error=%s", error.message)
        else:
            self._claimed = True
        return self._claimed

    async def _describe(self) -> ClusterService | None:
        """Return this service's announcement; None while the cluster does not answer, or a key cannot be read."""
        try:
            return await self._membership.describe(make_keys_first=True)
        except EngineUnavailable as error:
            log.warning("service not announced to the cluster error=%s", error.message)
            return None


def _renew(uow: UnitOfWork, term: int, own: ClusterService | None) -> Sequence[SeenService]:
    """Renew the lease and announce the service. Return all announcements, without forgotten ones."""
    uow.database_lease.renew(term)
    if own is not None:
        uow.services.announce(own)
    found = uow.services.list()
    for one in found:
        if one.age > FORGET_AFTER:
            uow.services.remove(one.service.id)
    return [one for one in found if one.age <= FORGET_AFTER]


def _fit(found: Sequence[SeenService], own: ClusterService) -> list[str]:
    """Return the ids of the services that stand by for this one, sorted."""
    others = (one for one in found if one.is_alive and one.service.id != own.id)
    return sorted(one.service.id for one in others if unfit_reason(one.service, own) is None)


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
