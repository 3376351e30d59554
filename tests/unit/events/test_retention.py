"""Unused layers and records are removed, used ones are kept, also under concurrency."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.application import MAIN, REQUIREMENTS, World, fake_world
from tests.contract.store.samples import make_event, make_record
from tests.fakes.sandboxes import Behaviour

from builderd.builders import service as builders
from builderd.builders.model import Builder, Status
from builderd.code.model import BundleFile
from builderd.core.errors import EngineUnavailable, NameTaken, NoCapacity, StartFailed
from builderd.core.ids import BuilderId, SandboxId
from builderd.core.resources import Resources
from builderd.database.unit_of_work import UnitOfWork
from builderd.events import retention
from builderd.events.retention import RetentionJob
from builderd.events.store import EventQuery
from builderd.files import service as files
from builderd.files.model import Condition
from builderd.files.service import NewContent
from builderd.sandboxes.model import SandboxReport
from builderd.versions import service as deployments

DAY = 86_400.0
MONTH = 31 * DAY


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with fake_world() as world:
        yield world


async def deployed(world: World, name: str = "my-api", requirement: str = "flask\n") -> Builder:
    return await world.create(MAIN, BundleFile("requirements.txt", requirement.encode()), name=name)


async def test_unused_layer_is_removed_after_a_month(world: World) -> None:
    async with world.reconciling():
        builder = await deployed(world)
        await world.reached(builders.delete, builder)
    keeping = RetentionJob(world.application)
    world.clock.move(29 * DAY)
    await keeping.clean_up()
    assert world.engine.known_layers
    world.clock.move(2 * DAY)
    await keeping.clean_up()
    assert not world.engine.known_layers


async def test_the_layer_of_a_builder_that_was_stopped_long_ago_stays(world: World) -> None:
    async with world.reconciling():
        builder = await deployed(world)
        await world.reached(builders.stop, builder)
    world.engine.tight = True
    world.clock.move(12 * MONTH)
    await RetentionJob(world.application).clean_up()
    assert world.engine.known_layers


async def test_when_space_runs_out_unused_layers_go_after_an_hour(world: World) -> None:
    async with world.reconciling():
        builder = await deployed(world)
        await world.reached(builders.delete, builder)
    keeping = RetentionJob(world.application)
    world.clock.move(3_700)
    await keeping.clean_up()
    assert world.engine.known_layers
    world.engine.tight = True
    await keeping.clean_up()
    assert not world.engine.known_layers


async def test_a_create_of_another_tenant_finds_its_layer_whenever_it_is_collected(world: World) -> None:
    """Collected between each two calls of the engine, when the layer is unused and old enough to go."""
    async with world.reconciling():
        await world.reached(builders.delete, await deployed(world))
        keeping = RetentionJob(world.application)
        other, owner = await world.tenant("other"), world.caller
        collecting = asyncio.Event()

        async def collect() -> None:
            while not collecting.is_set():
                await keeping.free_space()

        for number in range(10):
            world.clock.move(MONTH)
            collecting.clear()
            task = asyncio.create_task(collect())
            world.caller = other
            builder = await deployed(world, name=f"app-{number}")
            collecting.set()
            await task
            assert builder.status is Status.RUNNING
            world.caller = other
            await world.reached(builders.delete, builder)
        world.caller = owner


async def test_old_records_go_and_the_present_ones_stay(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    monkeypatch.setattr(retention, "PAUSE", 0)
    tenant, store = world.caller.tenant_id, world.application.store
    async with world.reconciling():
        builder = await world.create(MAIN, REQUIREMENTS)
        for _ in range(3):
            builder = await world.reached(builders.restart, builder)
        old = await world.read(lambda uow: uow.events.last_id(tenant))
        world.clock.move(91 * DAY)
        builder = await world.reached(builders.restart, builder)
        now = world.clock.now()
        retries = [
            make_record(tenant_id=tenant, key="old", created_at=now - timedelta(hours=25)),
            make_record(tenant_id=tenant, key="new", created_at=now),
        ]
        for retry in retries:
            await store.write(lambda uow, retry=retry: uow.idempotency.add(retry))  # type: ignore[misc]
        await RetentionJob(world.application).clean_up()
    events = await world.read(lambda uow: uow.events.following(tenant, EventQuery(), after=0, limit=1000))
    assert events
    assert all(event.id > old for event in events)
    assert {sandbox.generation for sandbox in await world.records(builder)} >= {builder.generation}
    assert min(sandbox.generation for sandbox in await world.records(builder)) > 1
    assert await world.build_log(builder) == []
    keys = [await world.read(lambda uow, key=key: uow.idempotency.get(tenant, key)) for key in ("old", "new")]  # type: ignore[misc]
    assert [key is not None for key in keys] == [False, True]


async def test_an_engine_that_fails_keeps_no_record_from_going(world: World) -> None:
    tenant = world.caller.tenant_id
    event = make_event(BuilderId(""), tenant_id=tenant, builder_id=None, time=world.clock.now())
    await world.application.store.write(lambda uow: uow.events.add(event))
    world.clock.move(91 * DAY)
    world.engine.fail_next("collect", EngineUnavailable("gone"))
    await RetentionJob(world.application).clean_up()
    assert await world.read(lambda uow: uow.events.last_id(tenant)) == 0


async def test_a_clock_set_forward_deletes_no_records_for_a_day(world: World) -> None:
    async with world.reconciling():
        builder = await deployed(world)

    async def numbers() -> list[int]:
        query = EventQuery()
        found = await world.read(lambda uow: uow.events.following(builder.tenant_id, query, after=0, limit=1000))
        return [event.id for event in found]

    before = await numbers()
    world.clock.jump(12 * MONTH)
    keeping = RetentionJob(world.application)
    await keeping.clean_up()
    assert await numbers() == before != []
    world.clock.move(DAY)
    await keeping.clean_up()
    assert await numbers() == []


async def failed(world: World, name: str = "broken") -> Builder:
    world.engine.behave("broken", Behaviour(listens_at=None, exits_at=0, exit_code=1))
    with pytest.raises(StartFailed):
        await world.create(name=name, entrypoint="broken", resources=Resources(disk=7))
    builder = await world.read(lambda uow: uow.builders.by_name(world.caller.tenant_id, name))
    assert builder is not None
    return builder


async def test_failed_builder_gives_its_disk_back_after_a_day_and_starts_again_on_a_new_one(world: World) -> None:
    keeping = RetentionJob(world.application)
    async with world.reconciling():
        good, broken = await deployed(world), await failed(world)
        await world.reached(builders.stop, good)
        world.clock.move(DAY - 60)
        await keeping.release_failed_disks()
        assert (await world.builder(broken)).disk_released_at is None
        world.clock.move(120)
        await keeping.release_failed_disks()
        await world.until(lambda: list(world.engine.known_disks) == [good.disk])
    released = await world.builder(broken)
    assert released.disk_released_at == world.clock.now()
    assert (await world.read(lambda uow: uow.builders.allocated())).disk == 3
    assert await world.read(lambda uow: uow.ledger.current(broken.id)) is None
    events = [one for one in await world.events(broken) if one.type == "disk.released"]
    assert [(one.details["gb"], "7 GB" in one.reason) for one in events] == [(7, True)]
    await keeping.release_failed_disks()
    assert await world.builder(broken) == released

    world.engine.behave("broken", Behaviour())
    async with world.reconciling():
        up = await world.reached(builders.start, broken)
    assert (up.status, up.disk_released_at, up.disk in world.engine.known_disks) == (Status.RUNNING, None, True)
    assert (await world.read(lambda uow: uow.builders.allocated())).disk == 10
    world.clock.move(DAY * 3)
    await keeping.release_failed_disks()
    assert (await world.builder(broken)).disk_released_at is None


def mark_restored(uow: UnitOfWork, builder: Builder) -> None:
    found = uow.builders.get(builder.id, lock=True)
    assert found is not None
    uow.builders.save(replace(found, disk_has_data=True))


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def test_disk_with_restored_data_or_a_callers_files_is_kept(world: World) -> None:
    async with world.reconciling():
        restored, filled, broken = [await failed(world, name) for name in ("restored", "filled", "broken")]
        await world.application.store.write(lambda uow: mark_restored(uow, restored))
        content = NewContent(pieces(b"precious"))
        await files.write(world.application, world.caller.tenant_id, filled.id, "notes.txt", content, Condition())
        world.clock.move(DAY * 2)
        await RetentionJob(world.application).release_failed_disks()
        await world.until(lambda: broken.disk not in world.engine.known_disks)
    assert {restored.disk, filled.disk} <= set(world.engine.known_disks)
    with pytest.raises(NameTaken):
        await world.create(name="filled")


async def test_released_disk_counts_again_when_it_is_to_start(world: World) -> None:
    async with world.reconciling():
        broken = await failed(world)
    world.clock.move(DAY * 2)
    await RetentionJob(world.application).release_failed_disks()
    world.engine.has = replace(world.engine.has, disk=6.0)
    with pytest.raises(NoCapacity, match="0 of 6 GB of disk are allocated, and 7 more are requested"):
        await world.want(builders.start, broken)
    world.engine.has = replace(world.engine.has, disk=7.0)
    world.engine.fail_next("reserve_disk", NoCapacity("The store has no room."))
    with pytest.raises(NoCapacity, match="The store has no room"):
        await world.want(builders.start, broken)
    assert (await world.builder(broken)).disk_released_at is not None
    await world.want(builders.start, broken)


async def test_disk_of_a_failed_builder_is_kept_while_a_sandbox_of_it_is_open(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = world.engine.stop

    async def away(sandbox: SandboxId, grace: float) -> SandboxReport:
        raise EngineUnavailable("The engine does not answer.", retry_after=1)

    keeping = RetentionJob(world.application)
    async with world.reconciling():
        world.engine.behave("deaf", Behaviour(listens_at=None))
        monkeypatch.setattr(world.engine, "stop", away)
        with pytest.raises(StartFailed):
            await world.create(name="deaf", entrypoint="deaf", start_timeout=1)
        [builder] = await world.read(lambda uow: uow.builders.of_tenant(world.caller.tenant_id, deleted=False))
        assert await world.read(lambda uow: uow.sandboxes.open_of(builder.id)) is not None
        world.clock.move(DAY * 2)
        await keeping.release_failed_disks()
        now = world.clock.now()
        assert not await world.application.store.write(lambda uow: deployments.release(uow, builder.id, now))
        assert (await world.builder(builder)).disk_released_at is None
        monkeypatch.setattr(world.engine, "stop", stop)

        async def is_over() -> bool:
            world.clock.move(60)  # for the delay of the next try
            return await world.read(lambda uow: uow.sandboxes.open_of(builder.id)) is None

        await world.until(is_over)
        world.clock.move(DAY * 2)
        await keeping.release_failed_disks()
        await world.until(lambda: not world.engine.known_disks)
    assert await world.read(lambda uow: uow.ledger.current(builder.id)) is None
