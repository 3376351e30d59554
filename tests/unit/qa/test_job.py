"""QA reports as they are made of disposable copies, in the background."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from tests.application import MAIN, World, fake_world, hurry, look_once
from tests.fakes.processes import Answer
from tests.fakes.sandboxes import Behaviour
from tests.unit.reconciler.mortal import Killed, living

from builderd.builders import service as builders
from builderd.builders.model import Builder
from builderd.core.errors import NoCapacity
from builderd.core.ids import DiskId, new_id
from builderd.qa import job as reporting
from builderd.qa import service as qa
from builderd.qa.inspection import DUMMY, FILES, NETWORK
from builderd.qa.model import Check, CheckName, Outcome, QaReport, ReportStatus
from builderd.qa.port import Target
from builderd.reconciler import builds
from builderd.sandboxes.model import SandboxSpec


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    hurry(monkeypatch.setattr)
    monkeypatch.setattr(reporting, "INTERVAL", 0.01)
    monkeypatch.setattr(reporting, "OVERTAKEN_INTERVAL", 0.01)
    async with fake_world(qa_report=True) as made:
        yield made


async def report_of(world: World, builder: Builder) -> QaReport | None:
    return await world.read(lambda uow: uow.qa_reports.get(builder.id, builder.version))


async def finished(world: World, builder: Builder) -> QaReport:
    """Return its report, once it is over and nothing of the copy is left."""

    async def over() -> bool:
        report = await report_of(world, builder)
        return report is not None and not report.is_open and report.copy_disk is None

    await world.until(over)
    report = await report_of(world, builder)
    assert report is not None
    return report


def outcomes(report: QaReport) -> dict[CheckName, Outcome]:
    return {check.name: check.outcome for check in report.checks}


def specs(world: World) -> list[SandboxSpec]:
    """All that were started, kept by a spy."""
    started: list[SandboxSpec] = []
    start = world.engine.start

    async def spy(spec: SandboxSpec) -> object:
        started.append(spec)
        return await start(spec)

    world.engine.start = spy  # type: ignore[method-assign, assignment]
    return started


async def test_a_report_follows_and_leaves_nothing_behind(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        report = await finished(world, builder)
    assert report.status is ReportStatus.DONE
    assert set(outcomes(report)) >= {
        CheckName.CRAWL,
        CheckName.BROWSER,
        CheckName.OPENAPI,
        CheckName.LOG,
        CheckName.SIGTERM,
        CheckName.RESTART,
        CheckName.STAYS_UP,
    }
    assert report.screenshots == ("desktop",)
    picture = await world.read(lambda uow: uow.qa_reports.screenshot(builder.id, 1, "desktop"))
    assert picture is not None
    assert list(world.engine.known_disks) == [builder.disk]
    assert len(world.engine.known) == 1
    assert {owner for owner, _ in world.engine.known_logs.values()} == {builder.id}


async def test_a_copy_has_no_network_and_no_secret_of_the_app(world: World) -> None:
    started = specs(world)
    async with world.reconciling():
        builder = await world.create(replace(MAIN, path="web/main.py"), env={"A": "1"}, root="web")
        await finished(world, builder)
    live, *copies = started
    assert len(copies) == 2
    for copy in copies:
        assert not copy.egress
        assert (copy.entrypoint, copy.root, copy.layer_key) == (live.entrypoint, "web", live.layer_key)
        assert copy.disk != live.disk
        assert copy.env["A"] == "1"
        assert copy.env["SERVICE_TOKEN"] != live.env["SERVICE_TOKEN"]
        assert builder.service_token not in str(copy)
    assert live.egress


async def test_credentials_are_dummies_in_a_copy(world: World) -> None:
    from builderd.credentials import service as credentials

    now, vault = world.clock.now(), world.application.vault
    await world.application.store.write(
        lambda uow: credentials.put(uow, vault, world.caller.tenant_id, "mail", {"MAIL_KEY": "real"}, now)
    )
    started = specs(world)
    async with world.reconciling():
        await finished(world, await world.create(credentials=("mail",)))
    assert started[0].env["MAIL_KEY"] == "real"
    for copy in started[1:]:
        assert (copy.env["MAIL_KEY"], copy.secret_files) == (DUMMY, {"mail/MAIL_KEY": DUMMY})
        assert "real" not in str(copy)


async def test_failure_by_missing_network_is_not_judged(world: World) -> None:
    world.testers.crawled = (Check(CheckName.CRAWL, Outcome.FAILED, "GET / was answered 500."),)
    world.engine.answer(NETWORK, Answer(output="Icmp: InMsgs InDestUnreachs\nIcmp: 3 3\n"))
    async with world.reconciling():
        report = await finished(world, await world.create())
    assert outcomes(report)[CheckName.CRAWL] is Outcome.NOT_JUDGED


async def test_without_any_try_to_reach_a_network_it_is(world: World) -> None:
    world.testers.crawled = (Check(CheckName.CRAWL, Outcome.FAILED, "GET / was answered 500."),)
    async with world.reconciling():
        report = await finished(world, await world.create())
    assert outcomes(report)[CheckName.CRAWL] is Outcome.FAILED


async def test_lost_files_after_a_restart_are_reported(world: World) -> None:
    listed = [json.dumps({"data.json": [10, "aa"], "main.py": [5, "bb"]}), json.dumps({"main.py": [5, "bb"]})]
    opened = world.engine.open_process

    def answer(*arguments: object) -> object:
        if FILES in arguments[1].argv:  # type: ignore[attr-defined]
            world.engine.answer(FILES, Answer(output=listed.pop(0)))
        return opened(*arguments)  # type: ignore[arg-type]

    world.engine.open_process = answer  # type: ignore[method-assign, assignment]
    async with world.reconciling():
        report = await finished(world, await world.create())
    (check,) = [check for check in report.checks if check.name is CheckName.FILES]
    assert (check.outcome, check.findings) == (Outcome.FAILED, ("data.json (10 bytes) is gone",))


async def test_copy_that_does_not_start_is_reported(world: World) -> None:
    world.engine.behave("python3 main.py", Behaviour(), Behaviour(listens_at=None, exits_at=1, exit_code=4))
    async with world.reconciling():
        report = await finished(world, await world.create())
    (check,) = report.checks
    assert (check.name, check.outcome) == (CheckName.COPY, Outcome.FAILED)
    assert "exited with code 4" in check.message


async def test_report_without_capacity_is_dropped(world: World) -> None:
    world.engine.fail_next("clone_disk", NoCapacity("The store is full."))
    async with world.reconciling():
        report = await finished(world, await world.create())
    assert (report.status, report.note) == (ReportStatus.DROPPED, "The store is full.")


async def test_interrupted_report_is_repeated_and_its_copy_removed(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        await finished(world, builder)
    left = DiskId(new_id())
    await world.engine.clone_disk(builder.disk, left, 1)
    cut_off = QaReport(builder.id, 1, ReportStatus.RUNNING, attempts=1, owner="first", copy_disk=left)
    await world.application.store.write(lambda uow: uow.qa_reports.save(cut_off))
    async with world.reconciling():
        report = await finished(world, builder)
    assert (report.status, report.attempts) == (ReportStatus.DONE, 2)
    assert list(world.engine.known_disks) == [builder.disk]


async def test_report_interrupted_too_often_is_dropped(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        await finished(world, builder)
    cut_off = QaReport(builder.id, 1, ReportStatus.RUNNING, attempts=2, owner="first")
    await world.application.store.write(lambda uow: uow.qa_reports.save(cut_off))
    async with world.reconciling():
        report = await finished(world, builder)
    assert (report.status, report.note) == (ReportStatus.DROPPED, reporting.CUT_OFF)


async def test_report_of_another_service_is_skipped(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        await finished(world, builder)
    others = QaReport(builder.id, 1, ReportStatus.RUNNING, attempts=1, owner="elsewhere", copy_disk=DiskId("theirs"))
    await world.application.store.write(lambda uow: uow.qa_reports.save(others))
    async with world.reconciling():
        await world.reached(builders.stop, builder)
    assert await report_of(world, builder) == others


async def test_a_builder_that_is_deleted_takes_its_report_along(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.engine.behave("python3 main.py", Behaviour(), Behaviour(listens_at=None))
    look_once(monkeypatch)
    async with world.reconciling():
        builder = await world.create()
        await world.until(lambda: len(world.engine.known) == 2)
        await world.reached(builders.delete, builder)
        await world.until(lambda: not world.engine.known_disks)
        await world.until_nothing_runs()

        async def gone() -> bool:
            return await report_of(world, builder) is None

        await world.until(gone)


async def test_qa_again_runs_gate_and_report(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        first = await finished(world, builder)
        world.testers.visits[0] = replace(world.testers.visits[0], status=500)
        view = await qa.again(world.application, world.caller, builder.id)
        assert view.version.qa_passed is False
        second = await finished(world, builder)
    assert (first.requested_by, second.requested_by) == ("system", "token acme")
    assert second.gate != first.gate


async def test_tenants_take_turns_and_too_many_of_one_are_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "MOST_OF_TENANT", 3)
    made: list[str] = []
    async with world.reconciling():
        greedy = [await world.create(name=f"greedy{number}") for number in range(5)]
        world.caller = await world.tenant("modest")
        modest = await world.create(name="modest")
        for builder in (*greedy, modest):
            await finished(world, builder)

    async def make(self: reporting.Reporting, report: QaReport, _: object) -> None:
        builder = await world.read(lambda uow: uow.builders.get(report.builder_id))
        assert builder
        made.append(builder.name)
        await self._drop(report, "seen")

    monkeypatch.setattr(reporting.Reporting, "_make", make)
    for number, builder in enumerate((*greedy, modest)):
        waiting = QaReport(
            builder.id, 1, ReportStatus.WAITING, requested_at=world.clock.now() + timedelta(seconds=number)
        )
        await world.application.store.write(lambda uow, one=waiting: uow.qa_reports.save(one))  # type: ignore[misc]
    async with world.reconciling():
        notes = [(await finished(world, builder)).note for builder in (*greedy, modest)]
    assert made == ["greedy4", "modest", "greedy3", "greedy2"], "the newest of a tenant comes first"
    assert notes == [reporting.TOO_MANY] * 2 + ["seen"] * 4


def test_reports_take_a_third_of_the_machine_at_most() -> None:
    for used, seconds in ((3.8, 2.0), (12.0, 6.0), (60.0, 20.0)):
        rest = reporting.rest_seconds(used, seconds, 2)
        assert rest > 0
        assert used / (2 * (seconds + rest)) == pytest.approx(1 / 3)
    assert reporting.rest_seconds(3.8, 6.0, 2) == 0


async def test_worker_rests_after_a_costly_report(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rested: list[tuple[float, float]] = []
    cpu = iter([100.0, 142.0])

    def rest(used: float, seconds: float, cpus: int) -> float:
        rested.append((used, seconds))
        return 0.0

    monkeypatch.setattr(reporting, "children_seconds", lambda: next(cpu))
    monkeypatch.setattr(reporting, "rest_seconds", rest)
    async with world.reconciling():
        await finished(world, await world.create())
        await world.until(lambda: _is_true(rested))
    ((used, seconds),) = rested
    assert used >= 42
    assert seconds >= 0


async def _is_true(found: object) -> bool:
    return bool(found)


def crawl_for(world: World, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the crawl of each copy take so long."""
    crawl = world.testers.crawl

    async def slow(target: Target) -> Sequence[Check]:
        world.clock.move(seconds)
        return await crawl(target)

    monkeypatch.setattr(world.testers, "crawl", slow)


