"""One-time jobs run to their end and cost nothing afterwards; workers run on without a port or visitors."""

from __future__ import annotations

import pytest
from tests.application import ENTRYPOINT, World
from tests.fakes.sandboxes import Behaviour
from tests.unit.reconciler.ledgers import check_ledger

from builderd.builders import service as builders
from builderd.builders.model import Builder, JobType, Status
from builderd.core.errors import NoCapacity, ValidationFailed
from builderd.previews.model import RouteState
from builderd.qa import service as qa
from builderd.qa.model import CheckName, Outcome, ReportStatus
from builderd.sandboxes.model import EndCause
from builderd.versions.model import VersionStatus


async def test_a_job_is_created_once_its_command_has_started(world: World) -> None:
    world.engine.behave(ENTRYPOINT, Behaviour(listens_at=None))
    async with world.reconciling():
        builder = await world.outcome(await world.ask_job())
        assert (builder.status, builder.exit_code) == (Status.RUNNING, None)
        await world.until_route(builder, RouteState.JOB)


async def test_input_of_a_job_is_its_standard_input_and_no_other_kind_has_one(world: World) -> None:
    async with world.reconciling():
        await world.outcome(await world.ask_job(stdin="a\nb\n"))
        (sandbox,) = world.engine.known.values()
        assert sandbox.spec.secret_files == {"_job/stdin": "a\nb\n"}
        assert sandbox.spec.entrypoint == f"exec </run/credentials/_job/stdin\n{ENTRYPOINT}"
        with pytest.raises(ValidationFailed, match="one_time"):
            await world.ask(stdin="x", name="app")


@pytest.mark.parametrize(
    ("cause", "exit_code", "status", "reason"),
    [
        (EndCause.EXITED, 0, Status.COMPLETED, "exited with code 0"),
        (EndCause.EXITED, 3, Status.FAILED, "exited with code 3"),
        (EndCause.OUT_OF_MEMORY, 137, Status.FAILED, "killed: out of memory, limit 1 GB"),
        (
            EndCause.HOST_OUT_OF_MEMORY,
            137,
            Status.FAILED,
            "killed: the machine was out of memory, the app within its limit",
        ),
        (
            EndCause.MONITOR_LOST,
            None,
            Status.FAILED,
            "ended, exit code unknown: its log monitor (conmon) was killed",
        ),
    ],
)
async def test_a_job_ends_as_its_command_does_and_costs_nothing_afterwards(
    world: World, cause: EndCause, exit_code: int | None, status: Status, reason: str
) -> None:
    async with world.reconciling():
        builder = await world.outcome(await world.ask_job())
        world.clock.move(3600)
        (sandbox,) = world.engine.known
        world.engine.print(sandbox, "a result")
        world.engine.end(sandbox, cause, exit_code)
        world.clock.move(60)
        await world.until_status(builder, status)
        await world.until_nothing_runs()
    ended = await world.builder(builder)
    assert (ended.exit_code, ended.status_reason, ended.failure_code) == (exit_code, reason, None)
    assert builder.disk in world.engine.known_disks
    assert [line.text for line in (await world.engine.read_log(sandbox)).lines] == ["a result"]
    world.clock.move(3600)
    await check_ledger(world, builder)
    assert (await world.version(builder)).status is VersionStatus.DEPLOYED


async def test_a_job_that_ends_at_once_is_answered_with_its_end(world: World) -> None:
    world.engine.behave(ENTRYPOINT, Behaviour(exits_at=0, exit_code=0))
    async with world.reconciling():
        builder = await world.outcome(await world.ask_job())
    assert (builder.status, builder.exit_code) == (Status.COMPLETED, 0)
    finished = [event.details for event in await world.events(builder) if event.type == "stage.finished"]
    assert [(one["stage"], one["ok"]) for one in finished] == [("review", True), ("install", True), ("start", True)]


async def test_a_job_can_be_run_again_and_is_paid_again(world: World) -> None:
    world.engine.behave(ENTRYPOINT, Behaviour(exits_at=0, exit_code=0))
    async with world.reconciling():
        builder = await world.outcome(await world.ask_job())
        world.clock.move(60)
        again = await world.reached(builders.start, builder)
        assert (again.status, again.generation) == (Status.COMPLETED, 2)
        await check_ledger(world, builder)
    assert world.called("start") == 2


async def test_a_job_that_the_machine_cut_off_runs_again(world: World) -> None:
    async with world.reconciling():
        builder = await world.outcome(await world.ask_job())
        world.engine.restart_host()
        await world.until(lambda: world.called("start") == 2)
        await world.until(lambda: world.running)
    assert (await world.builder(builder)).status is Status.RUNNING


async def test_a_job_can_be_stopped(world: World) -> None:
    async with world.reconciling():
        builder = await world.outcome(await world.ask_job())
        stopped = await world.reached(builders.stop, builder)
    assert (stopped.status, stopped.status_reason) == (Status.STOPPED, "stopped by token acme")
    await check_ledger(world, builder)


async def test_a_job_that_never_started_costs_nothing(world: World) -> None:
    world.engine.fail_next("start", NoCapacity("There is no room."))
    async with world.reconciling():
        builder = await world.ask_job()
        with pytest.raises(NoCapacity):
            await world.outcome(builder)
        await check_ledger(world, builder)


WORKS = Behaviour(listens_at=None)


async def worker(world: World) -> Builder:
    return await world.outcome(await world.ask(job_type=JobType.WORKER))


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


async def test_worker_cannot_be_stopped_as_idle(world: World) -> None:
    world.engine.behave(ENTRYPOINT, WORKS)
    with pytest.raises(ValidationFailed) as refused:
        await world.ask(job_type=JobType.WORKER, auto_stop_interval=15)
    assert "nothing would wake it" in refused.value.errors["auto_stop_interval"][0]
    async with world.reconciling():
        builder = await worker(world)
        with pytest.raises(ValidationFailed):
            await world.configure(builder, auto_stop_interval=15)
