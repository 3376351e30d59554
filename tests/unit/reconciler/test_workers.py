"""Workers: processes without a port, kept running, that nobody visits."""

from __future__ import annotations

import pytest
from tests.application import ENTRYPOINT, World
from tests.fakes.sandboxes import Behaviour
from tests.unit.reconciler.ledgers import check_ledger

from builderd.domain.builders import MAX_EXITS, Builder, JobType, Status
from builderd.domain.bundles import BundleFile
from builderd.domain.errors import StartFailed, ValidationFailed
from builderd.domain.previews import RouteState
from builderd.domain.qa import CheckName, Outcome, ReportStatus
from builderd.domain.sandboxes import EndCause
from builderd.services import qa

BROKEN = BundleFile("main.py", b"raise SystemExit(3)\n")
WORKS = Behaviour(listens_at=None)


async def worker(world: World) -> Builder:
    return await world.outcome(await world.ask(job_type=JobType.WORKER))


async def test_a_worker_is_up_after_a_second_without_a_port(world: World) -> None:
    world.engine.behave(ENTRYPOINT, WORKS)
    async with world.reconciling():
        before = world.clock.now()
        builder = await worker(world)
        assert builder.status is Status.RUNNING
        assert (world.clock.now() - before).total_seconds() >= 1
        await world.until_route(builder, RouteState.WORKER)
        world.clock.move(3600)
        await check_ledger(world, builder)


async def test_worker_gate_judges_that_it_lives_and_makes_no_report(world: World) -> None:
    world.engine.behave(ENTRYPOINT, WORKS)
    async with world.reconciling():
        builder = await worker(world)
        view = await world.application.store.read(lambda uow: qa.get(uow, builder.tenant_id, builder.id))
    assert [(check.name, check.outcome) for check in view.report.gate] == [
        (CheckName.ALIVE, Outcome.PASSED),
        (CheckName.MEMORY, Outcome.PASSED),
    ]
    assert (view.version.qa_passed, view.report.status) == (True, ReportStatus.NONE)
    assert not world.testers.calls


@pytest.mark.parametrize(
    ("exit_code", "says"), [(3, "exited with code 3"), (0, 'use "job_type": "one_time"'), (127, "did not find")]
)
async def test_worker_that_ends_at_once_has_failed(world: World, exit_code: int, says: str) -> None:
    world.engine.behave(ENTRYPOINT, Behaviour(listens_at=None, exits_at=0, exit_code=exit_code))
    async with world.reconciling():
        with pytest.raises(StartFailed) as failure:
            await worker(world)
    assert failure.value.message.startswith("The worker ended before it was up")
    assert says in failure.value.message
    assert "listen" not in failure.value.message


async def test_crashing_worker_is_restarted_and_given_up_at_last(world: World) -> None:
    world.engine.behave(ENTRYPOINT, WORKS)
    async with world.reconciling():
        builder = await worker(world)
        for exits in range(1, MAX_EXITS + 1):
            await world.until(lambda: world.running)
            (sandbox,) = world.running
            world.clock.move(5)
            world.engine.end(sandbox.spec.id, EndCause.EXITED, 1)
            if exits < MAX_EXITS:
                await world.until_reason(builder, f"restart {exits} of {MAX_EXITS}")
            world.clock.move(10)
        failed = await world.until_status(builder, Status.FAILED)
    assert f"ended {MAX_EXITS} times" in failed.status_reason


async def test_a_version_that_ends_at_once_does_not_replace_the_one_that_works(world: World) -> None:
    world.engine.behave(ENTRYPOINT, WORKS)
    async with world.reconciling():
        builder = await worker(world)
        (before,) = world.running
        world.engine.behave("broken", Behaviour(listens_at=None, exits_at=0, exit_code=3))
        with pytest.raises(StartFailed):
            await world.deploy(builder, BROKEN, entrypoint="broken")
        after = await world.builder(builder)
        assert (after.status, after.version) == (Status.RUNNING, 1)
        assert world.running == [before]


async def test_a_new_version_takes_over(world: World) -> None:
    world.engine.behave(ENTRYPOINT, WORKS)
    async with world.reconciling():
        builder = await worker(world)
        after = await world.deploy(builder, BundleFile("main.py", b"print('two')\n"))
        assert (after.status, after.version) == (Status.RUNNING, 2)
        await world.until_route(builder, RouteState.WORKER)


async def test_worker_cannot_be_stopped_as_idle(world: World) -> None:
    world.engine.behave(ENTRYPOINT, WORKS)
    with pytest.raises(ValidationFailed) as refused:
        await world.ask(job_type=JobType.WORKER, auto_stop_interval=15)
    assert "nothing would wake it" in refused.value.errors["auto_stop_interval"][0]
    async with world.reconciling():
        builder = await worker(world)
        with pytest.raises(ValidationFailed):
            await world.configure(builder, auto_stop_interval=15)
