"""PostgreSQL as the store uses it: patient with others, but not for ever."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import psycopg
import pytest
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InternalError, OperationalError
from tests.contract.store.samples import TENANT, add, add_builder, make_sandbox
from tests.postgres import PostgresServer, find_binaries, run_server
from tests.stores import open_store

from builderd.core.errors import StoreUnavailable
from builderd.core.ids import BuilderId
from builderd.database import copies
from builderd.database import unit_of_work as store_module
from builderd.database.postgresql import Link, connect_arguments, is_passing, outage_reason
from builderd.database.unit_of_work import MAX_RUNS, Store, UnitOfWork


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    async with open_store(postgres_url) as opened:
        await add(opened, TENANT)
        yield opened


def test_connections_are_named_and_end_stuck_transactions() -> None:
    assert connect_arguments(make_url("postgresql://me@db.example/builderd")) == {
        "application_name": "builderd",
        "connect_timeout": 10,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "options": "-c timezone=UTC -c datestyle=ISO -c idle_in_transaction_session_timeout=60000 "
        "-c statement_timeout=20000",
    }


def test_url_parameters_take_precedence() -> None:
    url = make_url("postgresql://me@db/builderd?connect_timeout=2&options=-c%20search_path%3Dmine&sslmode=require")
    arguments = connect_arguments(url)
    assert "connect_timeout" not in arguments
    assert "sslmode" not in arguments
    assert arguments["options"].endswith(" -c search_path=mine")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (psycopg.errors.SerializationFailure(), True),
        (psycopg.errors.DeadlockDetected(), True),
        (psycopg.errors.UniqueViolation(), True),
        (psycopg.errors.ForeignKeyViolation(), False),
        (psycopg.errors.AdminShutdown(), False),
        (psycopg.OperationalError("connection lost"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_what_may_go_better_is_run_again(error: psycopg.Error, expected: bool) -> None:
    assert is_passing(DBAPIError("", {}, error)) is expected


@pytest.mark.postgres
async def test_deadlocked_transactions_both_succeed(store: Store, postgres_url: str) -> None:
    builders = [(await add_builder(store)).id for _ in range(2)]
    meet = threading.Barrier(2, timeout=30)

    def lock_in_order(first: BuilderId, second: BuilderId) -> Callable[[UnitOfWork], int]:
        runs = 0

        def work(uow: UnitOfWork) -> int:
            nonlocal runs
            runs += 1
            uow.builders.get(first, lock=True)
            if runs == 1:
                meet.wait()
            uow.builders.get(second, lock=True)
            return runs

        return work

    async with open_store(postgres_url) as other:
        runs = await asyncio.gather(
            store.write(lock_in_order(builders[0], builders[1])), other.write(lock_in_order(builders[1], builders[0]))
        )
    # The one that was ended may be quicker to lock again than the other one is to wake: then they meet once more.
    assert min(runs) == 1
    assert max(runs) > 1


@pytest.mark.postgres
async def test_a_conflict_that_stays_is_an_error_after_a_few_runs(store: Store) -> None:
    builder = (await add_builder(store)).id
    runs = 0

    def work(uow: UnitOfWork) -> None:
        nonlocal runs
        runs += 1
        uow.sandboxes.add(make_sandbox(builder))
        uow.sandboxes.add(make_sandbox(builder, attempt=2))

    with pytest.raises(IntegrityError):
        await store.write(work)
    assert runs == MAX_RUNS
    assert await store.read(lambda uow: uow.sandboxes.list(builder)) == []


@pytest.mark.postgres
async def test_closed_server_connections_fail_no_call(store: Store, postgres_url: str) -> None:
    builder = await add_builder(store)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert await store.read(lambda uow: uow.builders.get(builder.id)) == builder
    await add_builder(store)


@pytest.mark.postgres
@pytest.mark.parametrize("writes", [False, True], ids=["read", "write"])
async def test_connection_that_breaks_within_a_transaction_is_an_outage_and_not_used_again(
    store: Store, postgres_url: str, writes: bool
) -> None:
    call, backends = store.write if writes else store.read, list[int]()

    def broken(uow: UnitOfWork) -> None:
        backends.append(backend_of(uow))
        for _ in range(3):
            uow.tenants.get(TENANT.id)
        with psycopg.connect(postgres_url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 10000)", [backends[0]])
        uow.tenants.get(TENANT.id)

    with pytest.raises(StoreUnavailable, match=r"its server is stopping|does not answer"):
        await call(broken)
    assert await call(lambda uow: uow.tenants.get(TENANT.id)) == TENANT
    assert await call(backend_of) not in backends


@pytest.mark.postgres
async def test_reads_write_nothing_and_see_one_snapshot(store: Store) -> None:
    def mode(uow: UnitOfWork) -> tuple[str, str]:
        found = (connection(uow).execute(text(f"SHOW transaction_{name}")) for name in ("isolation", "read_only"))
        first, second = (one.scalar_one() for one in found)
        return first, second

    assert await store.read(mode) == ("repeatable read", "on")
    assert await store.write(mode) == ("read committed", "off")
    with pytest.raises(InternalError, match="read-only transaction"):
        await store.read(lambda uow: uow.tenants.add(TENANT))


@pytest.mark.postgres
async def test_times_are_read_in_utc_whatever_the_servers_zone(store: Store, postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        assert str(connection.info.timezone) == "Asia/Kolkata"
    tenant = await store.read(lambda uow: uow.tenants.get(TENANT.id))
    assert tenant is not None
    assert tenant.created_at == TENANT.created_at
    assert tenant.created_at.utcoffset() == timedelta(0)


@pytest.mark.postgres
async def test_a_database_that_is_gone_makes_the_store_unready(postgres_server: PostgresServer) -> None:
    with postgres_server.database() as url:
        store = Store(url)
        await store.migrate()
        assert await store.ready()
    assert not await store.ready()
    await store.close()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (psycopg.OperationalError("connection refused"), True),
        (psycopg.errors.AdminShutdown(), True),
        (psycopg.errors.CannotConnectNow(), True),
        (psycopg.errors.ConnectionFailure(), True),
        (psycopg.errors.TooManyConnections(), True),
        (psycopg.errors.DeadlockDetected(), False),
        (psycopg.errors.DiskFull(), True),
        (psycopg.errors.QueryCanceled(), True),
        (psycopg.errors.ReadOnlySqlTransaction(), False),
        (psycopg.errors.FeatureNotSupported("cannot set transaction read-write mode during recovery"), True),
        (psycopg.errors.FeatureNotSupported(), False),
        (psycopg.errors.NotNullViolation(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_missing_server_differs_from_a_refusing_one(error: psycopg.Error, expected: bool) -> None:
    assert bool(outage_reason(OperationalError("", {}, error))) is expected


@pytest.mark.postgres
async def test_server_that_takes_only_reads_serves_them_and_refuses_writes_with_a_reason(
    request: pytest.FixtureRequest,
) -> None:
    request.getfixturevalue("postgres_server")  # skips where there is none
    binaries = find_binaries()
    assert binaries is not None
    with run_server(binaries) as server:
        url = server.url("postgres")
        async with open_store(url) as store:
            await add(store, TENANT)
        server.become_standby()
        store = Store(url)
        try:
            assert await store.read(lambda uow: uow.tenants.get(TENANT.id)) == TENANT
            with pytest.raises(StoreUnavailable, match="is a standby"):
                await store.write(lambda uow: uow.builders.ids())
        finally:
            await store.close()
        assert await asyncio.to_thread(copies.has_content, url)


async def test_a_server_that_is_not_there_is_a_coded_error_and_its_words_stay_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Store("postgresql://me:secret@127.0.0.1:1/builderd")
    for call in (store.read, store.write):
        with pytest.raises(StoreUnavailable) as caught:
            await call(lambda uow: uow.builders.ids())
        assert "127.0.0.1" not in caught.value.message
        assert caught.value.retry_after
    await store.close()
    assert "secret" not in caplog.text
    said = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1, "every call meets the same fault"


@pytest.mark.postgres
async def test_a_backend_that_hangs_is_given_up_and_the_next_call_goes_well(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Link, "silence", 0.5)
    stopped: list[int] = []

    def hang(uow: UnitOfWork) -> None:
        pid = backend_of(uow)
        stopped.append(pid)
        os.kill(pid, signal.SIGSTOP)
        uow.builders.ids()

    try:
        for call in (store.read, store.write):
            with pytest.raises(StoreUnavailable):
                await call(hang)
            assert await call(lambda uow: uow.tenants.get(TENANT.id)) == TENANT
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.postgres
async def test_a_server_that_hangs_answers_every_call_in_time(
    postgres_server: PostgresServer, migrated_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that wait behind the ones that hang."""
    monkeypatch.setattr(store_module, "DEADLINE", 1.0)
    with postgres_server.database(migrated_database) as url, postgres_server.hanging():
        store = Store(f"{url}&connect_timeout=2")
        calls = [store.read(lambda uow: uow.builders.ids()) for _ in range(30)]
        calls += [store.write(lambda uow: uow.builders.ids()) for _ in range(120)]
        begun = time.monotonic()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(end) for end in ends} == {StoreUnavailable}
        # By itself, 120 writes by 8 threads at 2 s each would take 30 s.
        assert time.monotonic() - begun < 25
        assert not await store.ready()
        await store.close()


@pytest.mark.postgres
async def test_a_statement_that_takes_too_long_is_ended(store: Store, postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as other:
        other.execute("LOCK TABLE builders IN ACCESS EXCLUSIVE MODE")

        def work(uow: UnitOfWork) -> None:
            connection(uow).execute(text("SET LOCAL statement_timeout = 100"))
            uow.builders.ids()

        with pytest.raises(StoreUnavailable, match="a statement was ended"):
            await store.write(work)


def connection(uow: UnitOfWork) -> Connection:
    found: Connection = uow.builders._connection
    return found


def backend_of(uow: UnitOfWork) -> int:
    pid: int = connection(uow).execute(text("SELECT pg_backend_pid()")).scalar_one()
    return pid
