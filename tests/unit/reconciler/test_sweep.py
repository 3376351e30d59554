"""The sweep takes away what no record knows, and nothing else."""

from __future__ import annotations

from dataclasses import replace

from tests.application import MAIN, World

from builderd.builders import service as builders
from builderd.code.model import make_bundle
from builderd.core.errors import EngineUnavailable
from builderd.core.ids import BuilderId, DiskId, SandboxId, new_id, new_sandbox_id
from builderd.previews.model import Route, RouteState
from builderd.reconciler.reconciler import sweep
from builderd.sandboxes.model import EndCause, SandboxEnd, SandboxSpec

ASTRAY = Route("gone-00000000.localhost", RouteState.STOPPED)


async def start_unknown(world: World) -> SandboxId:
    """A sandbox that no record knows."""
    (known,) = world.engine.known.values()
    disk = DiskId(new_id())
    await world.engine.create_disk(disk, 1)
    spec: SandboxSpec = replace(known.spec, id=new_sandbox_id(), builder_id=BuilderId(new_id()), disk=disk)
    await world.engine.start(spec)
    return spec.id


async def test_sweep_keeps_a_running_builder(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
    (sandbox,) = world.engine.known
    await sweep(world.application, ())
    assert list(world.engine.known) == [sandbox]
    assert await world.route(builder)
    assert world.bundles.stored
    assert await world.read(lambda uow: uow.builders.due(world.clock.now(), 10)) == [builder.id]


async def test_sweep_removes_leaked_sandboxes_and_routes(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
    (known,) = world.engine.known
    unknown = await start_unknown(world)
    other = make_bundle([replace(MAIN, source=b"other")])
    await world.previews.put(ASTRAY)
    await world.bundles.put(other)
    await sweep(world.application, ())
    assert list(world.engine.known) == [known]
    assert ("stop", unknown) in world.engine.calls
    assert list(await world.previews.routes()) == [builder.host]
    assert other.hash not in world.bundles.stored


async def test_sweep_removes_ended_sandboxes_of_idle_builders(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
    (sandbox,) = await world.records(builder)
    end = SandboxEnd(EndCause.EXITED, 0, world.clock.now())
    await world.application.store.write(lambda uow: uow.sandboxes.save(replace(sandbox, end=end)))
    world.engine.end(sandbox.id)
    await sweep(world.application, {builder.id})
    assert world.engine.known
    await sweep(world.application, ())
    assert world.engine.known == {}


async def test_a_builder_that_is_being_deleted_is_not_forgotten(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
    await world.want(builders.delete, builder)
    now = world.clock.now()
    await world.application.store.write(lambda uow: uow.builders.claim(builder.id, "x", now, now))
    await world.application.store.write(lambda uow: uow.builders.release(builder.id, "x", None))
    assert await world.read(lambda uow: uow.builders.due(now, 10)) == []
    async with world.another().reconciling():
        await world.until_nothing_is_left()


async def test_a_sweep_that_fails_does_not_keep_the_reconciler_from_its_work(world: World) -> None:
    world.engine.fail_next("list_sandboxes", EngineUnavailable("It does not answer."))
    async with world.reconciling():
        assert (await world.create()).settled
