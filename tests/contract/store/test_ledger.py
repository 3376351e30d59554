"""The ledger as every store keeps it: to the last digit."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from tests.contract.store.samples import NOW, SECOND, add, add_builder, make_segment

from builderd.domain.ids import BuilderId, new_id
from builderd.domain.prices import Billing
from builderd.ports.store import Store


@pytest.mark.parametrize(
    "rate", ["0.1965", "0.10", "0", "0.1234567890123456789012345678901234567890", "98765432109876.5"]
)
async def test_a_rate_keeps_all_its_digits(store: Store, rate: str) -> None:
    builder = await add_builder(store)
    segment = make_segment(builder.id, hourly_rate=Decimal(rate))
    await add(store, segment)
    found = await store.read(lambda uow: uow.ledger.current(builder.id))
    assert found == segment
    assert found is not None
    assert str(found.hourly_rate) == rate


@pytest.mark.parametrize("rate", ["NaN", "Infinity"])
async def test_a_rate_is_a_finite_number(store: Store, rate: str) -> None:
    builder = await add_builder(store)
    with pytest.raises(Exception, match="no amount"):
        await add(store, make_segment(builder.id, hourly_rate=Decimal(rate)))


async def test_closing_ends_the_open_segment_alone(store: Store) -> None:
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


async def test_closing_without_an_open_segment_changes_nothing(store: Store) -> None:
    builder = await add_builder(store)
    closed = make_segment(builder.id, end=NOW + SECOND)
    await add(store, closed)
    await store.write(lambda uow: uow.ledger.close(builder.id, NOW + 5 * SECOND))
    assert await store.read(lambda uow: uow.ledger.of_builder(builder.id)) == [closed]


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


async def test_segments_of_many_builders_come_by_builder_oldest_first(store: Store) -> None:
    one, two, three = [await add_builder(store) for _ in range(3)]
    early, late = make_segment(one.id, end=NOW + SECOND), make_segment(one.id, start=NOW + SECOND)
    other, unasked = make_segment(two.id), make_segment(three.id)
    await add(store, late, unasked, other, early)
    asked = [one.id, two.id, BuilderId(new_id())]
    found = await store.read(lambda uow: uow.ledger.of_builders(asked))
    assert found == {one.id: [early, late], two.id: [other]}


async def test_no_builders_have_no_segments(store: Store) -> None:
    assert await store.read(lambda uow: uow.ledger.of_builders([])) == {}


async def test_more_builders_than_a_statement_takes_can_be_asked_for(store: Store) -> None:
    builder = await add_builder(store)
    await add(store, make_segment(builder.id))
    asked = [*(BuilderId(new_id()) for _ in range(70_000)), builder.id]
    assert await store.read(lambda uow: uow.ledger.of_builders(asked)) == {builder.id: [make_segment(builder.id)]}
