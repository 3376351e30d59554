"""Bundles are stored before they are referred to, and removed when nothing refers to them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.application import MAIN, PATIENCE, REQUIREMENTS, World

from builderd.domain.builders import Builder, Desired, Status
from builderd.domain.bundles import Bundle, make_bundle
from builderd.domain.errors import BundleLost, NameTaken
from builderd.services import builders, bundles
from builderd.services.code_space import SentCode
from builderd.store import UnitOfWork

BUNDLE = make_bundle([MAIN])


async def test_a_bundle_is_there_before_anything_refers_to_it(world: World) -> None:
    def refer(uow: UnitOfWork) -> Builder:
        assert BUNDLE.hash in world.bundles.stored
        raise LookupError

    with pytest.raises(LookupError):
        await bundles.keep(world.application, SentCode(world.caller.tenant_id, BUNDLE), refer)


async def test_a_bundle_of_a_refused_request_is_not_left(world: World) -> None:
    await world.ask(name="taken")
    other = replace(MAIN, source=b"other")
    with pytest.raises(NameTaken):
        await world.ask(other, name="taken")
    assert list(world.bundles.stored) == [BUNDLE.hash]


async def test_a_refused_request_leaves_a_bundle_that_others_use(world: World) -> None:
    await world.ask(name="taken")
    with pytest.raises(NameTaken):
        await world.ask(name="taken")
    assert BUNDLE.hash in world.bundles.stored


async def test_disconnected_caller_leaves_no_bundle(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = asyncio.Event()

    async def put_and_tarry(bundle: Bundle) -> None:
        world.bundles.stored[bundle.hash] = bundle
        stored.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(world.bundles, "put", put_and_tarry)
    asking = asyncio.create_task(world.ask())
    await stored.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert world.bundles.stored == {}


async def test_caller_that_disconnects_during_the_write_removes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, loop = world.application.store, asyncio.get_running_loop()
    write, begun, go_on = store.write, asyncio.Event(), threading.Event()

    async def write_slowly(work: Callable[[UnitOfWork], object]) -> object:
        def slowly(uow: UnitOfWork) -> object:
            loop.call_soon_threadsafe(begun.set)
            assert go_on.wait(PATIENCE)
            return work(uow)

        return await write(slowly)

    monkeypatch.setattr(store, "write", write_slowly)
    asking = asyncio.create_task(world.ask())
    await begun.wait()
    assert world.bundles.stored
    asking.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await asking
    (builder_id,) = await world.read(lambda uow: uow.builders.ids())
    version = await world.read(lambda uow: uow.versions.get(builder_id, 1))
    assert version is not None
    assert version.bundle_hash in world.bundles.stored


async def test_bundle_that_takes_long_to_store_delays_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    put, begun, go_on = world.bundles.put, asyncio.Event(), asyncio.Event()

    async def put_slowly(bundle: Bundle) -> None:
        await put(bundle)
        if bundle.hash == BUNDLE.hash:
            begun.set()
            await go_on.wait()

    monkeypatch.setattr(world.bundles, "put", put_slowly)
    slow = asyncio.create_task(world.ask(name="slow"))
    await begun.wait()
    async with asyncio.timeout(10):
        await world.ask(replace(MAIN, source=b"other"), name="quick")
        # Nothing refers to it yet, as a sweep sees it.
        await bundles.drop_unused(world.application, BUNDLE.hash)
    go_on.set()
    assert (await world.version(await slow)).bundle_hash in world.bundles.stored


async def test_a_bundle_goes_with_the_last_builder_that_has_it(world: World) -> None:
    first, second = await world.ask(name="first"), await world.ask(name="second")
    for builder, left in ((first, [BUNDLE.hash]), (second, [])):
        await world.change(builder, desired=Desired.DELETED, status=Status.DELETED, deleted_at=world.clock.now())
        await bundles.drop_unused(world.application, BUNDLE.hash)
        assert list(world.bundles.stored) == left


async def test_a_bundle_is_not_dropped_between_being_stored_and_referred_to(world: World) -> None:
    keeping = asyncio.create_task(world.ask())
    await asyncio.sleep(0)
    await asyncio.gather(*(bundles.drop_unused(world.application, BUNDLE.hash) for _ in range(5)))
    builder = await keeping
    assert (await world.version(builder)).bundle_hash in world.bundles.stored
    assert await world.want(builders.stop, builder)


async def test_damaged_files_say_what_is_damaged_and_what_to_do(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(MAIN, REQUIREMENTS)
        await world.reached(builders.stop, builder)
        world.bundles.stored.clear()
        world.engine.known_layers.clear()
        wanted = await world.want(builders.start, builder)
        with pytest.raises(
            BundleLost, match=rf"version 1 are damaged or gone.*PUT /api/v1/builders/{builder.id}"
        ) as raised:
            await world.outcome(wanted)
        assert (raised.value.code, raised.value.retry_after) == ("bundle_lost", None)
