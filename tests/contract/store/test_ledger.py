"""The ledger as every store keeps it: to the last digit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial

import pytest
from tests.contract.store.samples import NOW, SECOND, TENANT, add, add_builder, make_segment

from builderd.core.ids import BuilderId, new_id
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.money.model import Billing, Segment, Sum, next_month, total

HOUR = timedelta(hours=1)
APRIL, MAY, JUNE = (datetime(2026, month, 1, tzinfo=UTC) for month in (4, 5, 6))


@pytest.mark.parametrize(
    "rate", ["0.1965", "0.10", "0", "0.1234567890123456789012345678901234567890", "98765432109876.5"]
)
async def test_rate_keeps_all_digits(store: Store, rate: str) -> None:
    builder = await add_builder(store)
    segment = make_segment(builder.id, hourly_rate=Decimal(rate))
    await add(store, segment)
    found = await store.read(lambda uow: uow.ledger.current(builder.id))
    assert found == segment
    assert found is not None
    assert str(found.hourly_rate) == rate


async def test_close_ends_only_the_open_segment(store: Store) -> None:
    builder, other = await add_builder(store), await add_builder(store)
    first = make_segment(builder.id, end=NOW + SECOND)
    second = make_segment(builder.id, billing=Billing.STOPPED, start=NOW + SECOND)
    elsewhere = make_segment(other.id)
    await add(store, first, second, elsewhere)
    await store.write(lambda uow: uow.ledger.close(builder.id, NOW + 2 * SECOND))
    closed = replace(second, end=NOW + 2 * SECOND)
    assert await store.read(lambda uow: uow.ledger.of_builder(builder.id)) == [first, closed]
    assert await store.read(lambda uow: uow.ledger.current(builder.id)) is None
    assert await store.read(lambda uow: uow.ledger.current(other.id)) == elsewhere


async def test_transaction_sees_the_segments_that_it_opens_and_closes(store: Store) -> None:
    builder = await add_builder(store)
    first = make_segment(builder.id)
    second = make_segment(builder.id, billing=Billing.STOPPED, start=NOW + SECOND)
    trial = make_segment(builder.id, billing=Billing.TRIAL, start=NOW, end=NOW + SECOND)

    def work(uow: UnitOfWork) -> list[Segment | None]:
        seen = [uow.ledger.current(builder.id)]
        uow.ledger.open(first)
        uow.ledger.open(trial)
        seen.append(uow.ledger.current(builder.id))
        uow.ledger.close(builder.id, NOW + SECOND)
        seen.append(uow.ledger.current(builder.id))
        uow.ledger.open(second)
        return [*seen, uow.ledger.current(builder.id)]

    assert await store.write(work) == [None, first, None, second]
    assert await store.read(lambda uow: uow.ledger.current(builder.id)) == second
    assert replace(first, end=NOW + SECOND) in await store.read(lambda uow: uow.ledger.of_builder(builder.id))


async def test_a_segment_never_ends_before_its_start(store: Store) -> None:
    builder = await add_builder(store)
    await add(store, make_segment(builder.id))
    await store.write(lambda uow: uow.ledger.close(builder.id, NOW - SECOND))
    assert await store.read(lambda uow: uow.ledger.of_builder(builder.id)) == [make_segment(builder.id, end=NOW)]


async def test_a_builder_has_at_most_one_open_segment(store: Store) -> None:
    builder = await add_builder(store)
    await add(store, make_segment(builder.id))
    with pytest.raises(Exception, match=r"(?i)unique"):
        await add(store, make_segment(builder.id, start=NOW + SECOND))


async def test_only_segments_within_the_span_are_returned(store: Store) -> None:
    one, other, later = [await add_builder(store) for _ in range(3)]
    hours = [
        make_segment(one.id, start=MAY + hour * HOUR, end=MAY + (hour + 1) * HOUR if hour < 4 else None)
        for hour in range(5)
    ]
    long, late = make_segment(other.id, start=MAY - HOUR, end=JUNE), make_segment(later.id, start=JUNE)
    await add(store, *hours, long, late)

    async def found(since: datetime | None, until: datetime | None) -> Mapping[BuilderId, Sequence[Segment]]:
        return await store.read(lambda uow: uow.ledger.of_builders([one.id, other.id, later.id], since, until))

    # One that ends as the span begins is not in it, nor is one that begins as the span ends.
    assert await found(MAY + HOUR, MAY + 3 * HOUR) == {one.id: hours[1:3], other.id: [long]}
    between = MAY + 1.5 * HOUR
    assert await found(between, between + SECOND) == {one.id: [hours[1]], other.id: [long]}
    assert await found(MAY + 4 * HOUR, None) == {one.id: [hours[4]], other.id: [long], later.id: [late]}
    assert await found(None, MAY + HOUR) == {one.id: hours[:1], other.id: [long]}
    assert await found(JUNE, JUNE + HOUR) == {one.id: [hours[4]], later.id: [late]}
    ever = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
    assert await found(*ever) == await found(None, None) == {one.id: hours, other.id: [long], later.id: [late]}


async def test_query_for_many_builders_is_split(store: Store) -> None:
    builder = await add_builder(store)
    await add(store, make_segment(builder.id))
    asked = [*(BuilderId(new_id()) for _ in range(70_000)), builder.id]
    assert await store.read(lambda uow: uow.ledger.of_builders(asked)) == {builder.id: [make_segment(builder.id)]}


async def test_totals_include_all_months_and_the_open_segment(store: Store) -> None:
    builder, other, idle = [await add_builder(store) for _ in range(3)]
    ended = make_segment(builder.id, start=MAY - HOUR, end=MAY + 2 * HOUR)
    rest = make_segment(builder.id, billing=Billing.STOPPED, start=MAY + 2 * HOUR, hourly_rate=Decimal("0.1"))
    await add(store, ended, rest, make_segment(other.id, start=MAY))
    now = MAY + 5 * HOUR
    asked = [builder.id, other.id, idle.id]
    found = await store.read(lambda uow: uow.ledger.totals(asked, now))
    assert found == {builder.id: total([ended, rest], now), other.id: total([make_segment(other.id, start=MAY)], now)}
    assert found[builder.id].hours == 3


def of_month(uow: UnitOfWork, now: datetime) -> Mapping[BuilderId, Sum]:
    """The sums of the tenant's builders, which the database adds up to the same."""
    found = uow.ledger.month_of_builders([one.id for one in uow.builders.of_tenant(TENANT.id, deleted=True)], now)
    assert uow.ledger.month_of_tenant(TENANT.id, now) == sum(found.values(), Sum())
    return found


