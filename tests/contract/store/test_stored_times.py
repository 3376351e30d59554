"""Times that a wrong clock moved, and rows that cannot be decoded: both are mended, and neither stops a list."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.contract.store.samples import (
    NOW,
    SECOND,
    TENANT,
    add,
    add_builder,
    make_event,
    make_sandbox,
    make_segment,
    make_token,
    save,
)
from tests.stores import open_store

from builderd.builders.model import Builder, Desired, Lease, LeaseId, Status
from builderd.builders.store import BuilderQuery
from builderd.core.errors import RecordDamaged
from builderd.database.columns import metadata
from builderd.database.stored_times import BEGINNINGS, DUE, ENDS, LEFT_OUT, PAST, time_columns
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.money.model import Billing

MINUTE, HOUR, YEAR = timedelta(minutes=1), timedelta(hours=1), timedelta(days=365)


def test_each_column_of_a_time_has_a_rule_or_a_reason() -> None:
    """A new column must be named in one of the rules."""
    assert {one.name for one in time_columns()} <= PAST | DUE | {ENDS}
    for column in time_columns():
        if column.name == ENDS:
            assert any(name in column.table.c for name in BEGINNINGS), column
    known = {f"{table.name}.{column.name}" for table in metadata.tables.values() for column in table.columns}
    assert LEFT_OUT.keys() <= known


async def test_rows_of_a_wrong_clock_are_mended_and_others_stay(store: Store) -> None:
    wrong = NOW + YEAR
    builder = await add_builder(store, auto_stop_interval=30)
    right = make_token(name="right", secret_hash="r", created_at=NOW - HOUR, expires_at=NOW + YEAR)
    late = make_token(name="late", secret_hash="l", created_at=wrong, expires_at=wrong + HOUR)
    renewed = Lease(LeaseId("a"), builder.id, "an import", "token ci", NOW - MINUTE, wrong + MINUTE)
    sandbox = make_sandbox(builder.id, created_at=wrong, started_at=wrong + SECOND)
    closed = make_segment(builder.id, start=NOW - HOUR, end=NOW - MINUTE)
    future = make_segment(builder.id, start=wrong, end=wrong + 36 * SECOND)
    going_on = make_segment(builder.id, start=wrong + 36 * SECOND, billing=Billing.STOPPED)
    await add(store, right, late, sandbox, closed, future, going_on)
    await save(store, replace(builder, last_active_at=wrong, updated_at=wrong))

    def write(uow: UnitOfWork) -> None:
        uow.leases.add(renewed)
        uow.events.add(make_event(builder.id, time=wrong))
        uow.builders.make_due(builder.id, wrong)
        uow.tenants.make_spending_due(TENANT.id, wrong)

    await store.write(write)
    changed = await store.write(lambda uow: uow.stored_times.repair(NOW))
    assert changed == {
        "builders.last_active_at": 1,
        "builders.updated_at": 1,
        "events.time": 1,
        "ledger.ended_at": 1,
        "ledger.started_at": 2,
        "sandboxes.created_at": 1,
        "sandboxes.started_at": 1,
        "tokens.created_at": 1,
    }
    assert await store.read(lambda uow: uow.stored_times.later_than(NOW)) == {}
    tokens = await store.read(lambda uow: {one.name: one for one in uow.tokens.list(TENANT.id)})
    assert tokens == {"right": right, "late": replace(late, created_at=NOW, expires_at=NOW + HOUR)}
    (lease,) = await store.read(lambda uow: uow.leases.of_builder(builder.id))
    assert lease.expires_at == NOW + HOUR
    assert await store.read(lambda uow: uow.builders.due(NOW, 10)) == [builder.id]
    segments = await store.read(lambda uow: uow.ledger.of_builder(builder.id))
    assert segments == [closed, replace(future, start=NOW, end=NOW), replace(going_on, start=NOW)]
    # The sums of months are those of the segments again.
    totals = await store.read(lambda uow: uow.ledger.totals([builder.id], NOW))
    assert totals[builder.id].running == 59 * 60
    assert (await store.read(lambda uow: uow.ledger.month_of_tenant(TENANT.id, wrong, wrong.replace(day=1)))).paid >= 0


async def test_a_right_database_is_not_changed(store: Store) -> None:
    await add_builder(store)
    assert await store.write(lambda uow: uow.stored_times.repair(NOW)) == {}


CHANGES = [
    ("builders", "status", "levitating"),
    ("builders", "spare_disks", "{"),
    ("builders", "updated_at", "noon"),
    ("builders", "spending_cap", "much"),
    ("versions", "status", "levitating"),
    ("versions", "env", "{"),
    ("versions", "created_at", "noon"),
    ("sandboxes", "created_at", "noon"),
    ("ledger", "hourly_rate", "much"),
]


def _lists(uow: UnitOfWork, builders: list[Builder]) -> dict[str, list[str]]:
    ids, page = [one.id for one in builders], BuilderQuery(per_page=100)
    return {
        "get_all": list(uow.builders.get_all(ids)),
        "by_hosts": [one.id for one in uow.builders.by_hosts([one.host for one in builders]).values()],
        "of_tenant": [one.id for one in uow.builders.of_tenant(TENANT.id, deleted=False)],
        "running": [one.id for one in uow.builders.running(TENANT.id)],
        "idle_candidates": [one.id for one in uow.builders.idle_candidates()],
        "versions": list(uow.versions.shown([(one, 1) for one in ids])),
        "sandboxes": [one.builder_id for one in uow.sandboxes.open_of_all(ids)],
        "segments": list(uow.ledger.rates_of_builders(ids)),
        "page": [one.id for one in uow.builder_lists.page(TENANT.id, page)],
        "shown": [one.id for one in uow.builder_lists.shown(TENANT.id, page, NOW)],
        "costs": [one.id for one in uow.builder_lists.costs(TENANT.id, 1, 100, NOW)],
    }


@pytest.mark.parametrize(("table", "column", "value"), CHANGES)
async def test_damaged_row_costs_its_builder_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, table: str, column: str, value: str
) -> None:
    async with open_store(f"sqlite:///{tmp_path}/builderd.db") as store:
        await add(store, TENANT)
        made = [await _add_running(store) for _ in range(9)]
        before = await store.read(lambda uow: _lists(uow, made))
        assert {len(found) for found in before.values()} == {9}
        damaged = made[4]
        with closing(sqlite3.connect(tmp_path / "builderd.db", isolation_level=None)) as other:
            where = "id" if table == "builders" else "builder_id"
            other.execute(f"UPDATE {table} SET {column} = ? WHERE {where} = ?", (value, damaged.id))
        after = await store.read(lambda uow: _lists(uow, made))
        for name, found in after.items():
            assert [one for one in before[name] if one != damaged.id] == [one for one in found if one != damaged.id]
        assert any(damaged.id not in found for found in after.values())
        assert caplog.text.count(f"record damaged builder={damaged.id}") == 1
        assert RecordDamaged.REMEDY in caplog.text

        with pytest.raises(RecordDamaged, match=damaged.id):
            await store.read(lambda uow: _read_all(uow, damaged))
        await store.write(lambda uow: uow.builders.replace_undecodable(damaged.id, NOW))
        await store.read(lambda uow: _read_all(uow, damaged))
        (status,) = await store.read(lambda uow: [uow.builders.get(damaged.id)])
        assert status is not None
        assert (status.desired, status.visibility) == (Desired.RUNNING, damaged.visibility)


async def _add_running(store: Store) -> Builder:
    builder = await add_builder(store, status=Status.RUNNING, desired=Desired.RUNNING, auto_stop_interval=60)
    await add(store, make_sandbox(builder.id), make_segment(builder.id))
    return builder


def _read_all(uow: UnitOfWork, builder: Builder) -> None:
    uow.builders.get(builder.id)
    uow.versions.get(builder.id, 1)
    uow.sandboxes.open_of(builder.id)
    uow.ledger.current(builder.id)
