"""A background job looks at once after a change that concerns it, after no other, and finds a missed one by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from tests.application import World
from tests.domains.claims import add as add_domain

from builderd.backups import job as schedule
from builderd.backups import service as backups
from builderd.backups.job import BackupSchedule
from builderd.backups.model import BackupKind
from builderd.builders.model import Builder
from builderd.core.loops import no_fault
from builderd.database.connection import Kind, Writes
from builderd.domains import renewal as domains
from builderd.domains.renewal import DomainJob
from builderd.events.model import SYSTEM
from builderd.qa import job as reporting
from builderd.qa import service as qa
from builderd.qa.job import Reporting
from builderd.webhooks import job as webhooks
from builderd.webhooks import service as hooks
from builderd.webhooks.job import WebhookJob

SECRET = "a secret of the right length"
#: Reads of the store in which a job that was woken has looked, which takes it a few.
TURNS = 20


async def plan_backup(world: World, builder: Builder) -> None:
    now = world.clock.now()
    await world.application.store.write(
        lambda uow: backups.plan(uow, world.application, builder, BackupKind.SCHEDULED, SYSTEM, now)
    )


async def claim_domain(world: World, builder: Builder) -> None:
    await add_domain(world, builder)


async def make_hook(world: World, builder: Builder) -> None:
    url, now = "https://example.com/one", world.clock.now()
    await world.application.store.write(
        lambda uow: hooks.create(uow, world.application, world.caller, url, ["*"], SECRET, now)
    )


async def want_report(world: World, builder: Builder) -> None:
    now = world.clock.now()
    await world.application.store.write(lambda uow: qa.want_report(uow, builder.id, 1, SYSTEM, now))


class Job(NamedTuple):
    module: ModuleType
    interval: str
    kind: type[Any]
    look: str
    change: Callable[[World, Builder], Awaitable[None]]


JOBS = {
    "backups": Job(schedule, "POLL_INTERVAL", BackupSchedule, "begin_open", plan_backup),
    "domains": Job(domains, "LOOK_INTERVAL", DomainJob, "poll", claim_domain),
    "webhooks": Job(webhooks, "LOOK_INTERVAL", WebhookJob, "poll", make_hook),
    "reports": Job(reporting, "INTERVAL", Reporting, "_remove_leftovers", want_report),
}
each_job = pytest.mark.parametrize("name", JOBS)


@asynccontextmanager
async def watched(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str, *, interval: float = 1_000
) -> AsyncIterator[tuple[list[str], Any]]:
    """Let the job work, with looks ``interval`` seconds apart; yield the looks so far, and the job."""
    job, looks = JOBS[name], list[str]()
    monkeypatch.setattr(job.module, job.interval, interval)
    monkeypatch.setattr(job.module, "LEAST_INTERVAL", 0.0)
    look = getattr(job.kind, job.look)

    async def counted(self: Any) -> Any:
        found = await look(self)
        looks.append(name)
        return found

    monkeypatch.setattr(job.kind, job.look, counted)
    works = job.kind(world.application, no_fault) if name == "reports" else job.kind(world.application)
    running = asyncio.create_task(works.run())
    try:
        await world.until(lambda: looks)
        yield looks, works
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@each_job
async def test_a_change_of_its_kind_wakes_it_at_once(world: World, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    builder = await world.ask()
    async with watched(world, monkeypatch, name) as (looks, works):
        before = len(looks)
        await JOBS[name].change(world, builder)
        if name == "reports":
            works.request_report()  # as the reconciler does once a builder is settled
        await world.until(lambda: len(looks) > before)


def waits(world: World, name: str) -> bool:
    """Return True while the job has not been woken since its last look."""
    store = world.application.store
    waiting = [future for future, kinds in store._writes._waiting.items() if Kind(name) in kinds]
    return bool(waiting) and not any(future.done() for future in waiting)


@pytest.mark.parametrize("name", sorted(JOBS.keys() - {"reports", "webhooks"}))
async def test_other_changes_do_not_wake_it(world: World, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    builder = await world.ask()
    async with watched(world, monkeypatch, name) as (looks, _):
        await world.until(lambda: waits(world, name))
        before = len(looks)
        await world.ask(name="another")
        for other in JOBS.keys() - {name}:
            await JOBS[other].change(world, builder)
        world.application.signals.change(builder.id)
        world.application.signals.progress(builder.id)
        for _ in range(TURNS):
            await world.read(lambda _: None)
        assert waits(world, name)
        assert len(looks) == before


@each_job
async def test_a_missed_change_is_found_by_the_next_look(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(Writes, "add", lambda *_: None)
    builder = await world.ask()
    async with watched(world, monkeypatch, name, interval=0.01) as (looks, _):
        await JOBS[name].change(world, builder)
        before = len(looks)
        await world.until(lambda: len(looks) > before + 1)


async def test_a_write_counts_also_when_its_caller_has_gone(world: World) -> None:
    store = world.application.store
    builder, before = await world.ask(), store.writes(Kind.BACKUPS)
    planning = asyncio.create_task(plan_backup(world, builder))
    await asyncio.sleep(0)
    planning.cancel()
    await asyncio.gather(planning, return_exceptions=True)
    assert store.writes(Kind.BACKUPS) == before + bool(await world.read(lambda uow: uow.backups.of_builder(builder.id)))
    assert store.writes(Kind.BACKUPS) == before + 1


async def test_a_failed_transaction_counts_as_no_write(world: World) -> None:
    store = world.application.store
    builder, before = await world.ask(), store.writes(*Kind)

    def fails(uow: Any) -> None:
        backups.plan(uow, world.application, builder, BackupKind.SCHEDULED, SYSTEM, world.clock.now())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.write(fails)
    assert store.writes(*Kind) == before