async def test_open_segment_counts_from_the_start_of_the_month(store: Store) -> None:
    builder = await add_builder(store)
    segment = make_segment(builder.id, start=MAY - 10 * HOUR)
    await add(store, segment)
    found = await store.read(partial(of_month, now=MAY + 2 * HOUR))
    assert found[builder.id].hours == 2
    assert await store.read(lambda uow: uow.ledger.rates_of_builders([builder.id])) == {builder.id: segment.hourly_rate}


async def test_sums_of_a_tenant_are_those_of_its_segments(store: Store) -> None:
    one, two, gone = [await add_builder(store) for _ in range(3)]
    odd = Decimal("0.1234567890123456789")
    segments = [
        make_segment(one.id, start=APRIL + HOUR / 7, end=MAY + HOUR / 3, hourly_rate=odd),
        make_segment(one.id, start=MAY + HOUR / 3, billing=Billing.STOPPED),
        make_segment(two.id, start=MAY + HOUR, hourly_rate=odd),
        make_segment(gone.id, start=APRIL, end=APRIL + HOUR, billing=Billing.TRIAL),
        # By the clock of another machine, which goes ahead.
        make_segment(gone.id, start=MAY + 10 * HOUR),
    ]
    await add(store, *segments)
    now = MAY + 5 * HOUR + timedelta(microseconds=1)
    for since, until in [(None, None), (MAY, None), (None, MAY), (APRIL + HOUR / 9, MAY + 2 * HOUR), (MAY, JUNE)]:
        found = await store.read(partial(_total, now=now, since=since, until=until))
        assert found == total(segments, now, since, until)
    rates = await store.read(lambda uow: uow.ledger.rates_of_tenant(TENANT.id))
    plain = segments[1].hourly_rate
    assert rates == {Billing.STOPPED: (1, plain), Billing.RUNNING: (2, odd + plain)}
    # Of ``two`` there is a part of May alone, and ``gone`` is older than May.
    assert await store.read(lambda uow: uow.ledger.dearest(TENANT.id, now, APRIL, 1)) == ([one.id], 2)
    assert await store.read(lambda uow: uow.ledger.dearest(TENANT.id, now, MAY, 9)) == ([one.id, two.id], 2)
    for month in (APRIL, MAY):
        expected = total(segments, now, month, next_month(month))
        assert await store.read(partial(_month, now=now, month=month)) == expected
        sums = await store.read(partial(_month_of_builders, builders=[one.id, two.id, gone.id], now=now, month=month))
        assert sum(sums.values(), Sum()) == expected


async def test_sums_of_a_tenant_are_exact_where_times_end_just_before_a_second(store: Store) -> None:
    """SQLite rounds times to milliseconds: there .9996 is the next second."""
    builder, other = await add_builder(store), await add_builder(store)
    late = MAY + timedelta(microseconds=-400)
    segments = [
        make_segment(builder.id, start=late, end=late + HOUR + timedelta(microseconds=500)),
        make_segment(builder.id, start=late + 2 * HOUR, billing=Billing.STOPPED),
        make_segment(other.id, start=MAY, end=late + HOUR, billing=Billing.TRIAL),
    ]
    await add(store, *segments)
    for now in (MAY + 5 * HOUR, late + 5 * HOUR):
        for since, until in [(None, None), (late, None), (MAY, late + 3 * HOUR)]:
            found = await store.read(partial(_total, now=now, since=since, until=until))
            assert found == total(segments, now, since, until)


def _month(uow: UnitOfWork, now: datetime, month: datetime) -> Sum:
    return uow.ledger.month_of_tenant(TENANT.id, now, month)


def _month_of_builders(
    uow: UnitOfWork, builders: list[BuilderId], now: datetime, month: datetime
) -> Mapping[BuilderId, Sum]:
    return uow.ledger.month_of_builders(builders, now, month)


def _total(uow: UnitOfWork, now: datetime, since: datetime | None, until: datetime | None) -> Sum:
    return uow.ledger.total_of_tenant(TENANT.id, now, since, until)
