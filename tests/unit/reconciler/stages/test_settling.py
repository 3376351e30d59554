"""Outcomes are recorded with the step that reached them, and callers do not wait for what is tidied up."""

from __future__ import annotations

import asyncio

import pytest
from tests.application import MAIN, World
from tests.statements import statements
from tests.unit.reconciler.mortal import living

from builderd.domain.builders import Status
from builderd.domain.previews import RouteState
from builderd.reconciler.core.claim import LEASE
from builderd.services import builders


async def test_a_start_is_recorded_by_one_transaction_once_the_app_listens(world: World) -> None:
    async with world.reconciling():
        builder = await world.reached(builders.stop, await world.create(MAIN))
        with statements(world.application.store) as seen:
            await world.reached(builders.start, builder)
    # A builder's save sets what changed and what is computed; a claim sets neither.
    updates = [one for one in seen if one.startswith(("UPDATE sandboxes", "UPDATE builders"))]
    saves = [one for one in updates if "UPDATE builders" not in one or "reserved_disk=" in one]
    # The wish; the started sandbox; with one transaction, the sandbox that listens and the builder that runs.
    assert [one.split()[1] for one in saves] == ["builders", "sandboxes", "sandboxes", "builders"]
    assert (await world.until_route(builder, RouteState.OPEN)).destination is not None


async def test_a_killed_service_leaves_an_open_route_that_a_stop_closes(world: World) -> None:
    async with living(world) as life:
        builder = await life.world.reached(builders.stop, await life.world.create(MAIN))
    async with living(world, "AwaitListening.done") as life:
        await life.world.want(builders.start, builder)
        await world.until(lambda: life.is_over)
    assert (await world.until_route(builder, RouteState.OPEN)).destination is not None
    assert [one.listening_at for one in await world.records(builder) if one.end is None] == [None]
    await world.want(builders.stop, builder)
    world.clock.move(LEASE.total_seconds())
    async with living(world) as life:
        assert (await world.until_route(builder, RouteState.STOPPED)).destination is None
        await life.world.until_nothing_runs()


async def test_a_stop_is_over_before_the_sandbox_is_removed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    removing, may_end, remove = asyncio.Event(), asyncio.Event(), world.engine.remove

    async def tarry(sandbox: object) -> None:
        removing.set()
        await may_end.wait()
        await remove(sandbox)  # type: ignore[arg-type]

    async with world.reconciling():
        builder = await world.create(MAIN)
        monkeypatch.setattr(world.engine, "remove", tarry)
        assert (await world.reached(builders.stop, builder)).status is Status.STOPPED
        await removing.wait()
        assert world.running == []
        may_end.set()
        await world.until_nothing_runs()


async def test_a_removal_that_fails_is_left_to_the_sweep(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = world.engine.remove

    async def refuse(_: object) -> None:
        raise OSError("busy")

    async with world.reconciling() as reconciler:
        builder = await world.create(MAIN)
        monkeypatch.setattr(world.engine, "remove", refuse)
        assert (await world.reached(builders.stop, builder)).status is Status.STOPPED
        await world.until(lambda: not reconciler._workers)
        monkeypatch.setattr(world.engine, "remove", remove)
        assert world.engine.sandboxes

        async def is_swept() -> bool:
            # A worker may look at the builder again, such as for its app's end: a sweep leaves its sandbox meanwhile.
            await reconciler._sweep()
            return not world.engine.sandboxes

        await world.until(is_swept)
