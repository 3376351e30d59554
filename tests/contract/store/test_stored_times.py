"""Times that a wrong clock moved: which columns have one, and how they are mended."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

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

from builderd.domain.builders import Lease, LeaseId
from builderd.domain.prices import Billing
from builderd.store import Store, UnitOfWork
from builderd.store.stored_times import BEGINNINGS, DUE, ENDS, LEFT_OUT, PAST, time_columns
from builderd.store.tables import metadata

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
