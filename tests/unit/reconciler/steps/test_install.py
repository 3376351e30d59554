"""Builds take turns within bounds; private indexes get a layer of their own, and leave no secret."""

from __future__ import annotations

import asyncio

import pytest
from tests.application import MAIN, REQUIREMENTS, World

from builderd.builders import service as builders
from builderd.builders.model import Builder
from builderd.code.model import BundleFile
from builderd.core.errors import InstallFailed
from builderd.core.resources import GB
from builderd.credentials import service as credentials
from builderd.dependencies.model import BuildOutcome, LayerPlan
from builderd.engine.port import Progress
from builderd.money import admission
from builderd.reconciler import builds
from builderd.tokens.limits import TenantLimit, TenantLimits


async def test_build_log_is_written_during_the_build(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "FLUSH_INTERVAL", 0.001)
    go_on = asyncio.Event()

    async def build(_: LayerPlan, progress: Progress) -> BuildOutcome:
        progress("Downloading flask")
        await go_on.wait()
        progress("Failed")
        return BuildOutcome(1, ("no",), 1)

    monkeypatch.setattr(world.engine, "build_layer", build)
    async with world.reconciling():
        builder = await world.ask(MAIN, REQUIREMENTS)
        await world.until(lambda: world.build_log(builder))
        assert [line.text for line in await world.build_log(builder)] == ["Downloading flask"]
        go_on.set()
        await world.until_reason(builder, "no")
    assert [line.text for line in await world.build_log(builder)] == ["Downloading flask", "Failed"]


