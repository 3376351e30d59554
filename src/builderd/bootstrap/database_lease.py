"""Acquire the database lease: wait for the database, own it as this instance alone, migrate it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from builderd.bootstrap.data_directory import DATABASE_NOTE, RESTORED, proxy_files, refuse_half_restored
from builderd.bootstrap.database import database_location, is_copy, this_instance
from builderd.bootstrap.engines import engine_provider
from builderd.bootstrap.serving import Supervisor
from builderd.bootstrap.standby import WATCH_INTERVAL, GuardedLease, Standby, make_membership
from builderd.core.errors import StoreUnavailable
from builderd.core.members import (
    RENEW_INTERVAL,
    DatabaseLease,
    DatabaseLost,
    DatabaseOwned,
    Instance,
    LeaseLost,
    describe_owner,
    needed_silence,
)
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.previews.haproxy import process
from builderd.settings import Settings

log = logging.getLogger(__name__)
#: Seconds between tries, and between log lines, while the database is unavailable at the start.
START_RETRY, START_LOG_INTERVAL = 2.0, 30.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OwnedStore:
    """The store, fenced by the lease's term; ``keep`` must run for as long as it is used."""

    store: Store
    instance: Instance
    term: int
    #: Of a service that others may continue; None where the lease passes to nobody by itself.
    guarded: GuardedLease | None = None

    async def keep(self) -> None:
        """Renew the lease every ``RENEW_INTERVAL`` seconds. Raises ``LeaseLost`` once another service has it.

        While the database is unavailable no other service can take the lease either: this one stays the owner.
        """
        if self.guarded is not None:
            await self.guarded.keep()
        while True:
            await asyncio.sleep(RENEW_INTERVAL)
            try:
                await self.store.write(lambda uow: uow.database_lease.renew(self.term))
            except LeaseLost:
                raise
            except Exception as error:
                log.warning("database lease not renewed, retrying delay=%g error=%s", RENEW_INTERVAL, error)

    async def release(self) -> None:
        """Record that this service ended in order: another may take over at once."""
        try:
            if self.guarded is not None:
                await self.guarded.end()
            await self.store.write(lambda uow: uow.database_lease.release(self.term))
        except LeaseLost:
            return  # there is nothing to release
        except Exception as error:
            log.warning("database lease not released error=%s", error)

    async def loss(self) -> StoreUnavailable:
        """Return the error that ends this service; it names the instance that took the database over.

        It is no ``LeaseLost`` where the service, started again, stands by.
        """
        try:
            lease = await self.store.read(lambda uow: uow.database_lease.get())
        except Exception:
            lease = None
        owner = describe_owner(lease) if lease else "another service"
        if self.guarded is not None:
            return StoreUnavailable(
                f"This service does not work on its cluster any more: {owner} has the work. Start it again, and it "
                "stands by; systemd does so itself."
            )
        return LeaseLost(
            f"This service has lost its database to {owner}, and wrote nothing since. Its apps still run here: "
            f"stop them with 'builderd down --data-dir {self.instance.data_dir}'. To move back, stop the other service "
            "and run 'builderd serve --take-over' here."
        )


