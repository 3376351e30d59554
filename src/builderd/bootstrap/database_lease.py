"""The service's store: waited for, owned by this instance alone, and brought up to date."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from builderd.adapters.stores.sql.store import SqlStore
from builderd.bootstrap.data_directory import refuse_half_restored
from builderd.bootstrap.database import whereabouts
from builderd.bootstrap.instance import is_copy, this_instance
from builderd.bootstrap.supervisor import Supervisor
from builderd.domain.database_lease import (
    RENEW_INTERVAL,
    DatabaseLease,
    DatabaseOwned,
    Instance,
    LeaseLost,
    describe_owner,
    needed_silence,
)
from builderd.domain.errors import StoreUnavailable
from builderd.settings import Settings

log = logging.getLogger(__name__)
#: While the database does not answer at the start: how often it is tried, and how often the log says so, in seconds.
START_RETRY, START_LOG_INTERVAL = 2.0, 30.0
#: How often a lease is looked at that another may be about to renew, in seconds.
WATCH_INTERVAL = 1.0


@dataclass(frozen=True, slots=True)
class OwnedStore:
    """The store, fenced by the lease's term; ``keep`` must run for as long as it is used."""

    store: SqlStore
    instance: Instance
    term: int

    async def keep(self) -> None:
        """Renew the lease every ``RENEW_INTERVAL`` seconds. Raises ``LeaseLost`` once another service has it.

        While the database does not answer nobody else can take the lease either: this service stays the owner.
        """
        while True:
            await asyncio.sleep(RENEW_INTERVAL)
            try:
                await self.store.write(lambda uow: uow.database_lease.renew(self.term))
            except LeaseLost:
                raise
            except Exception as error:
                log.warning("database lease not renewed, retrying in %g s: error=%s", RENEW_INTERVAL, error)

    async def release(self) -> None:
        """Record that this service ended in order: another may take over at once, with ``--take-over``."""
        try:
            await self.store.write(lambda uow: uow.database_lease.release(self.term))
        except LeaseLost:
            return  # there is nothing to release
        except Exception as error:
            log.warning("database lease not released: error=%s", error)

    async def loss(self) -> LeaseLost:
        """The error that ends this service, with the name of the one that took the database over."""
        try:
            lease = await self.store.read(lambda uow: uow.database_lease.get())
        except Exception:
            lease = None
        owner = describe_owner(lease) if lease else "another service"
        return LeaseLost(
            f"This service has lost its database to {owner}, and wrote nothing since. Its apps go on here without it: "
            f"stop them with 'builderd down --data-dir {self.instance.data_dir}'. To move back, stop the other service "
            "and run 'builderd serve --take-over' here."
        )


def is_loss(error: BaseException) -> bool:
    """Whether a ``LeaseLost`` is what ended the work, be it among others."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(LeaseLost) is not None
    return isinstance(error, LeaseLost)


@asynccontextmanager
async def owned_store(settings: Settings, supervisor: Supervisor, *, take_over: bool) -> AsyncIterator[OwnedStore]:
    """The database as this instance's own, at the present schema; waits for one that does not answer.

    The data directory must be held. Raises ``DatabaseOwned`` while it is another's.
    """
    refuse_half_restored(settings.data_dir)
    opened, instance = SqlStore(settings.database), this_instance(settings)
    try:
        acquisition = Acquisition(opened, instance, whereabouts(settings), take_over=take_over)
        term = await _once_it_answers(acquisition.run, acquisition.database, supervisor)
        owned = OwnedStore(opened, instance, term)
        try:
            yield owned
        finally:
            await owned.release()
    finally:
        await opened.close()


@dataclass(frozen=True, slots=True)
class Acquisition:
    """How an instance comes to own the database. ``database`` names it for messages."""

    store: SqlStore
    instance: Instance
    database: str
    take_over: bool

    async def run(self) -> int:
        """The term. May be run again after ``StoreUnavailable``."""
        if not await self.store.read(lambda uow: uow.database_lease.has_table()):
            await self.store.migrate()
        seen = await self.store.read(lambda uow: uow.database_lease.get())
        if seen is not None:
            seen = await self._watch(seen)
        lease = await self._take(seen)
        self.store.fence(lease.term)
        # Only its owner changes the schema of a database.
        await self.store.migrate()
        await self.store.write(lambda uow: uow.database_lease.adopt(self.instance))
        if seen is not None and seen.instance.member != self.instance.member:
            log.warning("database lease taken over: from=%s term=%d", describe_owner(seen), lease.term)
        return lease.term

    async def _take(self, seen: DatabaseLease | None) -> DatabaseLease:
        try:
            lease = await self.store.write(lambda uow: uow.database_lease.take(self.instance, seen))
        except StoreUnavailable as error:
            if seen is None or seen.instance.member != self.instance.member:
                raise
            # Such as on a full disk, from which the service can delete things. Nobody has taken the lease since.
            log.warning("database lease not written, starting with the old term: error=%s", _reason(error))
            return seen
        if lease is None:
            raise self._refusal(await self._now())
        return lease

    async def _watch(self, seen: DatabaseLease) -> DatabaseLease:
        """Wait until the lease may be taken; raises ``DatabaseOwned`` when it may not, or its owner lives."""
        copied = is_copy(self.instance, seen.instance)
        silence = None if copied else needed_silence(seen, self.instance, take_over=self.take_over)
        if silence is None:
            raise self._refusal(seen)
        began = time.monotonic()
        lease = seen
        # Watched as well as asked for: the database's clock may have been set.
        while not lease.released and lease.age < silence and time.monotonic() - began < silence:
            if lease is seen:
                log.warning("waiting up to %g s for %s to be silent", silence, describe_owner(seen))
            await asyncio.sleep(WATCH_INTERVAL)
            lease = await self._now()
            if lease.was_renewed(seen) and not lease.released:
                raise self._refusal(lease)
        return lease

    async def _now(self) -> DatabaseLease:
        lease = await self.store.read(lambda uow: uow.database_lease.get())
        assert lease is not None, "a lease is never removed"
        return lease

    def _refusal(self, lease: DatabaseLease) -> DatabaseOwned:
        next_step = (
            "It is still running: stop it first, then run 'builderd serve --take-over' again."
            if self.take_over
            else "Give this service a database of its own (database_url). To move to this data directory, stop the "
            "other service for good and run 'builderd serve --take-over' here once: apps come back from their backups."
        )
        return DatabaseOwned(
            f"The database {self.database} belongs to {describe_owner(lease)}: two services on one database would "
            f"both run its apps. {next_step}"
        )


async def _once_it_answers(run: Callable[[], Awaitable[int]], database: str, supervisor: Supervisor) -> int:
    """Run it until the database answers, and say so while it does not."""
    began, said = time.monotonic(), 0.0
    while True:
        try:
            term = await run()
        except LeaseLost:
            raise
        except StoreUnavailable as error:
            now = time.monotonic()
            if not said or now - said >= START_LOG_INTERVAL:
                said = now
                reason = _reason(error)
                log.warning(
                    "database unavailable, waiting for it to start: database=%s waited=%.0f s error=%s",
                    *(database, now - began, reason),
                )
                supervisor.status(f"waiting for the database {database}: {reason}")
            await asyncio.sleep(START_RETRY)
        else:
            if said:
                log.info("database available: database=%s waited=%.0f s", database, time.monotonic() - began)
                supervisor.status("")
            return term


def _reason(error: StoreUnavailable) -> str:
    """The first line of the driver's words, which hold no password."""
    original = getattr(error.__cause__, "orig", None) or error
    return str(original).strip().partition("\n")[0]
