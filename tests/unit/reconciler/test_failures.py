"""An app that does not start says why, and leaves nothing running."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.application import ENTRYPOINT, World
from tests.fakes.sandboxes import Behaviour
from tests.unit.reconciler.ledgers import check_ledger

from builderd.builders import service as builders
from builderd.builders.model import MAX_EXITS, Desired, Status
from builderd.core.errors import NameTaken, StartFailed
from builderd.previews.model import RouteState
from builderd.sandboxes.model import EndCause
from builderd.versions.model import VersionStatus

FAILURES = {
    "it exits": (Behaviour(exits_at=0, exit_code=1), "exited with code 1"),
    "it exits later": (Behaviour(listens_at=None, exits_at=30, exit_code=2), "exited with code 2"),
    "it ends without a failure": (Behaviour(exits_at=0, exit_code=0), "one_time"),
    "it is killed for memory": (Behaviour(exits_at=0, exit_code=137, out_of_memory=True), "limit 1 GB"),
    "it listens on IPv6's loopback": (Behaviour(address="::1"), "listens on [::1]:8000"),
    "it listens on two ports": (
        Behaviour(sockets=(("0.0.0.0", 5000), ("127.0.0.1", 9000))),
        "on port 5000, 9000, not on",
    ),
    "it never listens": (Behaviour(listens_at=None), "did not listen on 0.0.0.0:8000 within 6"),
}


@pytest.mark.parametrize("case", FAILURES)
async def test_an_app_that_does_not_start_says_why_and_leaves_nothing_running(world: World, case: str) -> None:
    behaviour, message = FAILURES[case]
    world.engine.behave(ENTRYPOINT, replace(behaviour, lines=("Traceback", "boom")))
    async with world.reconciling():
        builder = await world.ask()
        with pytest.raises(StartFailed, match="Its last lines:\nTraceback\nboom") as failed:
            await world.outcome(builder)
        assert message in failed.value.message
        await world.until_route(builder, RouteState.FAILED)
        await world.until_nothing_runs()
    rests = await world.builder(builder)
    assert (rests.status, rests.desired, rests.settled) == (Status.FAILED, Desired.STOPPED, True)
    assert rests.status_reason == failed.value.message
    assert world.called("start") == 1
    assert world.engine.known == {}
    assert (await world.version(builder)).status is VersionStatus.FAILED
    await check_ledger(world, builder)


async def test_a_failed_builder_can_be_started_when_the_cause_is_gone(world: World) -> None:
    world.engine.behave(ENTRYPOINT, Behaviour(exits_at=0, exit_code=1), Behaviour())
    async with world.reconciling():
        builder = await world.ask()
        with pytest.raises(StartFailed):
            await world.outcome(builder)
        again = await world.reached(builders.start, builder)
    assert (again.status, again.exit_code, again.status_reason) == (Status.RUNNING, None, "started by token acme")
    assert (await world.version(builder)).status is VersionStatus.DEPLOYED  # it serves now


async def test_a_create_of_the_same_name_replaces_one_that_never_came_up(world: World) -> None:
    world.engine.behave(ENTRYPOINT, Behaviour(listens_at=None, exits_at=0, exit_code=1), Behaviour())
    async with world.reconciling():
        with pytest.raises(StartFailed) as failure:
            await world.create()
        again = await world.create()
        assert again.status is Status.RUNNING
        failed = await world.read(lambda uow: uow.builders.get(failure.value.data["uuid"]))
        assert failed is not None
        await world.until_status(failed, Status.DELETED)
        with pytest.raises(NameTaken):
            await world.create()


async def test_name_of_a_builder_that_was_up_or_of_another_tenant_is_kept(world: World) -> None:
    world.engine.behave(ENTRYPOINT, Behaviour(listens_at=None, exits_at=0, exit_code=1))
    async with world.reconciling():
        with pytest.raises(StartFailed):
            await world.create()
        mine, world.caller = world.caller, replace(world.caller, actor="token other")
        with pytest.raises(NameTaken):
            await world.create()
        world.caller = mine
        world.engine.behave(ENTRYPOINT, Behaviour())
        builder = await world.create()
        for _ in range(MAX_EXITS):
            await world.until(lambda: world.running)
            (sandbox,) = world.running
            world.engine.end(sandbox.spec.id, EndCause.EXITED, 1)
            world.clock.move(70)
        await world.until_status(builder, Status.FAILED)
        with pytest.raises(NameTaken):
            await world.create()