async def test_a_build_that_prints_without_end_is_cut(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def build(plan: LayerPlan, progress: Progress) -> BuildOutcome:
        for number in range(3 * builds.MAX_LINES):
            progress(f"{number} {'x' * 10_000 if number < 10 else ''}")
        world.engine.known_layers[plan.key] = 1
        return BuildOutcome(0, (), 1)

    monkeypatch.setattr(world.engine, "build_layer", build)
    async with world.reconciling():
        builder = await world.create(MAIN, REQUIREMENTS)
    lines = [line.text for line in await world.build_log(builder)]
    assert len(lines) == builds.MAX_LINES
    assert "left out" in lines[-1]
    assert max(len(line) for line in lines) == builds.MAX_CHARACTERS


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
        world.engine.known_layers[plan.key] = 1
        return BuildOutcome(0, (), 1)

    monkeypatch.setattr(world.engine, "build_layer", build)
    monkeypatch.setattr(builds, "MAX_BUILDS", 5)
    async with world.reconciling():
        greedy = [await ask_for(world, f"greedy{number}") for number in range(6)]
        await world.until(lambda: len(going) == builds.MAX_OF_TENANT)
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


def limited(world: World, layers: float) -> None:
    """Let each tenant have so many GB of layers."""
    limits = TenantLimits(default=TenantLimit(layers=layers))
    object.__setattr__(world.application, "tenant_limits", limits)


async def test_layers_of_a_tenant_are_limited_and_those_of_a_neighbour_are_not(world: World) -> None:
    limited(world, 1)
    async with world.reconciling():
        first = await world.outcome(await ask_for(world, "first"))
        (key,) = world.engine.known_layers
        world.engine.layer_bytes[key] = int(0.99 * GB)
        with pytest.raises(InstallFailed, match=r"0\.99 GB of the 1\.00 GB .*tenant\.layers"):
            await world.outcome(await ask_for(world, "second"))
        assert list(world.engine.known_layers) == [key]
        greedy, world.caller = world.caller, await world.tenant("modest")
        await world.outcome(await ask_for(world, "modest"))
        world.caller = greedy
        # What it has goes on, also in a new version.
        await world.deploy(first, MAIN, BundleFile("requirements.txt", b"first"), port=8001)


async def test_a_build_may_have_what_is_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(world, 1)
    plans: list[LayerPlan] = []
    real = world.engine.build_layer

    async def build(plan: LayerPlan, progress: Progress) -> BuildOutcome:
        plans.append(plan)
        return await real(plan, progress)

    monkeypatch.setattr(world.engine, "build_layer", build)
    async with world.reconciling():
        await world.outcome(await ask_for(world, "first"))
        (key,) = world.engine.known_layers
        world.engine.layer_bytes[key] = int(0.25 * GB)
        await world.outcome(await ask_for(world, "second"))
    assert [(one.tenant, one.limit_bytes) for one in plans] == [
        (world.caller.tenant_id, GB),
        (world.caller.tenant_id, GB - int(0.25 * GB)),
    ]


async def test_unused_layers_count_for_their_builder_until_they_make_room(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(world, 1)
    async with world.reconciling():
        first = await world.outcome(await ask_for(world, "first"))
        (key,) = world.engine.known_layers
        world.engine.layer_bytes[key] = int(0.999 * GB)
        await world.reached(builders.delete, first)
        with pytest.raises(InstallFailed):
            await world.outcome(await ask_for(world, "second"))
        assert key in world.engine.known_layers, "it was asked for just before"
        monkeypatch.setattr(admission, "JUST_ASKED", 0.0)
        await world.outcome(await ask_for(world, "third"))
        assert key not in world.engine.known_layers


async def test_layer_of_another_tenant_counts_for_its_user(world: World) -> None:
    limited(world, 1)
    async with world.reconciling():
        await world.outcome(await ask_for(world, "shared"))
        (key,) = world.engine.known_layers
        world.engine.layer_bytes[key] = int(0.6 * GB)
        world.caller = await world.tenant("second")
        await world.outcome(await ask_for(world, "own"))
        (other,) = set(world.engine.known_layers) - {key}
        world.engine.layer_bytes[other] = int(0.6 * GB)
        with pytest.raises(InstallFailed, match=r"these dependencies take 0\.60 GB more"):
            await world.outcome(await world.ask(MAIN, BundleFile("requirements.txt", b"shared"), name="late"))
        assert set(world.engine.known_layers) == {key, other}


async def test_files_that_are_not_read_are_named_in_the_log(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(MAIN, BundleFile("Pipfile", b"[packages]\n"), BundleFile(".env", b"A=1\n"))
    lines = [line.text for line in await world.build_log(builder)]
    assert [line.partition(" ")[0] for line in lines] == [".env", "Pipfile"]


@pytest.mark.usefixtures("claims_outlast_fake_time")
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    ("kind", "charged"),
    [("", []), ("needs_build", [60]), ("may_run_code", [60]), ("has_fallback", [60])],
    ids=["wheels", "from source", "npm", "from source after wheels"],
)
async def test_installs_that_may_run_code_of_packages_are_charged(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: str, charged: list[int], *, fails: bool
) -> None:
    if kind:
        setattr(world.installer, kind, True)

    async def build(plan: LayerPlan, _: Progress) -> BuildOutcome:
        world.clock.move(60)
        if fails or (kind == "has_fallback" and not plan.runs_foreign_code):
            return BuildOutcome(1, ("no",), 60.0)
        world.engine.known_layers[plan.key] = 1
        return BuildOutcome(0, (), 60.0)

    monkeypatch.setattr(world.engine, "build_layer", build)
    prices = world.application.prices
    async with world.reconciling():
        builder = await world.ask(MAIN, REQUIREMENTS)
        if fails:
            await world.until_reason(builder, "no")
        else:
            await world.outcome(builder)
            again = await world.create(MAIN, REQUIREMENTS, name="again")
            assert await world.trials(again) == []
    trials = await world.trials(builder)
    assert [one.seconds(world.clock.now()) for one in trials] == charged
    assert {one.hourly_rate for one in trials} <= {2 * (prices.cpu + prices.memory)}
    assert await world.read(lambda uow: uow.open_builds.all()) == []


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
