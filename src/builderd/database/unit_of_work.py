"""The store: units of work on a database, run in the store's own threads."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Connection, Engine, literal, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError

from builderd.backups.store import BackupChecks, BackupKeys, Backups, Restores
from builderd.builders.lists import BuilderLists
from builderd.builders.store import Builders
from builderd.code.store import StoredBundles, StoredUploads, Uploads
from builderd.core.errors import StoreUnavailable
from builderd.core.members import LeaseLost
from builderd.credentials.store import Credentials, PreviewLinks, SshGrants
from builderd.database import migrations
from builderd.database.connection import Database, Kind, Writes
from builderd.database.lease import DatabaseLeases, Leases, Services
from builderd.database.postgresql import open_postgresql
from builderd.database.repository import Transaction
from builderd.database.sqlite import open_sqlite
from builderd.database.stored_times import StoredTimes
from builderd.domains.store import AcmeAccounts, Domains, WildcardCertificates
from builderd.events.store import Deliveries, Events, Webhooks
from builderd.metrics.store import Metrics
from builderd.money.store import Ledger
from builderd.review.store import Acceptances, QaReports, Reviews
from builderd.sandboxes.store import BuildLogs, OpenBuilds, Sandboxes
from builderd.tokens.store import Sessions, SignInLinks, Tokens
from builderd.tokens.tenants import Idempotency, Tenants
from builderd.versions.store import Versions

T = TypeVar("T")

log = logging.getLogger(__name__)

#: A database that does not answer within so many seconds is not ready.
READY_TIMEOUT = 3.0
#: ``retry_after`` of ``StoreUnavailable``, in seconds.
RETRY_AFTER = 5
#: Seconds for which a schema without differences is not compared again: ``/readyz`` needs no token.
SCHEMA_CHECK_INTERVAL = 5.0
#: Seconds between two warnings that the database is unavailable.
FAULT_LOG_INTERVAL = 30.0
#: Runs in all of a transaction that conflicts with another one; the random pause grows up to ``LAST_PAUSE`` seconds.
MAX_RUNS = 6
FIRST_PAUSE, LAST_PAUSE = 0.002, 0.25
#: A queued write that has not started after so many seconds is cancelled; a read without a result fails then, too.
DEADLINE = 30.0


class UnitOfWork:
    """One transaction. With ``writes`` it may write, and so lock rows."""

    def __init__(self, connection: Connection, *, writes: bool) -> None:
        #: Kinds of the records that it has written so far.
        self.written = set[Kind | None]()
        transaction = Transaction(connection, writes, self.written)
        self.versions = Versions(transaction)
        self.database_lease = DatabaseLeases(transaction)
        self.services = Services(transaction)
        self.tenants = Tenants(transaction)
        self.tokens = Tokens(transaction)
        self.builder_lists = BuilderLists(transaction)
        self.builders = Builders(transaction)
        self.sandboxes = Sandboxes(transaction)
        self.ledger = Ledger(transaction)
        self.open_builds = OpenBuilds(transaction)
        self.events = Events(transaction)
        self.metrics = Metrics(transaction)
        self.webhooks = Webhooks(transaction)
        self.deliveries = Deliveries(transaction)
        self.build_logs = BuildLogs(transaction)
        self.credentials = Credentials(transaction)
        self.domains = Domains(transaction)
        self.acme_accounts = AcmeAccounts(transaction)
        self.wildcard_certificates = WildcardCertificates(transaction)
        self.backups = Backups(transaction)
        self.restores = Restores(transaction)
        self.backup_checks = BackupChecks(transaction)
        self.backup_keys = BackupKeys(transaction)
        self.leases = Leases(transaction)
        self.stored_bundles = StoredBundles(transaction)
        self.stored_uploads = StoredUploads(transaction)
        self.stored_times = StoredTimes(transaction)
        self.uploads = Uploads(transaction)
        self.sessions = Sessions(transaction)
        self.sign_in_links = SignInLinks(transaction)
        self.preview_links = PreviewLinks(transaction)
        self.ssh_grants = SshGrants(transaction)
        self.idempotency = Idempotency(transaction)
        self.qa_reports = QaReports(transaction)
        self.reviews = Reviews(transaction)
        self.acceptances = Acceptances(transaction)


class Store:
    """Store on ``sqlite:////path/to/file``, ``sqlite://`` (in memory) or ``postgresql://user@host/name``.

    Connects at its first use. Raises ``ValueError`` for any other URL. A write whose caller is cancelled still runs to
    its end. Every call ends within a bounded time, with ``StoreUnavailable`` if need be.
    """

    def __init__(self, url: str) -> None:
        database = _open(url)
        self._database = database
        #: Term of the database lease that every write checks; None: no check.
        self._term: int | None = None
        self._writes = Writes()
        self._schema_checked_until = 0.0
        #: What the last ``find_damage`` has found.
        self._damage: Sequence[str] = []
        self._said_until = 0.0
        self._writers = ThreadPoolExecutor(database.writers, "store-write")
        self._readers = ThreadPoolExecutor(database.readers, "store-read") if database.readers else self._writers

    async def write(self, work: Callable[[UnitOfWork], T], *, durable: bool = True) -> T:
        """Run the work in a write transaction; roll it back and run it again on a conflict with another transaction.

        The work must have no effect outside the store. A cancelled caller waits until the work has ended, so that
        its next step comes after it. What is not ``durable`` survives the process, and a power cut once a later
        transaction is durable: for what is done again where it is lost. SQLite then waits for no disk.
        """
        queued = self._writers.submit(self._write, work, self._database.writing.execution_options(durable=durable))
        written = asyncio.wrap_future(queued)
        # A write whose caller is cancelled counts as well.
        written.add_done_callback(self._writes.add)
        try:
            await asyncio.wait({written}, timeout=DEADLINE)
            if not written.done() and queued.cancel():
                raise _unavailable(f"calls before this one have kept it busy for {DEADLINE:g} s")
            # A write that has started may be committing: only its end tells if it was done.
            return (await asyncio.shield(written))[0]
        except asyncio.CancelledError:
            await asyncio.wait({written})
            raise

    async def read(self, work: Callable[[UnitOfWork], T]) -> T:
        """Run ``work``, which only reads, on one consistent state of the database."""
        try:
            async with asyncio.timeout(DEADLINE):
                return await asyncio.get_running_loop().run_in_executor(
                    self._readers, self._look, lambda connection: work(UnitOfWork(connection, writes=False))
                )
        except TimeoutError:
            raise _unavailable(f"a read had no answer within {DEADLINE:g} s") from None

    def writes(self, *kinds: Kind) -> int:
        """Return how many transactions of this process wrote records of these kinds."""
        return self._writes.count(frozenset(kinds))

    async def call_after_writes(
        self, job: Callable[[], Awaitable[None]], *kinds: Kind, interval: float, pause: float, event: str
    ) -> None:
        """Call ``job`` at once and after each write of these kinds, until cancelled. A failure is logged.

        Writes of other processes do not count: it is called after ``interval`` seconds in any case. Those who were
        woken by a write go first, since a caller waits for most changes: the next call comes after a ``pause``.
        """
        while True:
            seen = self.writes(*kinds)
            try:
                await job()
            except Exception:
                # ``event`` is a literal at the call, so that a search for the log line finds its job.
                log.log(logging.WARNING, "%s failed, retrying in %g s", event, interval, exc_info=True)
            await self._writes.wait(frozenset(kinds), seen, interval)
            await asyncio.sleep(pause)

    def fence(self, term: int) -> None:
        """Let every later write raise ``LeaseLost`` unless the database lease has this term."""
        self._term = term

    async def ready(self) -> bool:
        """Return True when the database answers a query within ``READY_TIMEOUT`` seconds."""
        try:
            async with asyncio.timeout(READY_TIMEOUT):
                return await asyncio.get_running_loop().run_in_executor(self._readers, self._answers)
        except TimeoutError:
            return False

    async def schema_differences(self) -> Sequence[str]:
        """Return how the database differs from what this program needs: revision, missing tables and columns, damage.

        Returns within seconds, even if the database hangs.
        """
        try:
            async with asyncio.timeout(READY_TIMEOUT):
                found = await asyncio.get_running_loop().run_in_executor(self._readers, self._schema_differences)
        except TimeoutError:
            found = ["it did not answer in time"]
        return [*self._damage, *found]

    async def find_damage(self) -> Sequence[str]:
        """Look for damage in the files, for a bounded time; ``schema_differences`` has it from then on.

        A check that did not finish leaves what the one before has found.
        """
        found = await asyncio.to_thread(self._database.find_damage)
        self._damage = self._damage if found is None else found
        for one in self._damage:
            log.error("database check failed error=%s", one)
        return self._damage

    async def schema_conflict(self) -> str:
        """Return why this program cannot use the schema, which a newer one made; "" for one that it knows."""
        return await self._read_schema(migrations.conflict_with)

    async def is_migrated(self) -> bool:
        """Return True if ``migrate`` would change nothing."""
        return await self._read_schema(migrations.is_newest)

    async def _read_schema(self, look: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._look, look)

    async def migrate(self) -> None:
        """Migrate the schema to the newest revision."""
        await asyncio.get_running_loop().run_in_executor(self._writers, self._migrate)

    async def close(self) -> None:
        """Wait for running and queued calls, then close all connections."""
        await asyncio.to_thread(self._close)

    def _write(self, work: Callable[[UnitOfWork], T], engine: Engine) -> tuple[T, set[Kind | None]]:
        """Return the work's result, and the kinds of the records that it wrote."""
        run = 1
        while True:
            try:
                with engine.begin() as connection:
                    uow = UnitOfWork(connection, writes=True)
                    self._check_lease(uow)
                    result = work(uow)
            except Exception as error:
                self._check(error)
                if run == MAX_RUNS or not (isinstance(error, DBAPIError) and self._database.is_passing(error)):
                    raise
            else:
                return result, uow.written
            time.sleep(random.uniform(0, min(FIRST_PAUSE * 2**run, LAST_PAUSE)))  # noqa: S311
            run += 1

    def _check_lease(self, uow: UnitOfWork) -> None:
        """Raise ``LeaseLost`` unless this store has the lease, which it then keeps until the transaction ends."""
        if self._term is not None and not uow.database_lease.holds(self._term):
            raise LeaseLost(
                "Another service has taken the database over: this one writes nothing any more.", retry_after=5
            )

    def _check(self, error: Exception) -> None:
        """Raise ``StoreUnavailable`` for a fault of the database. The driver's error text goes only to the log.

        A warning every ``FAULT_LOG_INTERVAL`` seconds at most, since every call meets the fault; else debug.
        """
        reason = self._database.outage_reason(error)
        if reason is None:
            return
        now, level = time.monotonic(), logging.DEBUG
        if now >= self._said_until:
            self._said_until, level = now + FAULT_LOG_INTERVAL, logging.WARNING
        said = str(error.orig if isinstance(error, DBAPIError) else error)
        log.log(level, "database unavailable error=%s reason=%s", " ".join(said.split()), reason)
        raise _unavailable(reason) from error

    def _answers(self) -> bool:
        try:
            with self._database.reading.begin() as connection:
                return connection.execute(select(literal(1))).scalar_one() == 1
        except Exception as error:
            log.debug("database not ready error=%s", error)
            return False

    def _schema_differences(self) -> Sequence[str]:
        if time.monotonic() < self._schema_checked_until:
            return []
        try:
            with self._database.reading.begin() as connection:
                found = migrations.differences(connection)
        except Exception as error:
            log.warning("schema check failed error=%s", error)
            return ["its schema cannot be read: see the service's log"]
        if not found:
            self._schema_checked_until = time.monotonic() + SCHEMA_CHECK_INTERVAL
        return found

    def _look(self, look: Callable[[Connection], T]) -> T:
        try:
            with self._database.reading.begin() as connection:
                return look(connection)
        except Exception as error:
            self._check(error)
            raise

    def _migrate(self) -> None:
        try:
            with self._database.begin_migration() as connection:
                self._check_lease(UnitOfWork(connection, writes=True))
                migrations.upgrade(connection)
        except Exception as error:
            self._check(error)
            raise

    def _close(self) -> None:
        self._readers.shutdown()
        self._writers.shutdown()
        self._database.writing.dispose()
        self._database.reading.dispose()


def _unavailable(reason: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"The database cannot be used now, which is no fault of the request: {reason}. Try again shortly.",
        retry_after=RETRY_AFTER,
    )


def _open(text: str) -> Database:
    try:
        url = make_url(text)
    except ArgumentError:
        url = None
    if url is not None and url.get_backend_name() == "sqlite":
        return open_sqlite(url.set(drivername="sqlite+pysqlite"))
    if url is not None and url.get_backend_name() in ("postgresql", "postgres"):
        return open_postgresql(url)
    raise ValueError("the database URL must be sqlite:////path/to/file or postgresql://user:password@host/name")
