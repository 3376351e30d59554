"""Private indexes of a version's credentials: a layer of its own, and no secret in its log, message or record."""

from __future__ import annotations

import pytest
from tests.application import MAIN, REQUIREMENTS, World

from builderd.domain.errors import InstallFailed
from builderd.domain.layers import BuildOutcome, LayerPlan
from builderd.ports.engine import Progress
from builderd.services import credentials

PASSWORD = "hidden-password"
URL = f"https://robot:{PASSWORD}@pypi.example/simple"


async def store_credential(world: World, **values: str) -> None:
    now, tenant = world.clock.now(), world.caller.tenant_id
    await world.application.store.write(
        lambda uow: credentials.put(uow, world.application.vault, tenant, "index", values, now)
    )


async def test_layer_of_a_private_index_is_another_one(world: World) -> None:
    await store_credential(world, PIP_INDEX_URL=URL)
    async with world.reconciling():
        public = await world.create(MAIN, REQUIREMENTS)
        private = await world.create(MAIN, REQUIREMENTS, name="private", credentials=("index",))
        again = await world.create(MAIN, REQUIREMENTS, name="again", credentials=("index",))
        keys = [(await world.version(one)).layer_key for one in (public, private, again)]
        assert keys[0] != keys[1] == keys[2]
        assert PASSWORD not in repr(await world.version(private))


async def test_secret_that_an_index_repeats_is_masked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await store_credential(world, PIP_INDEX_URL=URL)

    async def build(plan: LayerPlan, progress: Progress) -> BuildOutcome:
        (secret,) = {step.secrets["UV_INDEX_PRIVATE_PASSWORD"] for step in plan.steps}
        progress(f"401 for {secret}")
        return BuildOutcome(1, (f"401 for {secret}",), 1.0)

    monkeypatch.setattr(world.engine, "build_layer", build)
    async with world.reconciling():
        builder = await world.ask(MAIN, REQUIREMENTS, credentials=("index",))
        with pytest.raises(InstallFailed) as failure:
            await world.outcome(builder)
        assert failure.value.message == "401 for [credential masked]"
        assert any("401 for [credential masked]" in line.text for line in await world.build_log(builder))
        texts = f"{await world.build_log(builder)} {await world.events(builder)} {await world.builder(builder)}"
        assert PASSWORD not in texts


async def test_value_that_is_no_index_fails_the_install_by_its_name(world: World) -> None:
    await store_credential(world, PIP_INDEX_URL=f"robot:{PASSWORD}")
    async with world.reconciling():
        with pytest.raises(InstallFailed, match=r"credentials index: PIP_INDEX_URL must be an address") as failure:
            await world.create(MAIN, REQUIREMENTS, credentials=("index",))
        assert PASSWORD not in failure.value.message
