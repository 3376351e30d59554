"""Several stores on one database, as several control planes have them: one wins, and nothing is lost or overlooked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.application import World, fake_world
from tests.contract.store.samples import (
    NOW,
    SECOND,
    TENANT,
    add,
    add_builder,
    claim,
    due,
    event_ids,
    make_builder,
    make_due,
    make_event,
    make_record,
    make_sandbox,
    make_webhook,
)
from tests.stores import open_store

from builderd.backups import service as backups
from builderd.backups.model import BackupKey
from builderd.backups.port import RepositoryDamaged
from builderd.backups.upkeep import BackupContext, mark
from builderd.builders.model import Builder
from builderd.builders.service import Caller
from builderd.core.errors import Conflict, NameTaken
from builderd.core.ids import BuilderId, new_id
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.events.model import Delivery, Webhook
from builderd.idle import job as idle
from builderd.previews.model import PreviewActivity
from builderd.reconciler.reconciler import Reconciler, sweep
from builderd.webhooks import service as webhooks

ROUNDS = 20


@pytest.fixture
async def one(shared_url: str) -> AsyncIterator[Store]:
    async with open_store(shared_url) as store:
        await add(store, TENANT)
        yield store


@pytest.fixture
async def two(one: Store, shared_url: str) -> AsyncIterator[Store]:
    async with open_store(shared_url) as store:
        yield store


class Pause:
    """Holds a unit of work open in the middle, until it is let go."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._release_claims = threading.Event()

    def here(self) -> None:
        self._reached.set()
        assert self._release_claims.wait(30), "nobody let the unit of work go on"

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, 30)

    async def let_go_after(self, task: asyncio.Task[Any]) -> None:
        """Release the lock when the task is done, which shows that it did not wait; or soon, if it waits."""
        await asyncio.wait({task}, timeout=0.3)
        self._release_claims.set()


async def test_work_under_a_claim_is_recorded_before_a_takeover(one: Store, two: Store) -> None:
    builder = (await add_builder(one)).id
    await claim(one, builder, "one", NOW, 1)
    pause, order = Pause(), []

    def record(uow: UnitOfWork) -> None:
        assert uow.builders.get_held(builder, "one", NOW)
        pause.here()
        order.append("recorded")

    def take_over(uow: UnitOfWork) -> None:
        assert uow.builders.claim(builder, "two", NOW + SECOND, NOW + 2 * SECOND)
        order.append("taken over")

    recording = asyncio.create_task(one.write(record))
    await pause.reached()
    taking = asyncio.create_task(two.write(take_over))
    await pause.let_go_after(taking)
    await asyncio.gather(recording, taking)
    assert order == ["recorded", "taken over"]


async def test_spending_check_waits_for_a_concurrent_change(one: Store, two: Store) -> None:
    await one.write(lambda uow: uow.tenants.make_spending_due(TENANT.id, NOW))
    pause, order = Pause(), []

    def spend(uow: UnitOfWork) -> None:
        uow.tenants.make_spending_due(TENANT.id, NOW + SECOND)
        pause.here()
        order.append("spent")

    def look(uow: UnitOfWork) -> None:
        assert uow.tenants.postpone_spending(TENANT.id, NOW, NOW + 5 * SECOND)
        order.append("looked")

    spending = asyncio.create_task(one.write(spend))
    await pause.reached()
    looking = asyncio.create_task(two.write(look))
    await pause.let_go_after(looking)
    await asyncio.gather(spending, looking)
    assert order == ["spent", "looked"], "it is put off by who sees all that it was due for"


async def test_one_of_two_concurrent_creates_of_a_name_succeeds(one: Store, two: Store) -> None:
    for round_ in range(ROUNDS):
        name = f"app-{round_}"
        outcomes = await asyncio.gather(
            *(add_builder(store, name=name) for store in (one, two) * 3), return_exceptions=True
        )
        made = [outcome for outcome in outcomes if isinstance(outcome, Builder)]
        refused = [outcome.data["uuid"] for outcome in outcomes if isinstance(outcome, NameTaken)]
        assert (len(made), refused) == (1, [made[0].id] * 5)


async def test_one_of_two_concurrent_calls_with_a_retry_key_wins(one: Store, two: Store) -> None:
    for round_ in range(ROUNDS):
        record = make_record(key=f"key-{round_}")
        outcomes = await asyncio.gather(*(add(store, record) for store in (one, two) * 3), return_exceptions=True)
        assert sum(outcome is None for outcome in outcomes) == 1
        assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 5


async def test_one_of_two_concurrent_sandboxes_is_opened(one: Store, two: Store) -> None:
    builder = (await add_builder(one)).id
    outcomes = await asyncio.gather(
        add(one, make_sandbox(builder)), add(two, make_sandbox(builder, attempt=2)), return_exceptions=True
    )
    assert sum(outcome is None for outcome in outcomes) == 1
    assert await one.read(lambda uow: len(uow.sandboxes.list(builder))) == 1


