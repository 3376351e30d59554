"""Sums of days: exactly those of the segments, on every store, also after corrections and in databases from before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial

import pytest
from tests.contract.store.samples import OTHER_TENANT, TENANT, add, add_builder, make_segment

from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.money.model import DAY, Billing, Segment, Sum, days_between, total

HOUR = timedelta(hours=1)
MAY = datetime(2026, 5, 1, tzinfo=UTC)
NOW = MAY + 3 * DAY + 5 * HOUR + timedelta(microseconds=1)
ODD = Decimal("0.1234567890123456789")
#: Spans of days, some of them before, between and after what there is.
SPANS = [(MAY - 9 * DAY, MAY + 9 * DAY), (MAY, MAY + DAY), (MAY - DAY, MAY + 2 * DAY), (MAY + 30 * DAY, MAY + 40 * DAY)]


async def add_segments(store: Store) -> list[Segment]:
    """Add closed and open segments over midnights and a month's end, and one that begins later than now."""
    one, two, three = [await add_builder(store) for _ in range(3)]
    late = MAY + timedelta(microseconds=-400)
    segments = [
        make_segment(one.id, start=late - 3 * DAY, end=MAY + DAY + HOUR / 3, hourly_rate=ODD),
        make_segment(one.id, start=MAY + DAY + HOUR / 3, end=MAY + 2 * DAY, billing=Billing.STOPPED),
        make_segment(one.id, start=MAY + 2 * DAY),
        make_segment(two.id, start=MAY, end=MAY + HOUR, billing=Billing.TRIAL),
        make_segment(two.id, start=late, hourly_rate=ODD, billing=Billing.FROZEN),
        make_segment(three.id, start=NOW + HOUR),
    ]
    await add(store, *segments)
    return segments


def _days(uow: UnitOfWork, since: datetime, until: datetime) -> dict[datetime, Sum]:
    return dict(uow.ledger.days_of_tenant(TENANT.id, NOW, since, until))


def expected(segments: list[Segment], since: datetime, until: datetime) -> dict[datetime, Sum]:
    sums = {day: total(segments, NOW, day, end) for day, _, end in days_between(since, until)}
    return {day: spent for day, spent in sums.items() if spent != Sum()}


@pytest.mark.parametrize(("since", "until"), SPANS)
async def test_days_are_the_exact_sums_of_their_segments(store: Store, since: datetime, until: datetime) -> None:
    segments = await add_segments(store)
    found = await store.read(partial(_days, since=since, until=until))
    assert {day: spent for day, spent in found.items() if spent != Sum()} == expected(segments, since, until)
    assert list(found) == sorted(found)


async def test_days_of_a_month_are_the_month(store: Store) -> None:
    await add_segments(store)
    found = await store.read(partial(_days, since=MAY, until=MAY + 31 * DAY))
    assert sum(found.values(), Sum()) == await store.read(lambda uow: uow.ledger.month_of_tenant(TENANT.id, NOW))


async def test_days_of_another_tenant_are_excluded(store: Store) -> None:
    await add(store, OTHER_TENANT)
    theirs = await add_builder(store, tenant_id=OTHER_TENANT.id)
    closed = make_segment(theirs.id, tenant_id=OTHER_TENANT.id, start=MAY, end=MAY + HOUR)
    await add(store, closed, make_segment(theirs.id, tenant_id=OTHER_TENANT.id, start=MAY + HOUR))
    assert await store.read(partial(_days, since=MAY, until=MAY + 3 * DAY)) == {}
