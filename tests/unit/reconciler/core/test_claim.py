"""The claim of one worker: a renewal takes none that was released, and one that is cut off leaves none."""

from __future__ import annotations

import asyncio

import pytest
from tests.application import World

from builderd.domain.builders import Builder
from builderd.domain.errors import StoreUnavailable
from builderd.reconciler.core import claim as module
from builderd.reconciler.core.claim import LEASE, Claim


async def is_free(world: World, builder: Builder) -> bool:
    """Return True, and have the claim, if nobody had it."""
    now = world.clock.now()
    return await world.application.store.write(lambda uow: uow.builders.claim(builder.id, "other", now, now + LEASE))


async def release_by_record(world: World, builder: Builder) -> None:
    owner = world.application.instance
    await world.application.store.write(lambda uow: uow.builders.release(builder.id, owner, None))


async def test_renewal_leaves_a_claim_that_a_record_has_just_released(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker has not heard of the release yet; what made the builder due since stays."""
    monkeypatch.setattr(module, "RENEW_INTERVAL", 0.0)
    builder, renewals = await world.ask(), 0
    claim, now = Claim(world.application, builder.id), world.clock.now()
    await claim.take_and_read()
    await release_by_record(world, builder)
    await world.application.store.write(lambda uow: uow.builders.make_due(builder.id, now))
    renew = claim.renew

    async def counted() -> bool:
        nonlocal renewals
        is_ours = await renew()
        claim.released = True
        renewals += 1
        return is_ours

    monkeypatch.setattr(claim, "renew", counted)
    holding = asyncio.create_task(claim.hold())
    await world.until(lambda: renewals)
    await asyncio.sleep(0.01)
    assert not holding.done(), "it is not lost"
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)
    assert await world.read(lambda uow: uow.builders.due(now, 1)) == [builder.id]
    assert await is_free(world, builder)


async def test_claim_that_a_cancelled_worker_has_taken_again_is_released(world: World) -> None:
    builder = await world.ask()
    claim = Claim(world.application, builder.id)
    await claim.take_and_read()
    await release_by_record(world, builder)
    claim.released = True
    taking = asyncio.create_task(claim.take_and_read())
    await asyncio.sleep(0)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    assert taking.cancelled()
    await claim.release(None)
    assert await is_free(world, builder)


async def test_claim_that_could_not_be_taken_again_still_makes_its_builder_due(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder, store = await world.ask(), world.application.store
    claim = Claim(world.application, builder.id)
    await claim.take_and_read()
    await release_by_record(world, builder)
    claim.released = True
    write = store.write

    async def fail(_: object) -> None:
        raise StoreUnavailable("The database does not answer.")

    monkeypatch.setattr(store, "write", fail)
    with pytest.raises(StoreUnavailable):
        await claim.take_and_read()
    monkeypatch.setattr(store, "write", write)
    due = world.clock.now()
    await claim.release(due)
    assert await world.read(lambda uow: uow.builders.due(due, 1)) == [builder.id]
