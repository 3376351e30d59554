"""Frequent queries use an index, and read no more than the rows of a page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, Table, event, text
from tests.contract.store.samples import TENANT, add, add_builder, make_segment
from tests.stores import memory_store, open_store

from builderd.backups.model import Backup, BackupKind, BackupStatus
from builderd.backups.store import backups
from builderd.builders.model import Status
from builderd.builders.store import BuilderQuery
from builderd.builders.table import builders
from builderd.core.ids import BackupId, BuilderId, TenantId, new_id
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.events.store import EventQuery
from builderd.money.model import DAY
from builderd.money.store import ledger
from builderd.versions.store import versions

NOW = datetime(2026, 5, 1, tzinfo=UTC)
ACME = TenantId("acme")

#: What is called often or for all tenants, and the index that its statements read, in order.
READS: dict[str, tuple[Callable[[UnitOfWork], object], tuple[str, ...]]] = {
    "idle": (lambda uow: uow.builders.idle_candidates(), ("ix_builders_status",)),
    "running": (lambda uow: uow.builders.running(ACME), ("ix_builders_active",)),
    "capped": (lambda uow: uow.builders.capped(ACME), ("ix_builders_capped",)),
    "any capped": (lambda uow: uow.builders.any_capped(ACME), ("ix_builders_capped",)),
    "backups to plan": (
        lambda uow: uow.backup_checks.due(NOW, NOW, 100),
        ("ix_builders_backup_check_at (backup_check_at<?)", "ix_builders_drill_base_at (drill_base_at<?)"),
    ),
    "due domains": (lambda uow: uow.domains.due(NOW, 10), ("ix_domains_next_try_at",)),
    "released domains": (lambda uow: uow.domains.released(NOW, 10), ("ix_domains_next_try_at",)),
    "unfinished backups": (lambda uow: uow.backups.open("me"), ("ix_backups_unfinished (owner=?)",)),
    "damaged backups": (lambda uow: uow.backups.count_damaged(), ("ix_backups_damaged",)),
    "builders with backups": (
        lambda uow: uow.backups.builders("b", 100),
        ("COVERING INDEX ix_backups_builder_id_created_at (builder_id>?)",),
    ),
    "a done backup": (lambda uow: uow.backups.has_done(ACME, NOW), ("ix_backups_",)),
    "allocated": (lambda uow: uow.builders.allocated(), ("COVERING INDEX ix_builders_live", "ix_builders_active")),
    "allocated to a tenant": (
        lambda uow: uow.builders.allocated(ACME),
        ("COVERING INDEX ix_builders_live (tenant_id=?)", "ix_builders_active"),
    ),
    "counted": (lambda uow: uow.builders.count_by_status(), ("COVERING INDEX ix_builders_status",)),
    "counted of a tenant": (lambda uow: uow.builders.count_by_status(ACME), ("COVERING INDEX ix_builders_live",)),
    "hosts at the start": (lambda uow: uow.builders.live_hosts(), ("ix_builders_live",)),
    "lost routes": (lambda uow: uow.builders.routed(["a"]), ("uq_builders_live_host (host=?)",)),
    "list": (
        lambda uow: uow.builder_lists.page(ACME, BuilderQuery()),
        ("ix_builders_tenant_id_created_at (tenant_id=?)",),
    ),
    "versions of a list": (
        lambda uow: uow.versions.shown([(BuilderId("a"), 1), (BuilderId("b"), 2)]),
        ("sqlite_autoindex_versions_1 (builder_id=? AND number=?)",),
    ),
    "number of a list": (
        lambda uow: uow.builder_lists.count(ACME, BuilderQuery()),
        ("COVERING INDEX ix_builders_live (tenant_id=?)",),
    ),
    "number of a list of those with a status": (
        lambda uow: uow.builder_lists.count(ACME, BuilderQuery(status=Status.RUNNING)),
        ("COVERING INDEX ix_builders_live (tenant_id=? AND status=?)",),
    ),
    "allocated to running builders": (lambda uow: uow.builders.allocated_to_running(), ("ix_builders_active",)),
    "page of costs": (
        lambda uow: uow.builder_lists.costs(ACME, 1, 100, NOW),
        ("ix_builders_tenant_id_created_at (tenant_id=?)",),
    ),
    "builders of costs": (
        lambda uow: uow.builder_lists.costed([BuilderId("a"), BuilderId("b")]),
        ("sqlite_autoindex_builders_1 (id=?)",),
    ),
    "list by change": (
        lambda uow: uow.builder_lists.page(ACME, BuilderQuery(sort="-updated_at")),
        ("ix_builders_tenant_id_updated_at",),
    ),
    "events": (
        lambda uow: uow.events.page(ACME, EventQuery(), page=1, per_page=8),
        ("ix_events_tenant_id_id", "ix_events_tenant_id_id"),
    ),
    "events of a builder": (
        lambda uow: uow.events.page(ACME, EventQuery(BuilderId("b")), page=1, per_page=8),
        ("ix_events_builder_id_id", "ix_events_builder_id_id"),
    ),
    "next events of a builder": (
        lambda uow: uow.events.following(ACME, EventQuery(BuilderId("b")), after=5, limit=8),
        ("ix_events_builder_id_id",),
    ),
    "month": (
        lambda uow: uow.ledger.month_of_tenant(ACME, NOW),
        ("sqlite_autoindex_tenant_months_1", "COVERING INDEX ix_ledger_open"),
    ),
    "days": (
        lambda uow: uow.ledger.days_of_tenant(ACME, NOW, NOW - DAY, NOW),
        ("sqlite_autoindex_tenant_months_1 (tenant_id=? AND month>? AND month<?)", "COVERING INDEX ix_ledger_open"),
    ),
    "dearest": (lambda uow: uow.ledger.dearest(ACME, NOW, NOW, 10), ("ix_ledger_months_tenant_id_month",)),
    "dearest of those that go on": (lambda uow: uow.ledger.dearest(ACME, NOW, NOW, 10), ("ix_ledger_open",)),
    "all costs": (
        lambda uow: uow.ledger.total_of_tenant(ACME, NOW),
        ("sqlite_autoindex_tenant_months_1", "COVERING INDEX ix_ledger_open"),
    ),
    "rates": (lambda uow: uow.ledger.rates_of_tenant(ACME), ("COVERING INDEX ix_ledger_open",)),
}


@pytest.mark.parametrize("name", READS)
async def test_plan_reads_the_index(name: str) -> None:
    call, indexes = READS[name]
    async with memory_store() as store:
        seen: list[tuple[str, Any]] = []
        engine = store._database.writing
        with engine.begin() as connection:
            event.listen(connection, "before_cursor_execute", lambda *args: seen.append((args[2], args[3])))
            call(UnitOfWork(connection, writes=False))
            plans = [
                " ".join(row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters))
                for statement, parameters in list(seen)
            ]
    assert len(plans) == len(indexes)
    for plan, index in zip(plans, indexes, strict=True):
        assert index in plan


ROWS = 3_000
PAGES: dict[str, Callable[[UnitOfWork], object]] = {
    "list for people": lambda uow: uow.builder_lists.shown(TENANT.id, BuilderQuery(per_page=100), NOW),
    "costs": lambda uow: uow.builder_lists.costs(TENANT.id, 1, 100, NOW),
}


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    async with open_store(postgres_url) as opened:
        await add(opened, TENANT)
        builder = await add_builder(opened)
        await add(opened, make_segment(builder.id))
        made = (BackupId(new_id()), TENANT.id, builder.id, builder.name, 1, BackupKind.SCHEDULED, BackupStatus.FAILED)
        await opened.write(lambda uow: uow.backups.add(Backup(*made, "system", "me", NOW, error="no space")))
        with opened._database.writing.begin() as connection:
            for table in (builders, versions, ledger, backups):
                _copy(connection, table)
        yield opened


def _copy(connection: Connection, table: Table) -> None:
    """Copy the table's one row for as many builders."""
    own = ("id", "name", "host", "service_token", "disk") if table is builders else ("id", "builder_id")
    names = [column.name for column in table.c if not (table is ledger and column.name == "id")]
    values = ", ".join("'copy-' || nth" if name in own else name for name in names)
    copied = f"SELECT {values} FROM {table}, generate_series(1, {ROWS}) AS copies (nth)"
    connection.execute(text(f"INSERT INTO {table} ({', '.join(names)}) {copied}"))


@pytest.mark.postgres
async def test_page_is_joined_with_its_own_rows_alone(store: Store) -> None:
    with store._database.writing.begin() as connection:
        connection.execute(text("ANALYZE"))
        seen: list[tuple[str, Any]] = []
        event.listen(connection, "before_cursor_execute", lambda *args: seen.append((args[2], args[3])))
        for name, call in PAGES.items():
            assert call(UnitOfWork(connection, writes=False)), name
        for statement, values in seen[: len(PAGES)]:
            plan = "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", values))
            for table in (versions, ledger):
                assert f" on {table.name} " in plan
                assert f"Seq Scan on {table.name} " not in plan, plan
