"""Pages of builders as every store reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from functools import partial

import pytest
from tests.contract.store.samples import (
    NOW,
    OTHER_TENANT,
    SECOND,
    TENANT,
    add,
    add_builder,
    make_builder,
    make_segment,
    make_version,
    save,
)
from tests.statements import statements

from builderd.builders.model import Builder, Candidate, Cause, Desired, Status, StopKind, Visibility
from builderd.builders.store import BuilderQuery
from builderd.core.ids import BuilderId, new_id
from builderd.core.resources import Resources
from builderd.database import repository
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.money.model import Billing, Sum, total
from builderd.versions.model import VersionSettings

DAY = timedelta(days=1)
TIMES = ("created_at", "updated_at", "last_active_at", "disk_released_at")
GONE = {"desired": Desired.DELETED, "status": Status.DELETED}


async def add_with_version(store: Store, **changes: object) -> Builder:
    builder = await add_builder(store, **changes)
    version = make_version(builder.id, settings=VersionSettings("x", resources=Resources(0.5, 2, 3)))
    await store.write(lambda uow: uow.versions.save(version))
    return builder


async def test_page_for_people_has_states_gates_and_costs_of_the_month(store: Store) -> None:
    await add(store, OTHER_TENANT)
    asleep = await add_with_version(
        store,
        name="asleep",
        desired=Desired.STOPPED,
        cause=Cause("token ci", "stopped by token ci"),
        status=Status.STOPPED,
        stop_kind=StopKind.IDLE,
        generation=3,
        observed_generation=2,
        last_active_at=NOW - SECOND,
    )
    busy = await add_with_version(
        store,
        name="busy",
        created_at=NOW + SECOND,
        candidate=Candidate(2),
        asleep_since=NOW,
        visibility=Visibility.PRIVATE,
    )
    await add_with_version(store, name="theirs", tenant_id=OTHER_TENANT.id)
    version = make_version(
        busy.id, settings=VersionSettings("x", skip_review=True), review_passed=True, review_until=NOW, qa_passed=False
    )
    await store.write(lambda uow: uow.versions.save(version))
    month = NOW.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    segments = [
        make_segment(busy.id, start=month - DAY, end=month + DAY),
        make_segment(busy.id, start=month + DAY, billing=Billing.STOPPED),
        make_segment(asleep.id, start=month - DAY),
    ]
    await add(store, *segments)
    query = BuilderQuery(sort="name")
    found = await store.read(lambda uow: uow.builder_lists.shown(TENANT.id, query, NOW))
    assert [one.life for one in found] == await store.read(lambda uow: uow.builder_lists.lives(TENANT.id, query))
    whole = await store.read(lambda uow: uow.builder_lists.page(TENANT.id, query))
    for shown, builder in zip(found, whole, strict=True):
        same = set(shown.life._fields) - {"cause_reason", "candidate"}
        assert {name: getattr(shown.life, name) for name in same} == {name: getattr(builder, name) for name in same}
        assert shown.life.cause_reason == builder.cause.reason
        assert shown.life.candidate == (builder.candidate.version if builder.candidate else None)
        assert (shown.id, shown.host, shown.visibility) == (builder.id, builder.host, builder.visibility)
        assert (shown.job_type, shown.last_active_at) == (builder.job_type, builder.last_active_at)
        assert shown.spent == total([one for one in segments if one.builder_id == builder.id], NOW, month)
    first, second = found
    assert (first.skip_review, first.skip_qa, first.qa_passed, first.review.reviewed(NOW)) == (False, False, None, None)
    assert (second.skip_review, second.qa_passed, second.review.reviewed(NOW)) == (True, False, False)
    assert first.resources == Resources(0.5, 2, 3)


async def test_costs_are_the_exact_sums_and_include_deleted_builders(store: Store) -> None:
    made = [await add_with_version(store, created_at=NOW + number * SECOND) for number in range(3)]
    gone = await add_with_version(store, created_at=NOW, **GONE)
    await add(store, OTHER_TENANT)
    await add_with_version(store, tenant_id=OTHER_TENANT.id)
    odd = Decimal("0.123456789123456789")
    segments = [
        make_segment(made[0].id, start=NOW - 90 * DAY, end=NOW - 20 * DAY, hourly_rate=odd),
        make_segment(made[0].id, start=NOW - 20 * DAY, end=NOW - DAY / 7, billing=Billing.STOPPED),
        make_segment(made[0].id, start=NOW - DAY / 7, hourly_rate=odd),
    ]
    await add(store, *segments)
    first = await store.read(lambda uow: uow.builder_lists.costs(TENANT.id, 1, 3, NOW))
    assert {one.id for one in first} == {gone.id, made[0].id, made[1].id}
    assert {one.id: one.spent for one in first if one.spent.paid} == {made[0].id: total(segments, NOW)}
    last = await store.read(lambda uow: uow.builder_lists.costs(TENANT.id, 2, 3, NOW))
    assert last == [(made[2].id, made[2].name, Resources(0.5, 2, 3), Sum())]
    assert await store.read(lambda uow: uow.builder_lists.count_all(TENANT.id)) == 4


async def test_builders_are_read_with_the_resources_that_they_cost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "BATCH", 2)
    one, gone = await add_with_version(store, name="one"), await add_with_version(store, name="gone", **GONE)
    changed = await add_with_version(store, name="changed", version=2)
    larger = VersionSettings("x", resources=Resources(4, 5, 6))
    await add(store, make_version(changed.id, number=2, settings=larger))
    ids = [gone.id, changed.id, BuilderId(new_id()), one.id]
    found = await store.read(lambda uow: uow.builder_lists.costed(ids))
    assert found == {
        one.id: (one.id, "one", Desired.RUNNING, Resources(0.5, 2, 3)),
        gone.id: (gone.id, "gone", Desired.DELETED, Resources(0.5, 2, 3)),
        changed.id: (changed.id, "changed", Desired.RUNNING, Resources(4, 5, 6)),
    }
    assert await store.read(lambda uow: uow.builder_lists.costed([])) == {}


async def test_builders_near_an_amount_are_found_by_the_month_to_its_end(store: Store) -> None:
    """5 an hour from the month's beginning on reach 3,600 in May; what is closed counts too."""
    may = NOW.replace(month=5, day=1, hour=0, minute=0, second=0, microsecond=0)
    open_one, closed, cheap, older = [await add_builder(store) for _ in range(4)]
    await add(
        store,
        make_segment(open_one.id, start=may - DAY, hourly_rate=Decimal(5)),
        make_segment(closed.id, start=may, end=may + DAY, hourly_rate=Decimal(150)),
        make_segment(cheap.id, start=may, hourly_rate=Decimal("4.8")),
        make_segment(older.id, start=may - 30 * DAY, end=may, hourly_rate=Decimal(150)),
    )
    found = await store.read(lambda uow: uow.ledger.reaching(TENANT.id, may + 2 * DAY, Decimal(3600)))
    assert set(found) == {open_one.id, closed.id}
    assert await store.read(lambda uow: uow.ledger.reaching(OTHER_TENANT.id, may + 2 * DAY, Decimal(1))) == []


