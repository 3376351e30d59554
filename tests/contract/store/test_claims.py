"""Claims: at most one owner works on a builder, and no change that comes meanwhile is overlooked."""

from __future__ import annotations

from dataclasses import replace

from tests.contract.store.samples import NOW, SECOND, add_builder, claim, due, holds, make_due, release, renew, save

from builderd.builders.model import Status
from builderd.database.unit_of_work import Store


async def test_claim_excludes_others_until_it_expires(store: Store) -> None:
    builder = (await add_builder(store)).id
    assert await claim(store, builder, "one", NOW)
    assert not await claim(store, builder, "two", NOW + 29 * SECOND)
    assert await holds(store, builder, "one", NOW + 29 * SECOND)
    assert not await holds(store, builder, "two", NOW)


async def test_expired_claim_can_be_taken_over(store: Store) -> None:
    builder = (await add_builder(store)).id
    await claim(store, builder, "one", NOW)
    over = NOW + 30 * SECOND
    assert not await holds(store, builder, "one", over)
    assert await claim(store, builder, "two", over)
    assert await holds(store, builder, "two", over)
    assert not await claim(store, builder, "one", over + SECOND)


async def test_renewal_keeps_a_claim_and_what_made_its_builder_due(store: Store) -> None:
    builder = (await add_builder(store)).id
    await claim(store, builder, "one", NOW)
    await make_due(store, builder, NOW)
    assert await renew(store, builder, "one", NOW + 20 * SECOND)
    assert await holds(store, builder, "one", NOW + 49 * SECOND)
    await release(store, builder, "one", None)
    assert await due(store, NOW) == [builder]


async def test_renewal_takes_no_claim_that_was_released(store: Store) -> None:
    builder = (await add_builder(store)).id
    await claim(store, builder, "one", NOW)
    await release(store, builder, "one", None)
    await make_due(store, builder, NOW)
    assert await renew(store, builder, "one", NOW)
    assert not await holds(store, builder, "one", NOW)
    assert await due(store, NOW) == [builder]


async def test_lost_claim_cannot_be_released(store: Store) -> None:
    builder = (await add_builder(store)).id
    await claim(store, builder, "one", NOW)
    await claim(store, builder, "two", NOW + 30 * SECOND)
    await release(store, builder, "one", NOW)
    assert await holds(store, builder, "two", NOW + 31 * SECOND)
    assert await due(store, NOW + 31 * SECOND) == []


async def test_saving_a_builder_leaves_its_claim_and_due_time_alone(store: Store) -> None:
    builder = await add_builder(store)
    await claim(store, builder.id, "one", NOW)
    await make_due(store, builder.id, NOW)
    await save(store, replace(builder, status=Status.RUNNING))
    assert await holds(store, builder.id, "one", NOW)
    await release(store, builder.id, "one", None)
    assert await due(store, NOW) == [builder.id]


async def test_a_due_time_only_moves_earlier(store: Store) -> None:
    builder = (await add_builder(store)).id
    await make_due(store, builder, NOW + SECOND)
    await make_due(store, builder, NOW + 9 * SECOND)
    assert await due(store, NOW + SECOND) == [builder]
    await make_due(store, builder, NOW)
    assert await due(store, NOW) == [builder]


async def test_due_builders_are_limited_longest_due_first(store: Store) -> None:
    late, early, middle = [(await add_builder(store)).id for _ in range(3)]
    await make_due(store, late, NOW)
    await make_due(store, early, NOW - 2 * SECOND)
    await make_due(store, middle, NOW - SECOND)
    assert await due(store, NOW) == [early, middle, late]
    assert await due(store, NOW, limit=2) == [early, middle]
    assert await due(store, NOW, limit=0) == []


async def test_a_claimed_builder_is_not_due(store: Store) -> None:
    builder = (await add_builder(store)).id
    await make_due(store, builder, NOW)
    await claim(store, builder, "one", NOW)
    await make_due(store, builder, NOW)
    assert await due(store, NOW + 29 * SECOND) == []


async def test_claim_clears_the_due_time(store: Store) -> None:
    builder = (await add_builder(store)).id
    await make_due(store, builder, NOW)
    await claim(store, builder, "one", NOW)
    await release(store, builder, "one", None)
    assert await due(store, NOW + 999 * SECOND) == []


async def test_release_sets_the_next_due_time(store: Store) -> None:
    builder = (await add_builder(store)).id
    await claim(store, builder, "one", NOW)
    await release(store, builder, "one", NOW + 5 * SECOND)
    assert await due(store, NOW + 4 * SECOND) == []
    assert await due(store, NOW + 5 * SECOND) == [builder]


async def test_release_keeps_an_earlier_due_time(store: Store) -> None:
    builder = (await add_builder(store)).id
    for due_at in (None, NOW + 60 * SECOND):
        await claim(store, builder, "one", NOW)
        await make_due(store, builder, NOW)
        await release(store, builder, "one", due_at)
        assert await due(store, NOW) == [builder]


async def test_release_keeps_a_due_time_set_during_the_claim(store: Store) -> None:
    builder = (await add_builder(store)).id
    await claim(store, builder, "one", NOW)
    await make_due(store, builder, NOW + 100 * SECOND)
    await release(store, builder, "one", None)
    assert await due(store, NOW + 99 * SECOND) == []
    assert await due(store, NOW + 100 * SECOND) == [builder]


async def test_expired_claim_makes_its_builder_due(store: Store) -> None:
    builder = (await add_builder(store)).id
    await make_due(store, builder, NOW)
    await claim(store, builder, "one", NOW)
    assert await due(store, NOW + 30 * SECOND) == [builder]


async def test_all_claims_of_an_owner_are_released_and_due(store: Store) -> None:
    mine, other, _ = [(await add_builder(store)).id for _ in range(3)]
    await store.write(lambda uow: uow.builders.claim(mine, "me", NOW, NOW + 30 * SECOND))
    await store.write(lambda uow: uow.builders.claim(other, "another", NOW, NOW + 30 * SECOND))
    await store.write(lambda uow: uow.builders.release_all("me", NOW + SECOND))
    assert await store.read(lambda uow: uow.builders.due(NOW + SECOND, 10)) == [mine]
    assert await store.write(lambda uow: uow.builders.claim(mine, "another", NOW, NOW + 30 * SECOND))
    assert not await store.write(lambda uow: uow.builders.claim(other, "me", NOW, NOW + 30 * SECOND))


async def test_builders_made_due_together_are_due_at_the_earlier_time(store: Store) -> None:
    one, two, _ = [(await add_builder(store)).id for _ in range(3)]
    await store.write(lambda uow: uow.builders.make_due(one, NOW))
    await store.write(lambda uow: uow.builders.make_all_due([one, two], NOW + SECOND))
    assert await store.read(lambda uow: uow.builders.due(NOW, 10)) == [one]
    assert await store.read(lambda uow: uow.builders.due(NOW + SECOND, 10)) == [one, two]
