"""The QA gate as the reconciler applies it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tests.application import World
from tests.fakes.sandboxes import Behaviour

from builderd.builders import service as builders
from builderd.builders.model import Builder, Status
from builderd.core.ids import BuilderId, DiskId, SandboxId
from builderd.previews.model import Address, RouteState
from builderd.qa import service as qa
from builderd.qa.model import (
    ENDING_SECONDS,
    QUICK_ALIVE_SECONDS,
    WATCH_SECONDS,
    Check,
    CheckName,
    Outcome,
    QaReport,
    SecondLook,
    Visit,
)
from builderd.qa.port import Target
from builderd.sandboxes.model import (
    MACHINE_CAUSES,
    EndCause,
    Listening,
    Sandbox,
    SandboxEnd,
    SandboxReport,
    SandboxState,
)
from builderd.versions.model import Version

BROKEN = Visit(500, 0.02, excerpt="Internal Server Error")


async def version_of(world: World, builder: Builder) -> Version:
    version = await world.read(lambda uow: uow.versions.get(builder.id, builder.version))
    assert version is not None
    return version


async def report_of(world: World, builder: Builder) -> QaReport:
    report = await world.read(lambda uow: uow.qa_reports.get(builder.id, builder.version))
    assert report is not None
    return report


def outcomes_of(checks: tuple[Check, ...]) -> dict[CheckName, Outcome]:
    return {check.name: check.outcome for check in checks}


@pytest.mark.parametrize(("busy", "seconds"), [(False, 60), (True, 120)])
async def test_answer_is_waited_for_as_long_as_the_start_may_take(
    world: World, monkeypatch: pytest.MonkeyPatch, busy: bool, seconds: float
) -> None:
    """Dash under gunicorn at load 34 listened at once, and its worker had not imported within the start's 60 s."""
    world.engine.busy = busy

    async def answer_late(target: Target, path: str, timeout_seconds: float) -> Visit:
        return Visit(200, timeout_seconds)

    assert (await visited(world, monkeypatch, answer_late)).seconds == seconds


@pytest.mark.parametrize("answer", [Visit(503, 0.01), Visit(None, 0.01, "the connection was refused")])
async def test_app_that_is_not_ready_is_asked_for_five_seconds(
    world: World, monkeypatch: pytest.MonkeyPatch, answer: Visit
) -> None:
    async def not_ready(target: Target, path: str, timeout_seconds: float) -> Visit:
        return answer

    begun = world.clock.passed()
    assert await visited(world, monkeypatch, not_ready) == answer
    assert 5 <= world.clock.passed() - begun <= 6


async def test_request_that_hangs_is_not_sent_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    async def hangs(target: Target, path: str, timeout_seconds: float) -> Visit:
        nonlocal asked
        asked += 1
        return Visit(None, 61.0, "nothing came within 61 seconds")

    visit = await visited(world, monkeypatch, hangs)
    assert (visit.status, asked) == (None, 1)


async def visited(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    visit: Callable[[Target, str, float], Awaitable[Visit]],
) -> Visit:
    """Return the gate's visit of an app that starts now and lives."""
    started = world.clock.now()
    sandbox = Sandbox(SandboxId("a" * 16), BuilderId("b"), 1, 1, 1, started, DiskId("c"), started_at=started)

    async def report(_: SandboxId) -> SandboxReport:
        return SandboxReport(sandbox.id, sandbox.builder_id, SandboxState.RUNNING)

    monkeypatch.setattr(world.engine, "report", report)
    monkeypatch.setattr(world.testers, "visit", visit)
    return await qa._visit(world.application, Target(Address("10.0.0.2", 80), ""), sandbox, 60)


async def test_the_route_is_open_before_the_gate_has_judged(world: World) -> None:
    seen: list[RouteState | None] = []
    visit = world.testers.visit

    async def look(*arguments: object, **named: object) -> Visit:
        route = await world.previews.get(builder.host)
        seen.append(route.state if route else None)
        return await visit(*arguments, **named)  # type: ignore[arg-type]

    world.testers.visit = look  # type: ignore[method-assign]
    builder = await world.ask()
    async with world.reconciling():
        await world.outcome(builder)
    assert seen == [RouteState.OPEN]


@pytest.mark.parametrize("cause", sorted(MACHINE_CAUSES))
async def test_app_ended_by_a_fault_of_the_machine_is_judged_again(world: World, cause: EndCause) -> None:
    visit, killed = world.testers.visit, list[str]()

    async def kill_once(*arguments: object, **named: object) -> Visit:
        if killed:
            return await visit(*arguments, **named)  # type: ignore[arg-type]
        (sandbox,) = world.engine.known
        killed.append(sandbox)
        world.engine.end(sandbox, cause, None)
        return BROKEN

    world.testers.visit = kill_once  # type: ignore[method-assign]
    async with world.reconciling():
        builder = await world.create(require_qa=True)
    assert builder.status is Status.RUNNING
    assert killed
    assert (await version_of(world, builder)).qa_passed is True


