"""Requests for builders and their record; nothing is carried out here."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from sqlalchemy import text
from tests.application import MAIN, World

from builderd.builders import service as builders
from builderd.builders.model import Desired, JobType, Status, Visibility
from builderd.builders.store import BuilderQuery
from builderd.core.errors import (
    BuilderdError,
    EngineUnavailable,
    InvalidState,
    NameTaken,
    NoCapacity,
    NotFound,
    RecordDamaged,
    ValidationFailed,
)
from builderd.core.ids import new_id
from builderd.core.resources import Resources
from builderd.money.model import Billing, Segment
from builderd.versions.model import Isolation


async def test_create_records_the_request(world: World) -> None:
    asked = await world.ask(
        MAIN, name="my-api", port=9000, env={"A": "1"}, visibility=Visibility.PRIVATE, job_type=JobType.ONE_TIME
    )
    builder, version = await world.builder(asked), await world.version(asked)
    assert builder == asked
    assert (builder.status, builder.desired, builder.generation, builder.observed_generation) == (
        Status.CREATING,
        Desired.RUNNING,
        1,
        0,
    )
    assert builder.host == f"my-api-{builder.id[:8]}.localhost"
    assert builder.service_token.startswith("bds_")
    assert (builder.job_type, builder.visibility) == (JobType.ONE_TIME, Visibility.PRIVATE)
    assert (version.number, version.settings.port, version.settings.env) == (1, 9000, {"A": "1"})
    assert version.bundle_hash in world.bundles.stored
    (event,) = await world.events(builder)
    assert (event.type, event.actor, event.reason) == ("builder.created", "token acme", "created by token acme")
    assert await world.read(lambda uow: uow.builders.due(world.clock.now(), 10)) == [builder.id]


async def test_a_name_is_taken_once_in_a_tenant_and_again_after_its_builder_is_deleted(world: World) -> None:
    first = await world.ask()
    with pytest.raises(NameTaken) as taken:
        await world.ask()
    assert taken.value.data == {"uuid": first.id}
    world.caller, mine = await world.tenant("other"), world.caller
    assert (await world.ask()).name == first.name
    world.caller = mine
    await world.want(builders.delete, first)
    assert (await world.ask()).id != first.id


async def test_an_engine_that_is_not_ready_takes_no_builders(world: World) -> None:
    world.engine.ready = False
    with pytest.raises(EngineUnavailable, match="waiting to be prepared") as unavailable:
        await world.ask()
    assert unavailable.value.retry_after


async def test_unsupported_settings_are_rejected_before_storing(world: World) -> None:
    world.engine.unsupported[Isolation.STRONG] = "gVisor is not installed"
    with pytest.raises(ValidationFailed) as refused:
        await world.ask(isolation=Isolation.STRONG, credentials=("stripe", "s3"))
    assert refused.value.errors == {
        "isolation": ["gVisor is not installed"],
        "credentials.0": ["there is no credential named 'stripe': PUT /api/v1/credentials/stripe first"],
        "credentials.1": ["there is no credential named 's3': PUT /api/v1/credentials/s3 first"],
    }
    assert await world.left() == {}
    assert await world.read(lambda uow: uow.builders.ids()) == []


@pytest.mark.parametrize("command", [builders.start, builders.stop, builders.restart, builders.delete])
async def test_no_command_reaches_a_builder_of_another_tenant(world: World, command: builders.Command) -> None:
    builder = await world.ask()
    world.caller = await world.tenant("other")
    with pytest.raises(NotFound):
        await world.want(command, builder)
    assert await world.builder(builder) == builder


async def test_damaged_record_of_another_tenant_looks_unknown(world: World) -> None:
    theirs = await world.ask()
    damage = text("UPDATE builders SET status = 'levitating'")
    await world.application.store.write(lambda uow: uow.builders._connection.execute(damage) and None)
    own, world.caller = world.caller, await world.tenant("other")
    for command in (builders.start, builders.delete):
        with pytest.raises(NotFound):
            await world.want(command, theirs)
    world.caller = own
    with pytest.raises(RecordDamaged):
        await world.want(builders.start, theirs)
    await world.want(builders.delete, theirs)


async def test_foreign_deleted_unknown_and_malformed_ids_look_alike(world: World) -> None:
    foreign = await world.ask(name="foreign")
    world.caller = await world.tenant("other")
    deleted = await world.ask(name="deleted")
    await world.want(builders.delete, deleted)
    messages = set()
    for one in (foreign.id, deleted.id, new_id(), "", "x", "../x", foreign.id.upper(), f"{foreign.id}\n", "\ud800"):
        with pytest.raises(NotFound) as unknown:
            await world.read(lambda uow, one=one: builders.get(uow, world.caller.tenant_id, one))  # type: ignore[misc]
        messages.add((unknown.value.message, tuple(unknown.value.data)))
    assert len(messages) == 1


async def test_a_list_shows_the_tenants_own_live_builders(world: World) -> None:
    mine = [await world.ask(name=name) for name in ("a", "b", "c")]
    await world.want(builders.delete, mine[1])
    world.caller, acme = await world.tenant("other"), world.caller
    await world.ask(name="d")
    now, query = world.clock.now(), BuilderQuery(sort="name")
    page, total = await world.read(lambda uow: builders.list_page(uow, world.application, acme.tenant_id, query, now))
    assert ([view.builder.name for view in page], total) == (["a", "c"], 2)


# Wishes


async def test_starting_what_is_wanted_running_is_a_use_and_changes_nothing(world: World) -> None:
    builder = await world.ask()
    world.clock.move(1)
    assert await world.want(builders.start, builder) == replace(builder, last_active_at=world.clock.now())


async def test_stop_records_its_first_caller(world: World) -> None:
    builder = await world.change(await world.ask(), status=Status.RUNNING, observed_generation=1)
    world.clock.move(1)
    stopped = await world.want(builders.stop, builder)
    assert (stopped.desired, stopped.cause.reason, stopped.updated_at) == (
        Desired.STOPPED,
        "stopped by token acme",
        world.clock.now(),
    )
    assert (stopped.generation, stopped.status) == (1, Status.RUNNING)
    world.clock.move(1)
    assert await world.want(builders.stop, builder) == stopped


async def test_starting_what_is_stopped_is_a_new_run(world: World) -> None:
    builder = await world.change(
        await world.ask(), status=Status.STOPPED, desired=Desired.STOPPED, observed_generation=1
    )
    started = await world.want(builders.start, builder)
    assert (started.desired, started.generation, started.settled) == (Desired.RUNNING, 2, False)


@pytest.mark.parametrize("command", [builders.start, builders.restart])
@pytest.mark.parametrize("status", [Status.FAILED, Status.COMPLETED])
async def test_failed_or_completed_builder_can_be_started(
    world: World, status: Status, command: builders.Command
) -> None:
    rests = {"desired": Desired.STOPPED, "observed_generation": 1, "exit_code": 1, "failure_code": "start_failed"}
    builder = await world.change(await world.ask(), status=status, status_reason="it exited", **rests)
    started = await world.want(command, builder)
    assert (started.status, started.generation, started.exit_code, started.failure_code) == (
        Status.STOPPED,
        2,
        None,
        None,
    )
    assert "it exited" not in started.status_reason
    event = (await world.events(builder))[-1]
    assert (event.type, event.details) == ("builder.status", {"from": status.value, "to": "stopped"})


async def test_restarting_is_a_new_run_in_any_case(world: World) -> None:
    builder = await world.change(await world.ask(), status=Status.RUNNING, observed_generation=1)
    assert (await world.want(builders.restart, builder)).generation == 2
    again = await world.want(builders.restart, builder)
    assert (again.generation, again.status, again.desired) == (3, Status.RUNNING, Desired.RUNNING)
    event = (await world.events(builder))[-1]
    assert (event.type, event.actor) == ("builder.restarting", again.cause.actor)
    assert event.reason.startswith("restarted by ")


async def test_builder_in_creation_cannot_be_restarted(world: World) -> None:
    builder = await world.ask()
    with pytest.raises(InvalidState, match="still being created"):
        await world.want(builders.restart, builder)
    assert await world.builder(builder) == builder


async def test_desired_state_change_makes_the_builder_due_and_signals(world: World) -> None:
    builder = await world.ask()
    signals, now = world.application.signals, world.clock.now()
    await signals.desired_changes(0)
    before = signals.count(builder.id)
    await world.application.store.write(lambda uow: uow.builders.claim(builder.id, "x", now, now))
    await world.want(builders.stop, builder)
    assert await signals.desired_changes(0) == {builder.id}
    assert signals.count(builder.id) == before + 1
    assert await world.read(lambda uow: uow.builders.due(now, 10)) == [builder.id]


async def test_rejected_change_signals_nothing(world: World) -> None:
    builder = await world.ask()
    signals = world.application.signals
    await signals.desired_changes(0)
    with pytest.raises(BuilderdError):
        await world.want(builders.restart, builder)
    assert await signals.desired_changes(0) == frozenset()


# Shown


async def test_a_builder_is_shown_with_its_version_url_and_cost(world: World) -> None:
    builder = await world.ask(resources=Resources(1, 1, 3))
    rate = world.application.prices.hourly_rate(Resources(1, 1, 3), Billing.RUNNING)
    start = world.clock.now()
    segment = Segment(builder.tenant_id, builder.id, Billing.RUNNING, start, None, rate)
    await world.application.store.write(lambda uow: uow.ledger.open(segment))
    world.clock.move(2 * 3600)
    now = world.clock.now()
    view = await world.read(lambda uow: builders.view(uow, world.application, builder, now))
    assert view.preview_url == f"http://{builder.host}:8080/"
    assert view.version.number == 1
    assert (view.cost.currency, view.cost.hourly_rate) == ("EUR", Decimal("0.1965"))
    assert (view.cost.runtime_hours, view.cost.cost) == (Decimal("2.0000"), Decimal("0.39"))


async def test_create_is_refused_before_anything_is_stored_when_the_store_has_no_room(world: World) -> None:
    world.engine.fail_next("reserve_disk", NoCapacity("The store has no room.", retry_after=60))
    with pytest.raises(NoCapacity):
        await world.ask(MAIN, name="my-api")
    assert await world.read(lambda uow: uow.builders.by_name(world.caller.tenant_id, "my-api")) is None
    assert not world.bundles.stored