async def test_changes_of_a_locked_builder_add_up(one: Store, two: Store) -> None:
    builder = (await add_builder(one)).id

    def count(uow: UnitOfWork) -> None:
        read = uow.builders.get(builder, lock=True)
        assert read is not None
        uow.builders.save(replace(read, generation=read.generation + 1))

    await asyncio.gather(*(store.write(count) for store in (one, two) * 100))
    found = await one.read(lambda uow: uow.builders.get(builder))
    assert found is not None
    assert found.generation == 201


async def test_reads_do_not_block_and_see_only_committed_data(one: Store, two: Store) -> None:
    pause = Pause()

    def write(uow: UnitOfWork) -> None:
        uow.builders.add(make_builder())
        pause.here()

    writing = asyncio.create_task(one.write(write))
    await pause.reached()
    async with asyncio.timeout(10):
        assert await two.read(lambda uow: uow.builders.ids()) == []
        assert await one.read(lambda uow: uow.builders.ids()) == []
    await pause.let_go_after(asyncio.create_task(asyncio.sleep(0)))
    await writing
    assert len(await two.read(lambda uow: uow.builders.ids())) == 1


async def test_read_sees_one_snapshot(one: Store, two: Store) -> None:
    await add_builder(one)
    pause = Pause()

    def read(uow: UnitOfWork) -> tuple[int, int]:
        before = len(uow.builders.ids())
        pause.here()
        return before, len(uow.builders.ids())

    reading = asyncio.create_task(one.read(read))
    await pause.reached()
    await add_builder(two)
    await pause.let_go_after(asyncio.create_task(asyncio.sleep(0)))
    assert await reading == (1, 1)


async def test_follower_misses_no_event_of_overlapping_transactions(one: Store, two: Store) -> None:
    builder = (await add_builder(one)).id
    pause = Pause()

    def slow(uow: UnitOfWork) -> int:
        event = uow.events.add(make_event(builder))
        pause.here()
        return event.id

    first = asyncio.create_task(one.write(slow))
    await pause.reached()
    second = asyncio.create_task(two.write(lambda uow: uow.events.add(make_event(builder)).id))
    await asyncio.wait({second}, timeout=0.3)
    seen = await event_ids(two, builder)
    await pause.let_go_after(second)
    added = list(await asyncio.gather(first, second))
    seen += await event_ids(two, builder, after=max(seen, default=0))
    assert seen == sorted(added)


async def test_each_due_builder_goes_to_one_of_two_services(one: Store, two: Store) -> None:
    builders = {(await add_builder(one)).id for _ in range(12)}
    for builder in builders:
        await make_due(one, builder, NOW)

    async def work(store: Store, owner: str) -> list[BuilderId]:
        taken = []
        while found := await due(store, NOW):
            taken += [builder for builder in found if await claim(store, builder, owner, NOW)]
        return taken

    taken = await asyncio.gather(work(one, "one"), work(two, "two"))
    assert sorted(taken[0] + taken[1]) == sorted(builders)


class PausedVault:
    """Finds everything sealed with an earlier key, and is held at one step of sealing it anew."""

    def __init__(self, step: str, pause: Pause) -> None:
        self._step = step
        self._pause = pause

    def seal(self, secret: bytes, place: str) -> bytes:
        self._reach("seal")
        return b"anew"

    def open(self, sealed: bytes, place: str) -> bytes:
        return sealed

    def check(self) -> None:
        """Find the keys readable."""

    def is_current(self, sealed: bytes) -> bool:
        self._reach("is_current")
        return False

    def _reach(self, step: str) -> None:
        if step == self._step:
            self._pause.here()


@pytest.mark.parametrize("step", ["is_current", "seal"])
async def test_resealing_a_webhook_keeps_its_cursor(one: Store, two: Store, step: str) -> None:
    webhook, pause = make_webhook(), Pause()
    await one.write(lambda uow: uow.webhooks.add(webhook))

    def move_on(uow: UnitOfWork) -> None:
        found = uow.webhooks.get(webhook.id, lock=True)
        assert found is not None
        uow.webhooks.save(replace(found, place=5, failures=2, held_until=NOW))

    sealing = asyncio.create_task(one.write(lambda uow: webhooks.reseal(uow, PausedVault(step, pause))))
    await pause.reached()
    moving = asyncio.create_task(two.write(move_on))
    await pause.let_go_after(moving)
    assert (await asyncio.gather(sealing, moving))[0] == 1
    moved = replace(webhook, secret=b"anew", place=5, failures=2, held_until=NOW)
    assert await one.read(lambda uow: uow.webhooks.get(webhook.id)) == moved