async def test_skipped_gate_is_recorded(world: World) -> None:
    world.testers.visits = type(world.testers.visits)([BROKEN])
    async with world.reconciling():
        builder = await world.create(skip_qa=True)
    assert (await version_of(world, builder)).qa_passed is None
    assert world.testers.calls == []
    (skipped,) = [event for event in await world.events(builder) if event.type == "gate.skipped"]
    assert (skipped.actor, skipped.details) == ("token acme", {"gate": "qa", "version": 1})


async def test_an_app_that_never_listens_has_failed_at_the_port(world: World) -> None:
    world.engine.behave("python3 main.py", Behaviour(listens_at=None, exits_at=1, exit_code=1))
    async with world.reconciling():
        builder = await world.ask()
        with pytest.raises(Exception, match="exited with code 1"):
            await world.outcome(builder)
    assert (await version_of(world, builder)).qa_passed is False
    assert outcomes_of((await report_of(world, builder)).gate) == {CheckName.PORT: Outcome.FAILED}


async def test_the_verdict_of_a_version_stays_over_a_restart(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        await world.outcome(await world.want(builders.restart, builder))
    assert len([call for call, _ in world.testers.calls if call == "visit"]) == 1


async def test_an_app_that_ends_within_a_second_of_its_answer_loses_its_verdict(world: World) -> None:
    sleep = world.clock.sleep

    async def end_meanwhile(seconds: float) -> None:
        if seconds == WATCH_SECONDS - QUICK_ALIVE_SECONDS:
            world.engine.end(world.running[0].spec.id, EndCause.EXITED, 3)
        await sleep(seconds)

    world.clock.sleep = end_meanwhile  # type: ignore[method-assign]
    async with world.reconciling():
        builder = await world.create()
        await world.until(lambda: changed(world, builder))
    assert (await version_of(world, builder)).qa_passed is False
    (event,) = [one for one in await world.events(builder) if one.type == "qa.changed"]
    assert event.details == {"version": 1, "qa_passed": False}
    assert "ended within 1 s: exited with code 3" in event.reason
    gate = outcomes_of((await report_of(world, builder)).gate)
    assert (gate[CheckName.ANSWER], gate[CheckName.ALIVE]) == (Outcome.PASSED, Outcome.FAILED)


async def changed(world: World, builder: Builder) -> bool:
    return any(event.type == "qa.changed" for event in await world.events(builder))


async def test_a_stop_within_that_second_changes_no_verdict(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        await world.reached(builders.stop, builder)
        await world.until_nothing_runs()
        for _ in range(20):
            await asyncio.sleep(0.001)
    assert (await version_of(world, builder)).qa_passed is True
    assert not await changed(world, builder)


SANDBOX, PORT = SandboxId("a" * 16), 8000


async def looked(
    world: World, monkeypatch: pytest.MonkeyPatch, ends_after: float = 3600, listens_after: float = 3600
) -> SecondLook:
    """Return the second look at an app whose end, or whose port, the engine tells so many seconds later."""
    clock = world.clock
    begun = clock.passed()

    async def report(sandbox: SandboxId) -> SandboxReport:
        has_ended = clock.passed() - begun >= ends_after
        end = SandboxEnd(EndCause.EXITED, 3, clock.now()) if has_ended else None
        return SandboxReport(
            sandbox, BuilderId("b"), SandboxState.EXITED if has_ended else SandboxState.RUNNING, end=end
        )

    async def listening(sandbox: SandboxId, port: int) -> Listening:
        return Listening(frozenset({("0.0.0.0", PORT)} if clock.passed() - begun >= listens_after else ()))

    monkeypatch.setattr(world.engine, "report", report)
    monkeypatch.setattr(world.engine, "listening", listening)
    return await qa._look_again(world.application, SANDBOX, PORT, 0.5)


@pytest.mark.parametrize("seconds", [0.0, 0.9, 4.0])
async def test_end_that_is_known_late_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    look = await looked(world, monkeypatch, ends_after=seconds)
    assert look.report.end
    assert look.report.end.exit_code == 3
    assert max(seconds, 0.5) <= look.seconds < max(seconds, 0.5) + 0.2


async def test_app_that_runs_on_without_its_port_is_waited_for_no_longer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = await looked(world, monkeypatch)
    assert look.report.alive
    assert not look.reachable
    assert ENDING_SECONDS <= look.seconds < ENDING_SECONDS + 0.7


async def test_app_that_listens_again_after_a_moment_passes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    look = await looked(world, monkeypatch, listens_after=1.2)
    assert look.reachable
    assert look.report.alive
    assert 1.2 <= look.seconds < 1.4
