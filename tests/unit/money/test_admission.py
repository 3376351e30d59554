"""Quotas, caps and capacity are enforced, and refusals have the numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.application import World

from builderd.builders import service as builders
from builderd.builders.model import Builder, Desired, Status
from builderd.code.model import BundleFile
from builderd.core.errors import NoCapacity, QuotaExceeded
from builderd.core.resources import Capacity, Limit, Resources
from builderd.database.unit_of_work import UnitOfWork
from builderd.money import admission
from builderd.tokens.limits import TenantLimit, TenantLimits


def allow(world: World, **quota: float) -> World:
    tenant_limits = TenantLimits(default=TenantLimit(Limit(**quota)))  # type: ignore[arg-type]
    return replace(world, application=replace(world.application, tenant_limits=tenant_limits))


async def stopped(world: World, builder: Builder) -> Builder:
    return await world.change(
        builder, desired=Desired.STOPPED, status=Status.STOPPED, observed_generation=builder.generation
    )


async def resize(world: World, builder: Builder, wanted: Resources) -> None:
    now = world.clock.now()

    def admit(uow: UnitOfWork) -> None:
        version = uow.versions.get(builder.id, builder.version)
        assert version is not None
        wider = replace(version, number=2, settings=replace(version.settings, resources=wanted))
        resized = replace(builder, version=2)
        admission.admit_change(uow, world.application, builder, resized, now, version=wider)

    await world.application.store.write(admit)


@pytest.mark.parametrize(
    ("quota", "message"),
    [
        ({"builders": 1}, "builders: 1 of 1 builders are allocated, and 1 more are requested"),
        ({"running_builders": 1}, "running_builders: 1 of 1 running builders are allocated"),
        ({"cpu": 1.5}, "cpu: 1 of 1.5 vCPU are allocated, and 1 more are requested"),
        ({"memory": 1.5}, "memory: 1 of 1.5 GB of memory are allocated"),
        ({"disk": 5}, "disk: 3 of 5 GB of disk are allocated, and 3 more are requested"),
    ],
)
async def test_each_quota_is_named_with_its_numbers(world: World, quota: dict[str, float], message: str) -> None:
    world = allow(world, **quota)
    await world.ask(name="first")
    with pytest.raises(QuotaExceeded) as refused:
        await world.ask(name="second")
    assert message in refused.value.message
    (name,) = quota
    assert refused.value.data[name]["limit"] == quota[name]
    assert [
        one.name for one in await world.read(lambda uow: uow.builders.of_tenant(world.caller.tenant_id, deleted=True))
    ] == ["first"]


async def test_all_exceeded_limits_are_reported(world: World) -> None:
    world = allow(world, builders=0, cpu=0.5)
    with pytest.raises(QuotaExceeded, match=r"builders: .*; cpu: "):
        await world.ask()


async def test_request_at_the_limit_is_admitted(world: World) -> None:
    world = allow(world, builders=2, running_builders=2, cpu=0.6, memory=2, disk=6)
    for name in ("one", "two"):
        await world.ask(name=name, resources=Resources(0.3, 1, 3))


async def test_a_stopped_builder_holds_its_disk_only(world: World) -> None:
    world = allow(world, running_builders=1, disk=6)
    first = await world.ask(name="first")
    await stopped(world, first)
    second = await world.ask(name="second")
    with pytest.raises(QuotaExceeded, match="running_builders"):
        await world.want(builders.start, first)
    with pytest.raises(QuotaExceeded, match="disk"):
        await stopped(world, second) and await world.ask(name="third")
    await world.want(builders.start, first)


async def test_a_deleted_builder_holds_nothing(world: World) -> None:
    world = allow(world, builders=1)
    await world.want(builders.delete, await world.ask())
    await world.ask()


async def test_a_running_builder_may_be_started_and_restarted_at_its_quota(world: World) -> None:
    world = allow(world, running_builders=1)
    builder = await world.change(await world.ask(), status=Status.RUNNING, observed_generation=1)
    await world.want(builders.start, builder)
    await world.want(builders.restart, builder)


async def test_quotas_are_the_tenants_own(world: World) -> None:
    tenant_limits = TenantLimits(TenantLimit(Limit(builders=0)), {"acme": TenantLimit(Limit(builders=1))})
    world = replace(world, application=replace(world.application, tenant_limits=tenant_limits))
    await world.ask()
    with pytest.raises(QuotaExceeded):
        await replace(world, caller=await world.tenant("zeta")).ask()


async def test_the_machine_is_promised_so_many_times_and_no_more(world: World) -> None:
    world.engine.has = Capacity(cpu=2, memory=100, disk=100)
    factors = TenantLimits(cpu_factor=1.5, memory_factor=1)
    world = replace(world, application=replace(world.application, tenant_limits=factors))
    for name in ("one", "two", "three"):
        await world.ask(name=name)
    with pytest.raises(
        NoCapacity, match="no room for it: cpu: 3 of 3 vCPU are allocated, and 1 more are requested"
    ) as full:
        await replace(world, caller=await world.tenant("zeta")).ask()
    assert full.value.retry_after
    assert set(full.value.data) == {"cpu"}


async def test_disks_are_promised_as_the_engine_says(world: World) -> None:
    world.engine.has = Capacity(cpu=100, memory=100, disk=4)
    await world.ask(name="one")
    with pytest.raises(NoCapacity, match=r"disk: 3 of 4 GB of disk.*stopping one frees no disk"):
        await world.ask(name="two")


async def test_growing_is_held_against_the_quota_and_shrinking_never_is(world: World) -> None:
    world = allow(world, cpu=2, memory=1)
    builder = await world.ask()
    await resize(world, builder, Resources(2, 1, 3))
    with pytest.raises(QuotaExceeded, match=r"cpu: 1 of 2 vCPU are allocated, and 1\.5 more"):
        await resize(world, builder, Resources(2.5, 1, 3))
    tight = allow(world, cpu=0.5, memory=0.5, disk=1)
    await resize(tight, builder, Resources(0.5, 0.5, 3))


async def test_a_stopped_builder_may_be_given_more_than_could_run_now(world: World) -> None:
    world = allow(world, cpu=1)
    builder = await stopped(world, await world.ask())
    await resize(world, builder, Resources(2, 1, 3))


async def test_a_version_of_one_that_never_was_up_is_admitted_like_any_other(world: World) -> None:
    """Wanted stopped after its start failed, and wanted running while the next one is pending."""
    world = allow(world, cpu=1, memory=1, disk=5)
    builder = await world.change(
        await world.ask(), desired=Desired.STOPPED, status=Status.FAILED, observed_generation=1
    )
    with pytest.raises(QuotaExceeded, match="disk: 3 of 5 GB of disk are allocated, and 97 more"):
        await world.put(builder, resources={"disk": 100})
    assert await world.put(builder, resources={"disk": 4}) == 2
    with pytest.raises(QuotaExceeded, match=r"cpu: 1 of 1 vCPU .*; memory: 1 of 1 GB"):
        await world.put(builder, resources={"cpu": 8, "memory": 16})


async def test_versions_of_two_that_rest_cannot_both_have_the_last_place(world: World) -> None:
    world = allow(world, running_builders=1)
    async with world.reconciling():
        both = []
        for name in ("one", "two"):
            both.append(await world.create(name=name))
            await world.reached(builders.stop, both[-1])
    await world.put(both[0], BundleFile("main.py", b"2\n"))
    with pytest.raises(QuotaExceeded, match="running_builders: 1 of 1"):
        await world.put(both[1], BundleFile("main.py", b"2\n"))


async def test_serving_version_is_reserved_until_the_take_over(world: World) -> None:
    world = allow(world, cpu=4)
    async with world.reconciling():
        builder = await world.create(name="one", resources=Resources(4, 1, 3))
    await world.put(builder, BundleFile("main.py", b"2\n"), resources={"cpu": 0.25})
    with pytest.raises(QuotaExceeded, match="cpu: 4 of 4"):
        await world.ask(name="two", resources=Resources(3.75, 1, 3))
    await world.put(builder, BundleFile("main.py", b"3\n"), resources={"cpu": 4})
    async with world.reconciling():
        await world.deployed(builder, 3)


async def test_a_version_that_replaces_another_is_asked_for_the_difference(world: World) -> None:
    world = allow(world, cpu=8)
    async with world.reconciling():
        builder = await world.create(resources=Resources(1, 1, 3))
    await world.put(builder, resources={"cpu": 8})
    assert await world.put(builder, resources={"cpu": 7}) == 3
