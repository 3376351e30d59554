"""Calls take as many statements with many builders as with few, and sum where the rows are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from functools import partial

import pytest
from tests.application import World
from tests.contract.store.samples import make_builder, make_sandbox, make_version
from tests.statements import statements

from builderd.builders import service as builders
from builderd.builders.model import Builder, Candidate, Desired, Status
from builderd.builders.store import BuilderQuery
from builderd.core.ids import SandboxId
from builderd.database.unit_of_work import UnitOfWork
from builderd.metrics import service as metrics
from builderd.money import caps, job
from builderd.money import service as spending
from builderd.money.model import Billing, Segment, month_of
from builderd.previews import service as preview_links
from builderd.previews.model import Address, Route, RouteState, closed_route
from builderd.reconciler.reconciler import Reconciler, sweep
from builderd.versions.model import VersionSettings

FEW, MANY = 5, 500


async def stop_many(world: World, number: int) -> list[Builder]:
    """Store so many stopped builders of the caller, with a closed route, a month's costs and an open segment."""
    made = await world.application.store.write(lambda uow: [stopped(uow, world) for _ in range(number)])
    for one in made:
        await world.previews.put(Route(one.host, RouteState.STOPPED))
    return made


def stopped(uow: UnitOfWork, world: World) -> Builder:
    now, tenant = world.clock.now(), world.caller.tenant_id
    builder = make_builder(
        tenant_id=tenant, desired=Desired.STOPPED, status=Status.STOPPED, observed_generation=1, created_at=now
    )
    uow.builders.add(builder)
    uow.versions.add(make_version(builder.id, settings=VersionSettings("python3 main.py", processes={"worker": "x"})))
    begun = now - timedelta(hours=1)
    uow.ledger.open(Segment(tenant, builder.id, Billing.RUNNING, begun, now, Decimal("0.2")))
    uow.ledger.open(Segment(tenant, builder.id, Billing.STOPPED, now, None, Decimal("0.1")))
    return builder


Call = Callable[[UnitOfWork, World], object]


def shown(uow: UnitOfWork, world: World) -> object:
    now = world.clock.now()
    found = uow.builder_lists.shown(world.caller.tenant_id, BuilderQuery(per_page=100), now)
    return uow.metrics.loads([one.id for one in found], now - timedelta(days=1), timedelta(minutes=30))


def listed(uow: UnitOfWork, world: World) -> object:
    query = BuilderQuery(per_page=100)
    return builders.list_page(uow, world.application, world.caller.tenant_id, query, world.clock.now())


def report(uow: UnitOfWork, world: World) -> object:
    return spending.report(uow, world.application, world.caller.tenant_id, world.clock.now(), spending.Span())


def dearest(uow: UnitOfWork, world: World) -> object:
    now, tenant = world.clock.now(), world.caller.tenant_id
    return spending.dearest(uow, world.application, tenant, now, month_of(now), limit=1_000)


def judge(uow: UnitOfWork, world: World) -> object:
    return job.judge(uow, world.application, world.caller.tenant_id, world.clock.now())


def check(uow: UnitOfWork, world: World) -> None:
    caps.check(uow, world.application, world.caller.tenant_id, None, world.clock.now())


CALLS: dict[str, Call] = {
    "list": listed,
    "page of the list": shown,
    "dearest": dearest,
    "spending": report,
    "judge of caps": judge,
    "check of caps": check,
    "view of a cap": lambda uow, world: caps.view_of_tenant(
        uow, world.application, world.caller.tenant_id, world.clock.now()
    ),
    "bundles in use": lambda uow, _: metrics.used_bundles(uow, [f"{number:064x}" for number in range(50)]),
}


