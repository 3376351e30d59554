"""A service of a cluster: it stands by for the owner of the database, or is that owner and may be succeeded.

Both write to one database, and the cluster has a claim: the id of the service that works or wants to. A standby claims
the work of an owner that is silent, and takes the lease once the owner's previews have ended by themselves
(``haproxy.process``). The owner notes each standby in the database before it may do that, and from then on moves
the deadline of its previews with each renewal. While the database does not answer, it asks the cluster if somebody has
claimed its work.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from builderd import __version__
from builderd.bootstrap.bundles import is_shared
from builderd.bootstrap.data_directory import proxy_files
from builderd.bootstrap.database import this_instance
from builderd.bootstrap.engines import engine_provider
from builderd.bootstrap.keys import make_keys
from builderd.bootstrap.serving import Supervisor
from builderd.core.errors import BuilderdError, EngineUnavailable, StoreUnavailable
from builderd.core.members import (
    CLAIM_AFTER,
    CLAIM_SECONDS,
    FENCE_AFTER,
    FORGET_AFTER,
    GIVE_UP_AFTER,
    RENEW_INTERVAL,
    RENEWAL_SECONDS,
    TAKE_AFTER_CLAIM,
    ClusterService,
    DatabaseLease,
    DatabaseOwned,
    Instance,
    LeaseLost,
    SeenService,
    describe_owner,
    unfit_reason,
)
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.engine.port import ClusterProvider
from builderd.previews.haproxy import process
from builderd.previews.haproxy.options import ProxyFiles
from builderd.settings import Settings
from builderd.ssh import host_key

log = logging.getLogger(__name__)
T = TypeVar("T")
#: Seconds between two looks of a standby, and between two log lines on what keeps it from taking over.
WATCH_INTERVAL, LOG_INTERVAL = 1.0, 60.0
#: After a longer gap between two renewals the owner claims its work again: a standby may have claimed it.
CLAIM_AGAIN_AFTER = RENEW_INTERVAL + RENEWAL_SECONDS
#: Seconds between two renewals where one took longer than the interval.
LEAST_PAUSE = 0.1


@dataclass(slots=True)
class Membership:
    """One service in its cluster. ``provider`` is asked within ``CLAIM_SECONDS``, or counts as unavailable."""

    settings: Settings
    instance: Instance
    provider: ClusterProvider
    _disks: str = ""

    @property
    def proxy_files(self) -> ProxyFiles:
        return proxy_files(self.settings.data_dir)

    async def describe(self, *, make_keys_first: bool = False) -> ClusterService:
        """Return this service's announcement.

        Raises ``EngineUnavailable`` until the cluster has said what it is, and while a key cannot be read.
        """
        if not self._disks:
            self._disks = await _in_time(self.provider.disks_id())
        vault_key, ssh_key = await asyncio.to_thread(self._fingerprints, make_keys_first=make_keys_first)
        return ClusterService(
            id=self.instance.member,
            host_name=self.instance.host_name,
            data_dir=self.instance.data_dir,
            version=__version__,
            disks=self._disks,
            vault_key=vault_key,
            vault_key_file="" if self.settings.vault.key else str(self.settings.vault_key_file),
            ssh_key=ssh_key,
            ssh_key_file=str(self._ssh_key_file),
        )

    async def claimant(self) -> str:
        """Return the service that claimed the work last, "" before the first. Raises ``EngineUnavailable``."""
        return await _in_time(self.provider.claimant())

    async def claim(self, service: str) -> None:
        """Claim the work for a service. Raises ``EngineUnavailable``."""
        await _in_time(self.provider.claim(service))

    @property
    def _ssh_key_file(self) -> Path:
        return self.settings.data_dir.absolute() / "ssh_host_key"

    def _fingerprints(self, *, make_keys_first: bool) -> tuple[str, str]:
        """Return those of the vault's first key and of the SSH host key, "" for one that does not exist.

        Raises ``EngineUnavailable`` for one that cannot be read: a copy of it may be under way.
        """
        keys, file = make_keys(self.settings), self._ssh_key_file
        try:
            found = keys.load() if make_keys_first else keys.existing()
            has_ssh_key = (make_keys_first and self.settings.ssh.port) or file.exists()
            ssh_key = host_key.load(file).get_fingerprint() if has_ssh_key else ""
        except (BuilderdError, OSError) as error:
            raise EngineUnavailable(f"A key of this service cannot be read: {error}", retry_after=5) from None
        return (found[0].id.hex() if found else ""), ssh_key


async def _in_time(answer: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(CLAIM_SECONDS):
            return await answer
    except TimeoutError:
        raise EngineUnavailable(f"The cluster did not answer within {CLAIM_SECONDS:g} s.", retry_after=5) from None


def make_membership(settings: Settings, instance: Instance) -> Membership | None:
    """Return this service's membership; None where the disks or the database are this machine's alone."""
    provider = engine_provider(settings)
    if not is_shared(settings) or not isinstance(provider, ClusterProvider):
        return None
    return Membership(settings, instance, provider)


async def works_elsewhere(settings: Settings) -> bool:
    """Return True if another service has claimed the work of this service's cluster. Raises ``EngineUnavailable``."""
    instance = this_instance(settings)
    membership = make_membership(settings, instance)
    return membership is not None and await membership.claimant() not in ("", instance.member)


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
        await self.end_previews()
        self._stand_by("")
        self._supervisor.ready()
        log.info("standing by host=%s port=%d", self.membership.settings.host, self.membership.settings.port)
        try:
            while (lease := await self._look()) is None:  # noqa: ASYNC110
                await asyncio.sleep(WATCH_INTERVAL)
        except BaseException:
            # It ends, or is refused.
            with suppress(StoreUnavailable):
                await self._store.write(lambda uow: uow.services.remove(self.membership.instance.member))
            raise
        log.warning("taking the cluster over from=%s", describe_owner(lease))
        self._supervisor.status("")
        self._stand_by(None)
        return lease

    async def end_previews(self) -> None:
        """End previews of an earlier term of this service, and remove their routes. Idempotent.

        While another service works, an address of an app may become another tenant's.
        """
        await process.take_down(self.membership.proxy_files)

    async def _look(self) -> DatabaseLease | None:
        """Return the lease if this service may take it now."""
        try:
            own = await self.membership.describe()
            lease, owner, known_in = await self._store.write(partial(_announce, own=own))
            now = time.monotonic()
            gap, self._looked_at = now - self._looked_at, now
            # While the database was away, the owner could not renew its lease either.
            if self._lease is None or lease.was_renewed(self._lease) or gap > CLAIM_AFTER:
                await self._restart(lease)
            self._stand_by(lease.instance.host_name)
            reason = self._obstacle(lease, owner, own, known_in)
            if not reason and (differences := await self._store.schema_conflict()):
                reason = f"upgrade this service: {differences}"
            if reason:
                self._say(reason)
                return None
            self._supervisor.status(f"standing by for {describe_owner(lease)}")
            return lease if lease.released or await self._may_take(lease) else None
        except (StoreUnavailable, EngineUnavailable) as error:
            self._say(error.message)
            return None

    def _obstacle(
        self, lease: DatabaseLease, owner: ClusterService | None, own: ClusterService, known_in: int | None
    ) -> str | None:
        """Return what keeps this service from taking over from that owner. Raises ``DatabaseOwned``."""
        if owner is None:
            return (
                f"{describe_owner(lease)} has not announced itself: if it is no service of this cluster, stop it, or "
                "give this service a database of its own (database_url)"
            )
        reason = unfit_reason(own, owner)
        if reason is not None and not self._was_fit:
            raise DatabaseOwned(f"This service cannot stand by for {describe_owner(lease)}: {reason}; then start it.")
        self._was_fit = True
        if reason is None and known_in != lease.term:
            return f"{describe_owner(lease)} does not know this service yet"
        return reason

    async def _restart(self, lease: DatabaseLease) -> None:
        """Wait anew for an owner that was alive, or may have been."""
        self._lease, self._quiet_since = lease, time.monotonic()
        self._claimed_at = None
        if self._has_claimed:
            await self.membership.claim(lease.instance.member)
            self._has_claimed = False

    async def _may_take(self, lease: DatabaseLease) -> bool:
        """Claim the work of a silent owner, and return True once its previews have ended for sure."""
        now, own = time.monotonic(), self.membership.instance.member
        if now - self._quiet_since < CLAIM_AFTER or lease.age < CLAIM_AFTER:
            return False
        if self._claimed_at is None:
            log.warning("owner of the cluster is silent, claiming its work owner=%s", describe_owner(lease))
            self._has_claimed = True
            await self.membership.claim(own)
            self._claimed_at = time.monotonic()
        if time.monotonic() - self._claimed_at < TAKE_AFTER_CLAIM:
            return False
        if await self.membership.claimant() == own:
            return True
        # Another standby has claimed it since, and takes it. Should it fail, this one claims again, later than that.
        self._say("another service has claimed the work of the cluster")
        self._quiet_since, self._claimed_at = time.monotonic() + TAKE_AFTER_CLAIM, None
        self._has_claimed = False
        return False

    def _say(self, reason: str) -> None:
        """Log what keeps this service from taking over, now and then."""
        said, at = self._said
        # The number of seconds in it changes.
        if reason[:20] != said[:20] or time.monotonic() - at >= LOG_INTERVAL:
            log.warning("cannot take the cluster over now reason=%s", reason)
            self._supervisor.status(f"standing by, cannot take over: {reason}")
            self._said = reason, time.monotonic()