async def test_builders_without_a_recorded_member_are_found_by_their_disks(store: Store) -> None:
    unknown = await add_builder(store)
    await add_builder(store, location="node2")
    await add_builder(store, **GONE)
    assert await store.read(lambda uow: uow.builders.unlocated()) == {unknown.disk: unknown.id}


async def test_total_follows_creates_deletes_and_rollbacks(store: Store) -> None:
    async def total() -> int:
        number = await store.read(lambda uow: uow.builder_lists.count(TENANT.id, BuilderQuery()))
        by_status = await store.read(lambda uow: uow.builders.count_by_status(TENANT.id))
        assert number == sum(by_status.values())
        return number

    await add(store, OTHER_TENANT)
    assert await total() == 0
    first, second = await add_builder(store), await add_builder(store)
    await add_builder(store, tenant_id=OTHER_TENANT.id)
    assert await total() == 2
    for status in (Status.STOPPED, Status.DELETED, Status.DELETED):
        # The row stays when the builder is gone, and is saved again on the way there.
        await save(store, replace(first, desired=Desired.DELETED, status=status))
        assert await total() == 1
    with pytest.raises(RuntimeError, match="rolled back"):
        await store.write(lambda uow: _add_and_fail(uow, make_builder()))
    await save(store, replace(second, status=Status.STOPPED, desired=Desired.STOPPED))
    await store.write(lambda uow: _add_and_delete(uow, make_builder()))
    assert await total() == 1
    await asyncio.gather(*(add_builder(store) for _ in range(10)))
    assert await total() == 11


def _add_and_fail(uow: UnitOfWork, builder: Builder) -> None:
    uow.builders.add(builder)
    raise RuntimeError("rolled back")


def _add_and_delete(uow: UnitOfWork, builder: Builder) -> None:
    uow.builders.add(builder)
    uow.builders.get(builder.id, lock=True)
    uow.builders.save(replace(builder, desired=Desired.DELETED))


LISTS: dict[str, Callable[[UnitOfWork, BuilderQuery], Sequence[object]]] = {
    "page": lambda uow, query: uow.builder_lists.page(TENANT.id, query),
    "shown": lambda uow, query: uow.builder_lists.shown(TENANT.id, query, NOW),
    "lives": lambda uow, query: uow.builder_lists.lives(TENANT.id, query),
    "costs": lambda uow, query: uow.builder_lists.costs(TENANT.id, query.page, query.per_page, NOW),
}


@pytest.mark.parametrize("name", LISTS)
async def test_all_pages_are_one_statement_on_sqlite(store: Store, name: str) -> None:
    """Each text of a statement is compiled anew there; PostgreSQL plans numbers better than parameters."""
    for _ in range(3):
        await add_with_version(store)

    def read(uow: UnitOfWork, page: int) -> Sequence[object]:
        return LISTS[name](uow, BuilderQuery(page=page, per_page=1))

    with statements(store) as seen:
        pages = [await store.write(partial(read, page=page)) for page in (1, 2, 3)]
    assert [len(page) for page in pages] == [1, 1, 1]
    assert len({repr(page) for page in pages}) == 3
    is_postgresql = store._database.writing.dialect.name == "postgresql"
    assert len({one for one in seen if "LIMIT" in one}) == (3 if is_postgresql else 1)