@pytest.mark.parametrize("step", ["is_current", "seal"])
async def test_resealing_and_checking_a_backup_key_lose_no_change(one: Store, two: Store, step: str) -> None:
    key, pause = BackupKey(TENANT.id, b"sealed", NOW, NOW, NOW), Pause()
    await one.write(lambda uow: uow.backup_keys.add(key))
    rules, clock = SimpleNamespace(check_every=SECOND), SimpleNamespace(now=lambda: NOW + 2 * SECOND)
    context = BackupContext(cast("Any", SimpleNamespace(backup_rules=rules, clock=clock)))
    damaged = RepositoryDamaged("damaged")

    sealing = asyncio.create_task(one.write(lambda uow: backups.reseal(uow, PausedVault(step, pause))))
    await pause.reached()
    checking = asyncio.create_task(two.write(lambda uow: mark(uow, context, TENANT.id, damaged)))
    await pause.let_go_after(checking)
    assert (await asyncio.gather(sealing, checking))[0] == 1
    both = replace(key, sealed=b"anew", checked_at=NOW + SECOND, fault="damaged")
    assert await one.read(lambda uow: uow.backup_keys.get(TENANT.id)) == both


def make_delivery(webhook: Webhook, event: int) -> Delivery:
    return Delivery(f"msg_{new_id()}", webhook.id, event, "builder.status", NOW, NOW)


@pytest.mark.parametrize("work", ["a delivery is made", "an attempt is recorded"])
async def test_webhook_can_be_deleted_during_a_delivery(one: Store, two: Store, work: str) -> None:
    webhook, pause, runs = make_webhook(), Pause(), []
    made, caller = make_delivery(webhook, 1), Caller(TENANT.id, "token ci")
    await one.write(lambda uow: uow.webhooks.add(webhook))
    await one.write(lambda uow: uow.deliveries.add(made))

    def write(uow: UnitOfWork) -> None:
        runs.append(work)
        if uow.webhooks.get(webhook.id, lock=True) is None:
            return
        pause.here()
        if work == "a delivery is made":
            uow.deliveries.add(make_delivery(webhook, 2))
        else:
            uow.deliveries.save(replace(made, due_at=NOW + SECOND))

    writing = asyncio.create_task(one.write(write))
    await pause.reached()
    deleting = asyncio.create_task(two.write(lambda uow: webhooks.delete(uow, caller, webhook.id, NOW)))
    await pause.let_go_after(deleting)
    await asyncio.gather(writing, deleting)
    assert runs == [work], "the two met in one order, and none was taken back"
    assert await one.read(lambda uow: uow.webhooks.get(webhook.id)) is None
    assert await one.read(lambda uow: uow.deliveries.page(webhook.id, page=1, per_page=9)) == ([], 0)


OPEN = PreviewActivity(1, 100, 200, 0, 0, idle_seconds=0)


@pytest.fixture
async def world(two: Store) -> AsyncIterator[World]:
    """A control plane on the second store."""
    async with fake_world() as made:
        yield made.another(two)


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(lambda world: sweep(world.application, ()), id="sweep"),
        pytest.param(lambda world: idle.note(world.application), id="visits"),
        pytest.param(lambda world: Reconciler(world.application)._release_claims(), id="start"),
    ],
)
async def test_work_on_all_builders_blocks_no_other(
    one: Store, world: World, work: Callable[[World], Awaitable[None]]
) -> None:
    now = world.clock.now()
    builders = [
        await add_builder(one, host=f"{name}.localhost", created_at=now + n * SECOND) for n, name in enumerate("ab")
    ]
    for builder in builders:
        world.previews.visit(builder.host, OPEN)
        assert await claim(one, builder.id, world.application.instance, now)
    pause, runs = Pause(), []

    def take_both(uow: UnitOfWork) -> None:
        """The other way round."""
        runs.append(1)
        uow.builders.get(builders[1].id, lock=True)
        pause.here()
        uow.builders.get(builders[0].id, lock=True)

    taking = asyncio.create_task(one.write(take_both))
    await pause.reached()
    working = asyncio.ensure_future(work(world))
    await pause.let_go_after(working)
    await asyncio.gather(taking, working)
    assert len(runs) == 1


async def test_recorded_visit_waits_for_no_lock(one: Store, world: World) -> None:
    builder = await add_builder(one, last_active_at=world.clock.now())
    world.previews.visit(builder.host, OPEN)
    pause = Pause()

    def hold(uow: UnitOfWork) -> None:
        uow.builders.get(builder.id, lock=True)
        pause.here()

    holding = asyncio.create_task(one.write(hold))
    await pause.reached()
    try:
        async with asyncio.timeout(10):
            await idle.note(world.application)
    finally:
        await pause.let_go_after(asyncio.create_task(asyncio.sleep(0)))
        await holding
