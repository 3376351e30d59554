"""Steps that wait for their turn keep no bundle in memory: one may take 32 MB, and a queue has no limit."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable

import pytest
from tests.application import MAIN, World

from builderd.code.model import Bundle, BundleFile
from builderd.dependencies.model import BuildOutcome, LayerPlan
from builderd.engine.port import Progress
from builderd.review import service as reviews

CREATES = 12


class _Counted(Bundle):
    """A bundle whose end can be seen."""

    __slots__ = ("__weakref__",)


@pytest.fixture
def alive(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return the number of bundles that were read from the store and are still in memory."""
    read: list[weakref.ref[_Counted]] = []
    get = world.bundles.get

    async def get_anew(bundle_hash: str) -> Bundle:
        stored = await get(bundle_hash)
        await asyncio.sleep(0)
        bundle = _Counted(stored.hash, stored.files)
        read.append(weakref.ref(bundle))
        return bundle

    def count() -> int:
        gc.collect()
        return sum(one() is not None for one in read)

    monkeypatch.setattr(world.bundles, "get", get_anew)
    return count


async def until_few(world: World, alive: Callable[[], int], most: int) -> None:
    """Wait until no more than so many bundles are in memory."""
    seen: list[int] = []

    def are_few() -> bool:
        seen.append(alive())
        return seen[-1] <= most

    try:
        await world.until(are_few)
    except TimeoutError:
        raise AssertionError(f"{seen[-1]} bundles are in memory, {most} are worked on") from None


def own_layer(number: int) -> tuple[BundleFile, BundleFile]:
    return MAIN, BundleFile("requirements.txt", f"package{number}\n".encode())


def hold_builds(world: World, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Let builds of the engine begin once the returned event is set."""
    go_on, build = asyncio.Event(), world.engine.build_layer

    async def build_later(plan: LayerPlan, progress: Progress) -> BuildOutcome:
        await go_on.wait()
        return await build(plan, progress)

    monkeypatch.setattr(world.engine, "build_layer", build_later)
    return go_on


async def test_an_installation_that_waits_for_its_turn_keeps_no_bundle(
    world: World, alive: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = hold_builds(world, monkeypatch)
    async with world.reconciling():
        asked = [await world.ask(*own_layer(number), name=f"app{number}") for number in range(CREATES)]
        await world.until(lambda: world.called("has_layer") >= CREATES)
        await until_few(world, alive, 0)
        go_on.set()
        for builder in asked:
            await world.outcome(builder)


async def test_a_review_that_waits_for_its_turn_keeps_no_bundle(world: World, alive: Callable[[], int]) -> None:
    world.scanner.open.clear()
    async with world.reconciling():
        asked = [await world.ask(*own_layer(number), name=f"app{number}") for number in range(CREATES)]
        await world.until(lambda: len(world.scanner.scanned) == reviews.MAX_OF_TENANT)
        await until_few(world, alive, reviews.MAX_OF_TENANT)
        world.scanner.open.set()
        for builder in asked:
            await world.outcome(builder)