def _announce(uow: UnitOfWork, own: ClusterService) -> tuple[DatabaseLease, ClusterService | None, int | None]:
    """Announce a standby that fits. Return the lease, its owner's announcement, and the term in which it knows ours."""
    lease = uow.database_lease.get()
    assert lease is not None, "a lease is never removed"
    found = {one.service.id: one for one in uow.services.list()}
    owner = found[lease.instance.member].service if lease.instance.member in found else None
    if owner is not None and unfit_reason(own, owner) is None:
        uow.services.announce(own)
    return lease, owner, found[own.id].known_in if own.id in found else None


class GuardedLease:
    """The lease of a cluster's owner. ``keep`` runs for as long as it owns the database, ``end`` once it ends."""

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
        #: A renewal in progress: a write that has begun cannot be cancelled.
        self._renewal: asyncio.Task[float] | None = None

    async def keep(self) -> None:
        """Renew the lease every ``RENEW_INTERVAL`` seconds. Raises ``LeaseLost`` without it.

        The deadline has passed then, so that nothing of this service starts the previews again before ``end``.
        """
        try:
            while True:
                confirmed = await self._confirm(_since_boot())
                await asyncio.sleep(max(confirmed + RENEW_INTERVAL - _since_boot(), LEAST_PAUSE))
        except LeaseLost:
            await self._stop_renewing()
            if self._guarded:
                # The fence rounds up.
                await process.set_deadline(self._files, _since_boot() - 1)
            raise
        finally:
            await self._stop_renewing()

    async def end(self) -> None:
        """End the previews if a standby may take over: their routes are wrong from then on.

        Nothing of this service may start them any more.
        """
        if self._guarded:
            await process.end(self._files)
            await process.lift(self._files)

    async def _stop_renewing(self) -> None:
        """Cancel a renewal under way: it would move the deadline."""
        renewal, self._renewal = self._renewal, None
        if renewal is not None:
            renewal.cancel()
            await asyncio.wait({renewal})

    async def _confirm(self, began: float) -> float:
        """Renew the lease, or else ask the cluster. Raises ``LeaseLost``.

        Return when what confirms it began: a renewal that was late counts from its own begin.
        """
        renewal = self._renewal = self._renewal or asyncio.create_task(self._renew(began))
        await asyncio.wait({renewal}, timeout=RENEWAL_SECONDS)
        if renewal.done():
            self._renewal = None
            error = renewal.exception()
            if error is None:
                return renewal.result()
            if isinstance(error, LeaseLost):
                raise error
            log.warning("database lease not renewed, retrying delay=%g error=%s", RENEW_INTERVAL, error)
        if self._guarded:
            await self._ask_cluster(began)
        return began

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
        await self._extend(began)
        self._confirmed = max(self._confirmed, began)

    async def _extend(self, began: float) -> None:
        """Let the previews run until ``FENCE_AFTER`` seconds after ``began``, or as long as they may already."""
        self._deadline = max(self._deadline, began + FENCE_AFTER)
        await process.set_deadline(self._files, self._deadline)

    async def _renew(self, began: float) -> float:
        own = await self._describe()
        found = await self._store.write(lambda uow: _renew(uow, self._term, own))
        self._claimed = self._claimed and began - self._confirmed <= CLAIM_AGAIN_AFTER
        if self._guarded:
            await self._extend(began)
        known = [one.service.id for one in found if one.known_in == self._term]
        standbys = _fit(found, own) if own is not None else known
        if not self._claimed and not await self._claim():
            standbys = [one for one in standbys if one in known]
        if standbys and not self._guarded:
            self._guarded = True
            await self._extend(began)
        self._confirmed = max(self._confirmed, began)
        if standbys != known:
            await self._store.write(lambda uow: uow.services.set_known(standbys, self._term))
            log.info("standbys of the cluster services=%s", ",".join(standbys) or "none")
        if self._guarded and not standbys:
            await process.lift(self._files)
            self._guarded = False
        return began

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