async def test_report_is_charged_like_a_build_and_counts_for_the_cap(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    crawl_for(world, monkeypatch, 3600)
    prices = world.application.prices
    rate = 2 * (prices.cpu + prices.memory)
    async with world.reconciling():
        builder = await world.create()
        assert (await finished(world, builder)).status is ReportStatus.DONE
        [charge] = await world.trials(builder)
        assert 3600 <= charge.seconds(world.clock.now()) < 3660
        assert charge.hourly_rate == rate
        assert await world.read(lambda uow: uow.open_builds.all()) == []
        await world.change(builder, spending_cap=2 * rate)
        await qa.again(world.application, world.caller, builder.id)
        await world.until_reason(builder, "spending cap")
        before = await world.trials(builder)
        await qa.again(world.application, world.caller, builder.id)
        report = await finished(world, builder)
        assert report.status is ReportStatus.DROPPED
        assert "spending cap" in report.note
        assert await world.trials(builder) == before


async def test_cap_that_is_reached_ends_a_report(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.testers, "crawl", lambda _: asyncio.Event().wait())
    async with world.reconciling():
        builder = await world.create()
        await world.until(lambda: len(world.engine.known) == 2)
        await world.change(builder, spending_cap=Decimal("0.01"))
        world.clock.move(3600)
        report = await finished(world, builder)
        assert report.status is ReportStatus.DROPPED
        assert "spending cap" in report.note
        [charge] = await world.trials(builder)
        assert charge.seconds(world.clock.now()) >= 3600


async def test_report_cut_by_a_kill_of_the_service_is_charged_once_as_far_as_it_was_seen(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "SEEN_INTERVAL", 0.01)
    seen: list[datetime] = []

    async def killed(_: Target) -> Sequence[Check]:
        world.clock.move(90)
        while not await world.read(lambda uow: [one for one in uow.open_builds.all() if one.seen_at > one.started_at]):
            await asyncio.sleep(0.01)
        seen.extend(one.seen_at for one in await world.read(lambda uow: uow.open_builds.all()))
        life._store.dead.set()
        raise Killed

    monkeypatch.setattr(world.testers, "crawl", killed)
    async with living(world, "never") as life:
        builder = await life.world.create()
        await world.until(lambda: life.is_over)
    assert await world.trials(builder) == []

    async def closed() -> bool:
        return await world.read(lambda uow: uow.open_builds.all()) == []

    for _ in range(2):
        async with living(world):
            await world.until(closed)
        [charge] = await world.trials(builder)
        assert charge.end == seen[0]
        assert charge.seconds(world.clock.now()) >= 90