@pytest.mark.parametrize("capped", [False, True])
async def test_number_of_statements_does_not_grow(world: World, capped: bool) -> None:
    if capped:
        await world.application.store.write(lambda uow: uow.tenants.cap(world.caller.tenant_id, Decimal(1000)))
    counts: list[dict[str, int]] = []
    for number in (FEW, MANY - FEW):
        await stop_many(world, number)
        counts.append({name: await _number_of_statements(world, call) for name, call in CALLS.items()})
    assert counts[0] == counts[1]
    assert counts[0]["list"] == 8


async def _number_of_statements(world: World, call: Call) -> int:
    with statements(world.application.store) as seen:
        await world.read(lambda uow: call(uow, world))
    return len(seen)


async def test_start_reads_only_builders_whose_route_is_lost(world: World) -> None:
    lost, *kept = await stop_many(world, FEW)
    store = world.application.store
    known = {one.host for one in kept}
    with statements(store) as seen:
        assert await preview_links.lost_routes(store, known) == [closed_route(lost)]
        assert await preview_links.lost_routes(store, {*known, lost.host}) == []
    assert [one.split(" \n")[0].count(",") > 0 for one in seen] == [False, True, False]
    await stop_many(world, MANY)
    assert len(await preview_links.lost_routes(store, known)) == MANY + 1


@pytest.mark.parametrize(
    "change",
    [
        {"desired": Desired.RUNNING},
        {"status": Status.RUNNING},
        {"generation": 2},
        {"candidate": Candidate(1)},
        {"spare_disks": ("disk",)},
    ],
)
async def test_sweep_makes_a_builder_due_that_is_not_at_rest(world: World, change: dict[str, object]) -> None:
    """A fault lost its due time: the sweep is what finds it."""
    builder, *_ = await stop_many(world, FEW)
    await world.application.store.write(lambda uow: _change(uow, builder, change))
    await sweep(world.application, ())
    assert await world.read(lambda uow: uow.builders.due(world.clock.now(), 10)) == [builder.id]


def _change(uow: UnitOfWork, builder: Builder, change: dict[str, object]) -> None:
    stored = uow.builders.get(builder.id, lock=True)
    assert stored is not None
    uow.builders.save(replace(stored, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "route", [None, RouteState.OPEN, RouteState.STARTING], ids=["no route", "an open route", "one that never closed"]
)
async def test_sweep_makes_a_stopped_builder_due_with(world: World, route: RouteState | None) -> None:
    builder, *_ = await stop_many(world, FEW)
    if route is None:
        await world.previews.remove(builder.host)
    else:
        destination = Address("10.0.0.1", 80) if route is RouteState.OPEN else None
        await world.previews.put(Route(builder.host, route, destination))
    await sweep(world.application, ())
    assert await world.read(lambda uow: uow.builders.due(world.clock.now(), 10)) == [builder.id]


async def test_sweep_makes_a_stopped_builder_with_an_open_sandbox_due(world: World) -> None:
    builder, *_ = await stop_many(world, FEW)
    sandbox = make_sandbox(builder.id, id=SandboxId("left-over"))
    await world.application.store.write(lambda uow: uow.sandboxes.add(sandbox))
    await sweep(world.application, ())
    assert await world.read(lambda uow: uow.builders.due(world.clock.now(), 10)) == [builder.id]


async def test_claims_of_a_process_before_are_released_at_once(world: World) -> None:
    made = await stop_many(world, 3)
    now, owner = world.clock.now(), world.application.instance
    until = now + timedelta(seconds=30)
    for builder, who in zip(made, (owner, "another", owner), strict=True):
        await world.application.store.write(partial(_claim, builder=builder, owner=who, world=world))
    await Reconciler(world.application)._release_claims()
    due = await world.read(lambda uow: uow.builders.due(until - timedelta(seconds=1), 10))
    assert set(due) == {made[0].id, made[2].id}


def _claim(uow: UnitOfWork, builder: Builder, owner: str, world: World) -> None:
    now = world.clock.now()
    assert uow.builders.claim(builder.id, owner, now, now + timedelta(seconds=30))
