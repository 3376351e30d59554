"""Bundles are stored before they are referred to, and removed when nothing refers to them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.application import MAIN, PATIENCE, REQUIREMENTS, World

from builderd.builders import service as builders
from builderd.builders.model import Builder, Desired, Status
from builderd.code import service as bundles
from builderd.code.model import Bundle, make_bundle
from builderd.code.space import SentCode
from builderd.core.errors import BundleLost, Conflict, NameTaken, NotFound
from builderd.core.ids import UploadId, new_id
from builderd.database.unit_of_work import UnitOfWork
from builderd.files.model import LIFETIME, Upload
from builderd.reconciler.reconciler import sweep

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


async def content() -> AsyncIterator[bytes]:
    yield b"abc"


async def sent(world: World) -> tuple[Upload, str]:
    application, now = world.application, world.clock.now()
    upload, signature = await application.store.write(
        lambda uow: bundles.create(uow, application.upload_rules, world.caller, 3, None, now)
    )
    upload, _ = await bundles.receive(application, upload, bundles.Part(0, 3), content(), None)
    return upload, signature


async def test_an_upload_is_over_after_its_time(world: World) -> None:
    upload, signature = await sent(world)
    assert upload.complete
    await sweep(world.application, ())
    assert await bundles.signed(world.application, upload.id, signature) == upload
    world.clock.move(LIFETIME.total_seconds())
    with pytest.raises(NotFound):
        await bundles.signed(world.application, upload.id, signature)
    await sweep(world.application, ())
    assert list(await world.application.uploads.ids()) == []
    assert await world.read(lambda uow: uow.uploads.get(upload.id)) is None


async def test_bytes_that_no_record_knows_are_taken_away(world: World) -> None:
    await world.application.uploads.write(UploadId(new_id()), 0, content(), 10)
    await sweep(world.application, ())
    assert list(await world.application.uploads.ids()) == []


async def test_resent_part_is_checked_again(world: World) -> None:
    upload, _ = await sent(world)
    again, received = await bundles.receive(world.application, upload, bundles.Part(0, 3), content(), None)
    assert (again.complete, received) == (True, 3)


@pytest.mark.parametrize("total", [3, 5])
async def test_upload_deleted_on_arrival_is_not_found(
    world: World, monkeypatch: pytest.MonkeyPatch, total: int
) -> None:
    application, now = world.application, world.clock.now()
    upload, _ = await application.store.write(
        lambda uow: bundles.create(uow, application.upload_rules, world.caller, None, None, now)
    )
    write = application.uploads.write

    async def write_and_lose(*arguments: Any) -> int:
        received = await write(*arguments)
        await bundles.delete(application, upload.tenant_id, upload.id)
        return received

    monkeypatch.setattr(application.uploads, "write", write_and_lose)
    with pytest.raises(NotFound, match="deleted"):
        await bundles.receive(application, upload, bundles.Part(0, total), content(), None)


async def test_part_sent_after_the_deletion_is_discarded(world: World) -> None:
    upload, _ = await sent(world)
    upload = replace(upload, complete=False)
    await bundles.delete(world.application, world.caller.tenant_id, upload.id)
    with pytest.raises(NotFound, match="deleted"):
        await bundles.receive(world.application, upload, bundles.Part(0, 3), content(), None)
    await bundles.expire(world.application)
    assert list(await world.application.uploads.ids()) == []


async def test_upload_taken_by_another_request_is_a_conflict(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    upload, _ = await sent(world)
    write = world.application.uploads.write

    async def write_and_lose(*arguments: Any) -> int:
        received = await write(*arguments)
        await world.application.uploads.delete(upload.id)
        return received

    monkeypatch.setattr(world.application.uploads, "write", write_and_lose)
    with pytest.raises(Conflict, match="send it again"):
        await bundles.receive(world.application, upload, bundles.Part(0, 3), content(), "0" * 64)


async def test_expired_upload_in_progress_is_swept_later(world: World) -> None:
    upload, _ = await sent(world)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        begun.set()
        await go_on.wait()
        yield b"abc"

    sending = asyncio.create_task(bundles.receive(world.application, upload, bundles.Part(0, 3), slow(), None))
    await begun.wait()
    world.clock.move(LIFETIME.total_seconds())
    await sweep(world.application, ())
    go_on.set()
    assert (await sending)[1] == 3
    await sweep(world.application, ())
    assert list(await world.application.uploads.ids()) == []