def is_loss(error: BaseException) -> bool:
    """Return True for a ``LeaseLost``, also inside an exception group."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(LeaseLost) is not None
    return isinstance(error, LeaseLost)


@asynccontextmanager
async def owned_store(
    settings: Settings,
    supervisor: Supervisor,
    *,
    take_over: bool,
    new_database: bool = False,
    stand_by: Callable[[str | None], None] = lambda _: None,
) -> AsyncIterator[OwnedStore]:
    """Yield the database, owned by this instance and migrated; wait while it is unavailable.

    ``stand_by`` is called as ``ApiPort.stand_by``. The data directory must be locked. Raises ``DatabaseOwned`` while
    another service owns the database, and unless with ``new_database``, ``DatabaseLost`` for an empty one where the
    service has worked before.
    """
    refuse_half_restored(settings.data_dir)
    opened, instance = Store(settings.database), this_instance(settings)
    membership = make_membership(settings, instance)
    standby = Standby(opened, membership, supervisor, stand_by) if membership is not None else None
    try:
        acquisition = Acquisition(opened, instance, database_location(settings), take_over, standby)
        first_read = partial(_refuse_empty, opened, settings, new_database=new_database)
        await _retry_until_available(first_read, acquisition.database, supervisor)
        lease = await _retry_until_available(acquisition.run, acquisition.database, supervisor)
        guarded = GuardedLease(opened, lease.term, membership) if membership is not None else None
        owned = OwnedStore(opened, instance, lease.term, guarded)
        # No standby is known in this term.
        await process.lift(proxy_files(settings.data_dir))
        try:
            yield owned
        finally:
            await owned.release()
    finally:
        await opened.close()


async def _refuse_empty(opened: Store, settings: Settings, *, new_database: bool) -> None:
    """Raise ``DatabaseLost`` when the database is empty and the service of this data directory has worked before.

    A database whose builders were all deleted has its owner's lease still; a restored one is marked.
    """
    is_new = await opened.read(lambda uow: uow.database_lease.is_new())
    if not is_new or new_database or (settings.data_dir / RESTORED).exists():
        return
    if (settings.data_dir / DATABASE_NOTE).exists() or await asyncio.to_thread(_has_disks, settings):
        raise DatabaseLost(
            f"The database {database_location(settings)} is empty, but the service of {settings.data_dir} has worked "
            "before: without its records, every app that runs here would be removed. Bring the records back with "
            "'builderd restore FOLDER' (a backup of the service's state), or correct database_url. To give the apps up "
            "and begin with an empty database, run 'builderd serve --new-database' once."
        )


def _has_disks(settings: Settings) -> bool:
    found = engine_provider(settings).read_inventory(settings.data_dir.absolute())
    return found is not None and bool(found.disks or found.scratch)


@dataclass(slots=True)
class Acquisition:
    """The steps by which an instance comes to own the database. ``database`` is its location for messages."""

    store: Store
    instance: Instance
    database: str
    take_over: bool
    #: Of a cluster's service: waits for another owner, instead of being refused.
    standby: Standby | None = None

    async def run(self) -> DatabaseLease:
        """Take the lease, and return it. May be run again after ``StoreUnavailable``."""
        seen = await self.store.read(lambda uow: uow.database_lease.get())
        if seen is None:
            await self.store.migrate()
        else:
            seen = await self._watch(seen)
        lease = await self._take(seen)
        self.store.fence(lease.term)
        # Only the owner of the lease may migrate.
        await self.store.migrate()
        previous = seen.instance if seen else None
        await self.store.write(partial(_adopt, instance=self.instance, previous=previous))
        if seen is not None and seen.instance.member != self.instance.member:
            log.warning("database lease taken over from=%s term=%d", describe_owner(seen), lease.term)
        return lease

    async def _take(self, seen: DatabaseLease | None) -> DatabaseLease:
        if self.standby is not None and seen is not None and seen.instance.member != self.instance.member:
            # Before the lease is this service's: its next start takes routes that it finds for its own.
            await self.standby.end_previews()
        try:
            lease = await self.store.write(lambda uow: uow.database_lease.take(self.instance, seen))
        except StoreUnavailable as error:
            if seen is None or seen.instance.member != self.instance.member:
                raise
            # On a full disk, for one, the service must start to free space. No other service has taken the lease.
            log.warning("database lease not written, starting with the old term error=%s", _reason(error))
            return seen
        if lease is not None:
            return lease
        now = await self._now()
        if self.standby is None or self.take_over:
            raise self._refusal(now)
        # Another standby was faster.
        return await self._take(await self._watch(now))

    async def _watch(self, seen: DatabaseLease) -> DatabaseLease:
        """Wait until the lease may be taken. Raises ``DatabaseOwned`` when it may not be, or its owner is alive."""
        copied = is_copy(self.instance, seen.instance)
        silence = None if copied else needed_silence(seen, self.instance, take_over=self.take_over)
        if silence is None:
            if self.standby is None or copied:
                raise self._refusal(seen)
            return await self.standby.wait()
        began = time.monotonic()
        lease = seen
        # Its age and our own clock both count: the database's clock may have been set.
        while not lease.released and lease.age < silence and time.monotonic() - began < silence:
            if lease is seen:
                log.warning("waiting for the owner of the database seconds=%g owner=%s", silence, describe_owner(seen))
            await asyncio.sleep(WATCH_INTERVAL)
            lease = await self._now()
            if lease.was_renewed(seen) and not lease.released:
                if self.standby is None or lease.instance.member == self.instance.member:
                    raise self._refusal(lease)
                return await self.standby.wait()
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


def _adopt(uow: UnitOfWork, instance: Instance, previous: Instance | None) -> None:
    """Adopt the work of the previous owner, which counts as a standby once it announces itself again."""
    uow.database_lease.adopt(instance)
    if previous is not None:
        uow.services.remove(previous.member)


async def _retry_until_available(run: Callable[[], Awaitable[T]], database: str, supervisor: Supervisor) -> T:
    """Retry ``run`` while the database is unavailable; show that in log, ``systemctl status`` and ``/readyz``."""
    began, logged = time.monotonic(), 0.0
    while True:
        try:
            result = await run()
        except LeaseLost:
            raise
        except StoreUnavailable as error:
            now = time.monotonic()
            if not logged or now - logged >= START_LOG_INTERVAL:
                logged = now
                log.warning(
                    "database unavailable, waiting for it to start database=%s waited=%.0f error=%s remedy=%s",
                    *(database, now - began, _reason(error), error.message),
                )
                supervisor.status(f"waiting for the database {database}: {error.message}")
            await asyncio.sleep(START_RETRY)
        else:
            if logged:
                log.info("database available database=%s waited=%.0f", database, time.monotonic() - began)
                supervisor.status("")
            return result


def _reason(error: StoreUnavailable) -> str:
    """Return the first line of the driver's message, which never has the password."""
    original = getattr(error.__cause__, "orig", None) or error
    return str(original).strip().partition("\n")[0]
