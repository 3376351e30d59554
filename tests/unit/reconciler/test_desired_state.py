"""Stop, start, restart and delete, from every state."""

from __future__ import annotations

import asyncio

import pytest
from tests.application import ENTRYPOINT, MAIN, REQUIREMENTS, World
from tests.fakes.sandboxes import Behaviour
from tests.unit.reconciler.ledgers import check_ledger

from builderd.builders import service as builders
from builderd.builders.model import Builder, Status
from builderd.core.errors import StartFailed
from builderd.core.ids import SandboxId
from builderd.dependencies.model import BuildOutcome
from builderd.previews.model import RouteState
from builderd.sandboxes.model import EndCause, SandboxReport


async def test_stopping_closes_the_route_before_the_app_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = world.engine.stop
    seen: list[RouteState] = []

    async def stop_and_tell(sandbox: SandboxId, grace_seconds: float) -> SandboxReport:
        seen.extend(route.state for route in (await world.previews.routes()).values())
        assert grace_seconds == world.application.limits.stop_grace
        return await stop(sandbox, grace_seconds)

    monkeypatch.setattr(world.engine, "stop", stop_and_tell)
    async with world.reconciling():
        builder = await world.create()
        stopped = await world.reached(builders.stop, builder)
    assert seen == [RouteState.STOPPED]
    assert (stopped.status, stopped.status_reason) == (Status.STOPPED, "stopped by token acme")
    await world.until_nothing_runs()
    assert world.engine.known_disks
    await check_ledger(world, builder)


async def test_starting_again_needs_no_new_files(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(MAIN, REQUIREMENTS)
        await world.reached(builders.stop, builder)
        world.clock.move(60)
        started = await world.reached(builders.start, builder)
    assert (started.status, started.status_reason) == (Status.RUNNING, "started by token acme")
    assert world.called("put_bundle") == world.called("create_disk") == world.called("build_layer") == 1
    await check_ledger(world, builder)


async def test_restarting_replaces_the_sandbox(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        (old,) = world.engine.known
        restarted = await world.reached(builders.restart, builder)
        (new,) = world.engine.known
    assert (restarted.status, restarted.status_reason) == (Status.RUNNING, "restarted by token acme")
    assert new != old
    await check_ledger(world, builder)


async def test_a_deleted_builder_leaves_nothing_but_its_record(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(MAIN, REQUIREMENTS)
        gone = await world.reached(builders.delete, builder)
        await world.until_nothing_is_left()
    assert (gone.status, gone.deleted_at) == (Status.DELETED, world.clock.now())
    assert await world.build_log(builder) == []
    await check_ledger(world, builder)


async def test_a_bundle_that_another_builder_has_stays(world: World) -> None:
    async with world.reconciling():
        first, second = await world.create(name="first"), await world.create(name="second")
        await world.reached(builders.delete, first)
        await world.reached(builders.restart, second)
    assert len(world.bundles.stored) == 1


@pytest.mark.parametrize("command", [builders.stop, builders.delete])
async def test_an_installation_is_broken_off_when_it_is_not_wanted_any_more(
    world: World, command: builders.Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    building, broken_off = asyncio.Event(), asyncio.Event()

    async def build_for_ever(*_: object) -> BuildOutcome:
        building.set()
        try:
            await asyncio.sleep(3600)
        finally:
            broken_off.set()
        raise AssertionError

    monkeypatch.setattr(world.engine, "build_layer", build_for_ever)
    async with world.reconciling():
        builder = await world.ask(MAIN, REQUIREMENTS)
        await building.wait()
        settled = await world.reached(command, builder)
    assert broken_off.is_set()
    assert settled.status in (Status.STOPPED, Status.DELETED)
    assert not world.engine.known_disks
    await check_ledger(world, builder)


@pytest.mark.parametrize("command", [builders.stop, builders.delete])
async def test_an_app_that_is_waited_for_is_ended_when_it_is_not_wanted_any_more(
    world: World, command: builders.Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(0.001)

    monkeypatch.setattr(world.clock, "sleep", sleep)  # it never runs out of time
    world.engine.behave(ENTRYPOINT, Behaviour(listens_at=None))
    async with world.reconciling():
        builder = await world.ask()
        await world.until(lambda: world.called("listening") > 1)
        settled = await world.reached(command, builder)
        await world.until_nothing_runs()
    assert settled.status in (Status.STOPPED, Status.DELETED)
    await check_ledger(world, builder)


@pytest.mark.parametrize("state", ["creating", "running", "stopped", "failed", "completed", "restarting", "crashed"])
async def test_a_builder_is_deleted_from_every_state(world: World, state: str) -> None:
    async with world.reconciling():
        builder = await bring_to(world, state)
        assert (await world.reached(builders.delete, builder)).status is Status.DELETED
        await world.until_nothing_is_left()
    await check_ledger(world, builder)


async def bring_to(world: World, state: str) -> Builder:
    if state == "failed":
        world.engine.behave(ENTRYPOINT, Behaviour(exits_at=0, exit_code=1))
    if state == "completed":
        world.engine.behave(ENTRYPOINT, Behaviour(exits_at=0, exit_code=0))
        return await world.outcome(await world.ask_job())
    builder = await world.ask()
    if state == "creating":
        return builder
    try:
        await world.outcome(builder)
    except StartFailed:
        return builder
    if state == "stopped":
        await world.reached(builders.stop, builder)
    elif state == "restarting":
        await world.want(builders.restart, builder)
    elif state == "crashed":
        world.engine.end(world.running[0].spec.id, EndCause.EXITED, 1)
        await world.until_nothing_runs()
    return builder


async def test_wishes_that_change_quickly_end_with_the_last(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        for command in (builders.stop, builders.start, builders.restart, builders.stop, builders.start) * 5:
            await world.want(command, builder)
            await asyncio.sleep(0.001)
        last = await world.reached(builders.restart, builder)
        assert last.status is Status.RUNNING
        await world.until(lambda: len(world.engine.known) == 1)
        await check_ledger(world, builder)
        assert (await world.reached(builders.stop, builder)).status is Status.STOPPED
    assert not world.running


async def test_removal_that_goes_on_beside_the_record_is_over_when_the_reconciler_ends(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, removed, is_stopped = world.engine.remove, list[SandboxId](), asyncio.Event()

    async def remove_slowly(sandbox: SandboxId) -> None:
        await is_stopped.wait()
        await asyncio.sleep(0.05)
        await remove(sandbox)
        removed.append(sandbox)

    async with world.reconciling():
        builder = await world.create()
        monkeypatch.setattr(world.engine, "remove", remove_slowly)
        await world.reached(builders.stop, builder)
        assert not removed, "its caller does not wait for that"
        is_stopped.set()
    assert len(removed) == 1
