"""Creating builders: what a user gets, from the code to the live URL, and why not."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import pytest
from tests.application import ENTRYPOINT, MAIN, REQUIREMENTS, World
from tests.unit.reconciler.ledgers import check_ledger

from builderd.builders import service as builders
from builderd.builders.model import Status, Visibility
from builderd.core.errors import InstallFailed
from builderd.core.ids import secret_hash
from builderd.core.resources import Resources
from builderd.dependencies.model import BuildOutcome
from builderd.events.model import SYSTEM
from builderd.money.model import Billing
from builderd.previews.model import Address, RouteState
from builderd.reconciler.steps.install import REUSED
from builderd.versions.model import NO_LAYER, Isolation, VersionStatus

SECOND = timedelta(seconds=1)


async def test_a_builder_comes_up_with_files_route_and_ledger(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(MAIN, env={"A": "1"}, port=9000, resources=Resources(2, 0.5, 4))
    (sandbox,) = world.running
    assert (builder.status, builder.status_reason, builder.settled) == (
        Status.RUNNING,
        "created by token acme",
        True,
    )
    assert builder.last_active_at is not None
    assert world.clock.now() - builder.last_active_at <= SECOND, "it is watched for a second"
    disk = world.engine.known_disks[builder.disk]
    assert (disk.files, disk.size_bytes) == ({"main.py": MAIN.content}, 4 << 30)
    route = await world.route(builder)
    assert route is not None
    assert (route.state, route.destination) == (RouteState.OPEN, Address(sandbox.ip, 9000))
    assert (route.token_hash, route.owner_hash) == (None, secret_hash(builder.service_token))
    version = await world.version(builder)
    assert (version.status, version.layer_key) == (VersionStatus.DEPLOYED, NO_LAYER)
    await check_ledger(world, builder)


async def test_the_sandbox_gets_what_was_asked_for_and_what_the_platform_sets(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(
            MAIN, REQUIREMENTS, env={"A": "1"}, port=9000, isolation=Isolation.STRONG, resources=Resources(2, 0.5, 4)
        )
    (sandbox,) = world.running
    spec = sandbox.spec
    assert spec.env == {
        "A": "1",
        "SERVICE_TOKEN": builder.service_token,
        "BUILDER_UUID": builder.id,
        "BUILDER_NAME": "my-api",
        "PREVIEW_URL": f"http://{builder.host}:8080/",
        "PORT": "9000",
    }
    assert (spec.entrypoint, spec.port, spec.hostname) == (ENTRYPOINT, 9000, "my-api")
    assert (spec.isolation, spec.resources, spec.egress) == (Isolation.STRONG, Resources(2, 0.5, 4), True)
    assert spec.layer_key in world.engine.known_layers


async def test_a_private_preview_wants_the_service_token(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(visibility=Visibility.PRIVATE)
    route = await world.route(builder)
    assert route is not None
    assert (route.token_hash, route.owner_hash) == (secret_hash(builder.service_token), None)


async def test_creation_is_recorded_in_events(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(MAIN, REQUIREMENTS)
        await world.reached(builders.stop, builder)
        await world.reached(builders.delete, builder)
    events = await world.events(builder)
    assert [(event.type, event.actor) for event in events] == [
        ("builder.created", "token acme"),
        ("review.passed", SYSTEM),
        ("stage.finished", SYSTEM),
        ("stage.finished", SYSTEM),
        ("stage.started", SYSTEM),
        ("sandbox.started", SYSTEM),
        ("stage.finished", SYSTEM),
        ("stage.finished", SYSTEM),
        ("version.deployed", SYSTEM),
        ("builder.status", "token acme"),
        ("sandbox.ended", SYSTEM),
        ("builder.status", "token acme"),
        ("builder.deleted", "token acme"),
        ("builder.status", "token acme"),
    ]
    changes = [(e.details["from"], e.details["to"], e.reason) for e in events if e.type == "builder.status"]
    assert changes == [
        ("creating", "running", "created by token acme"),
        ("running", "stopped", "stopped by token acme"),
        ("stopped", "deleted", "deleted by token acme"),
    ]


async def test_an_engine_whose_clock_is_behind_makes_no_time_paid_twice(world: World) -> None:
    world.engine._now = lambda: world.clock.now() - 5 * SECOND
    async with world.reconciling():
        builder = await world.create()
        world.clock.move(1)
        await world.reached(builders.stop, builder)
    segments = await world.segments(builder)
    assert [segment.billing for segment in segments] == [Billing.STOPPED, Billing.RUNNING, Billing.STOPPED]
    for earlier, later in pairwise(segments):
        assert earlier.end is not None
        assert earlier.start <= earlier.end <= later.start


# Layers


async def test_source_build_is_reused_without_trying_wheels(world: World) -> None:
    world.installer.has_fallback = True
    world.engine.build_outcomes.extend([BuildOutcome(1, ("no wheel",), 1), BuildOutcome(0, (), 2)])
    async with world.reconciling():
        first = await world.create(MAIN, REQUIREMENTS, name="first")
        second = await world.create(MAIN, REQUIREMENTS, name="second")
    assert world.called("build_layer") == 2
    assert (await world.version(first)).layer_key == (await world.version(second)).layer_key
    assert [line.text for line in await world.build_log(second)] == [REUSED]


async def test_a_layer_that_got_lost_is_made_again(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(MAIN, REQUIREMENTS)
        world.engine.known_layers.clear()
        await world.reached(builders.restart, builder)
    assert world.called("build_layer") == 2
    assert len(world.running) == 1


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (BuildOutcome(1, ("Because flask==9 does not exist, we can conclude …",), 1), "flask==9 does not exist"),
        (BuildOutcome(137, (), 1, out_of_memory=True), "want of memory"),
        (BuildOutcome(124, (), 900, timed_out=True), "did not end within 900 s"),
    ],
)
async def test_failed_install_reports_the_reason(world: World, outcome: BuildOutcome, message: str) -> None:
    world.engine.build_outcomes.append(outcome)
    async with world.reconciling():
        builder = await world.ask(MAIN, REQUIREMENTS)
        with pytest.raises(InstallFailed, match=message):
            await world.outcome(builder)
        await world.until_route(builder, RouteState.FAILED)
        await world.until_nothing_runs()
    assert world.called("start") == 0
    assert not world.engine.known_disks
    version = await world.version(builder)
    assert version.status is VersionStatus.FAILED
    assert message in version.status_reason
    finished = [event.details for event in await world.events(builder) if event.type == "stage.finished"]
    assert [(one["stage"], one["ok"]) for one in finished] == [("review", True), ("install", False)]


async def test_a_request_that_the_installer_refuses_fails_the_installation(world: World) -> None:
    world.installer.refusal = "line 1: a path outside of the code"
    async with world.reconciling():
        with pytest.raises(InstallFailed, match="line 1"):
            await world.create(MAIN, REQUIREMENTS)


async def test_a_failed_installation_can_be_tried_again(world: World) -> None:
    world.engine.build_outcomes.append(BuildOutcome(1, ("the index is down",), 1))
    async with world.reconciling():
        builder = await world.ask(MAIN, REQUIREMENTS)
        with pytest.raises(InstallFailed):
            await world.outcome(builder)
        again = await world.reached(builders.start, builder)
    assert (again.status, again.failure_code) == (Status.RUNNING, None)
