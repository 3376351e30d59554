"""Code that is being stored is counted once, for its tenant and for all, and a tenant alone has all the space."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.application import MAIN, World, fake_world
from tests.fakes.bundles import FakeBundles

from builderd.code.model import Bundle, BundleFile, make_bundle
from builderd.code.space import CodeSpace, SentCode
from builderd.core.errors import NoCapacity, QuotaExceeded
from builderd.core.ids import TenantId
from builderd.database.unit_of_work import Store

ONE, OTHER = TenantId("one"), TenantId("other")
#: Size of a bundle of one unit, and what all may take.
UNIT, MOST = 100_000, 10


class ScriptedStore:
    """Answers what each tenant ``has``; an answer is held back while ``go_on`` is not set."""

    def __init__(self) -> None:
        self.has: dict[TenantId, set[str]] = {ONE: set(), OTHER: set()}
        self.looks = 0
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()
        self.go_on.set()

    async def read(self, look: Callable[[Any], Any]) -> Any:
        answer = look(
            SimpleNamespace(
                tenants=SimpleNamespace(are_several=lambda: len(self.has) > 1),
                versions=SimpleNamespace(bundles_of_tenant=self._bundles),
            )
        )
        self.asked.set()
        await self.go_on.wait()
        return answer

    def _bundles(self, tenant_id: TenantId) -> Collection[str]:
        self.looks += 1
        return frozenset(self.has[tenant_id])


class Scene:
    def __init__(self) -> None:
        self.bundles, self.store, self.space = FakeBundles(), ScriptedStore(), CodeSpace()
        self.bundles.most_bytes = MOST * UNIT

    async def stored(self, tenant_id: TenantId, bundle: Bundle) -> None:
        await self.bundles.put(bundle)
        self.store.has[tenant_id].add(bundle.hash)

    def reserved(self, tenant_id: TenantId, bundle: Bundle) -> Any:
        return self.space.reserved(self.bundles, cast("Store", self.store), SentCode(tenant_id, bundle), 10)

    async def keep(self, tenant_id: TenantId, bundle: Bundle) -> None:
        async with self.reserved(tenant_id, bundle):
            await self.stored(tenant_id, bundle)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def code(units: float, name: str) -> Bundle:
    """Return a bundle that takes so many units, a little less for what a tar adds."""
    return make_bundle([BundleFile(name, b"x" * int(units * UNIT - 13_000))])


async def test_only_tenant_takes_all_that_is_free(scene: Scene) -> None:
    del scene.store.has[OTHER]
    for number in range(MOST):
        await scene.keep(ONE, code(1, f"{number}"))
    with pytest.raises(NoCapacity, match="There is no room for"):
        await scene.keep(ONE, code(1, "more"))


async def test_operator_sets_the_share_of_one_of_several_tenants(scene: Scene) -> None:
    scene.space = CodeSpace(0.8)
    for number in range(8):
        await scene.keep(ONE, code(1, f"{number}"))
    with pytest.raises(QuotaExceeded, match=r"80%.*limits\.code_share"):
        await scene.keep(ONE, code(1, "more"))


async def test_code_of_a_call_that_ends_while_another_one_looks_counts(scene: Scene) -> None:
    await scene.stored(OTHER, code(3, "others"))
    async with AsyncExitStack() as first:
        await first.enter_async_context(scene.reserved(ONE, code(3, "first")))
        scene.store.asked.clear()
        scene.store.go_on.clear()
        second = asyncio.create_task(scene.keep(ONE, code(3, "second")))
        await scene.store.asked.wait()
        await scene.stored(ONE, code(3, "first"))
    scene.store.go_on.set()
    with pytest.raises(QuotaExceeded):
        await second


async def test_uploads_of_one_tenant_that_are_unpacked_count_each_other(scene: Scene) -> None:
    await scene.stored(OTHER, code(4, "others"))
    first, second = code(1.8, "first"), code(1.8, "second")
    await scene.bundles.put(first)
    await scene.bundles.put(second)
    async with scene.reserved(ONE, first):
        with pytest.raises(QuotaExceeded):
            await scene.keep(ONE, second)
    await scene.keep(ONE, second)


async def test_one_stored_code_asked_for_again_and_again_takes_no_space_of_others(scene: Scene) -> None:
    await scene.stored(ONE, code(5, "large"))
    await scene.stored(OTHER, code(1, "others"))
    async with AsyncExitStack() as held:
        for _ in range(100):
            await held.enter_async_context(scene.reserved(ONE, code(5, "large")))
        await scene.keep(OTHER, code(1, "small"))


async def test_calls_that_are_refused_take_no_space_of_others(scene: Scene) -> None:
    await scene.stored(ONE, code(5, "large"))
    scene.store.asked.clear()
    scene.store.go_on.clear()
    asked = [asyncio.create_task(scene.keep(ONE, code(3, f"{number}"))) for number in range(10)]
    await scene.store.asked.wait()
    small = asyncio.create_task(scene.keep(OTHER, code(1, "small")))
    scene.store.go_on.set()
    await small
    assert all(isinstance(one, QuotaExceeded) for one in await asyncio.gather(*asked, return_exceptions=True))


async def test_tenant_that_has_its_share_deploys_once_it_has_dropped_code(scene: Scene) -> None:
    await scene.stored(ONE, code(5, "large"))
    await scene.stored(OTHER, code(1, "others"))
    for _ in range(3):
        with pytest.raises(QuotaExceeded):
            await scene.keep(ONE, code(2, "more"))
    scene.store.has[ONE].clear()
    await scene.bundles.delete(code(5, "large").hash)
    await scene.keep(ONE, code(2, "more"))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with fake_world(kept_versions=2) as world, world.reconciling():
        await world.tenant("neighbour")
        yield world


def app(number: int) -> tuple[BundleFile, ...]:
    return MAIN, BundleFile("noise", f"{number:08}".encode() * (UNIT // 8))


async def test_deployment_in_place_of_an_old_version_is_let_through_and_removes_it(world: World) -> None:
    builder = await world.create(*app(1))
    await world.deploy(builder, *app(2))
    used = (await world.bundles.space()).used
    world.bundles.most_bytes = used * 3 // 2
    await world.deploy(builder, *app(3))
    assert set(world.bundles.stored) == {make_bundle(app(2)).hash, make_bundle(app(3)).hash}
    with pytest.raises(QuotaExceeded):
        await world.ask(*app(4), name="another")


async def test_old_version_whose_code_another_builder_has_makes_no_place(world: World) -> None:
    builder = await world.create(*app(1))
    await world.ask(*app(1), name="another")
    await world.deploy(builder, *app(2))
    world.bundles.most_bytes = (await world.bundles.space()).used * 3 // 2
    with pytest.raises(QuotaExceeded):
        await world.deploy(builder, *app(3))
