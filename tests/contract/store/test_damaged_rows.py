"""Rows that cannot be decoded: lists pass over them, a single one raises ``RecordDamaged``, and both can be deleted."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tests.contract.store.samples import NOW, TENANT, add, add_builder, make_sandbox, make_segment
from tests.stores import open_store

from builderd.domain.builders import Builder, Desired, Status
from builderd.domain.errors import RecordDamaged
from builderd.store import Store, UnitOfWork
from builderd.store.builders import BuilderQuery

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
