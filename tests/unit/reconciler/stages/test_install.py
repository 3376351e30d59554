"""Builds take turns, and what they print is kept within bounds."""

from __future__ import annotations

import asyncio

import pytest
from tests.application import MAIN, REQUIREMENTS, World

from builderd.domain.builders import Builder
from builderd.domain.bundles import BundleFile
from builderd.domain.layers import BuildOutcome, LayerPlan
from builderd.ports.engine import Progress
from builderd.reconciler.stages import install


async def test_lines_are_shown_while_the_build_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "FLUSH_INTERVAL", 0.001)
    go_on = asyncio.Event()

    async def build(_: LayerPlan, progress: Progress) -> BuildOutcome:
        progress("Downloading flask")
        await go_on.wait()
        progress("Failed")
        return BuildOutcome(1, ("no",), 1)

    monkeypatch.setattr(world.engine, "build_layer", build)
    async with world.reconciling():
        builder = await world.ask(MAIN, REQUIREMENTS)
        signals = world.application.signals
        before = signals.count(builder.id)
        await world.until(lambda: signals.count(builder.id) > before)
        assert [line.text for line in await world.build_log(builder)] == ["Downloading flask"]
        go_on.set()
        await world.until_reason(builder, "no")
    assert [line.text for line in await world.build_log(builder)] == ["Downloading flask", "Failed"]


async def test_a_build_that_prints_without_end_is_cut(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def build(plan: LayerPlan, progress: Progress) -> BuildOutcome:
        for number in range(3 * install.MAX_LINES):
            progress(f"{number} {'x' * 10_000 if number < 10 else ''}")
        world.engine.layers[plan.key] = 1
        return BuildOutcome(0, (), 1)

    monkeypatch.setattr(world.engine, "build_layer", build)
    async with world.reconciling():
        builder = await world.create(MAIN, REQUIREMENTS)
    lines = [line.text for line in await world.build_log(builder)]
    assert len(lines) == install.MAX_LINES
    assert "left out" in lines[-1]
    assert max(len(line) for line in lines) == install.MAX_CHARACTERS


async def test_builds_take_turns_and_one_tenant_does_not_take_them_all(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    going: dict[str, str] = {}
    most = 0
    go_on = asyncio.Event()

    async def build(plan: LayerPlan, _: Progress) -> BuildOutcome:
        nonlocal most
        going[plan.key] = plan.inputs["requirements.txt"].decode()
        most = max(most, len(going))
        await go_on.wait()
        del going[plan.key]
        world.engine.layers[plan.key] = 1
        return BuildOutcome(0, (), 1)

    monkeypatch.setattr(world.engine, "build_layer", build)
    monkeypatch.setattr(install, "MAX_BUILDS", 5)
    async with world.reconciling():
        greedy = [await ask_for(world, f"greedy{number}") for number in range(6)]
        await world.until(lambda: len(going) == install.MAX_OF_TENANT)
        world.caller = await world.tenant("modest")
        modest = await ask_for(world, "modest")
        await world.until(lambda: "modest" in going.values())
        world.caller = await world.tenant("third")
        others = [await ask_for(world, f"third{number}") for number in range(3)]
        await world.until(lambda: len(going) == 5)
        go_on.set()
        for builder in (*greedy, modest, *others):
            await world.outcome(builder)
    assert most == 5


async def ask_for(world: World, requirement: str) -> Builder:
    return await world.ask(MAIN, BundleFile("requirements.txt", requirement.encode()), name=requirement)


async def test_installed_layer_needs_no_build_slot(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.reconciling():
        await world.create(MAIN, REQUIREMENTS, name="first")

        async def build_for_ever(*_: object) -> BuildOutcome:
            await asyncio.sleep(3600)
            raise AssertionError

        monkeypatch.setattr(world.engine, "build_layer", build_for_ever)
        for number in range(3):
            await ask_for(world, f"slow{number}")
        assert (await world.create(MAIN, REQUIREMENTS, name="second")).settled
