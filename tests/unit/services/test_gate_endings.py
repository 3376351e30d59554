"""An app that listens no more after the gate's request: its end is the reason, also where it is known late."""

from __future__ import annotations

import pytest
from tests.application import World

from builderd.domain.ids import BuilderId, SandboxId
from builderd.domain.qa_gate import ENDING_SECONDS
from builderd.domain.sandboxes import EndCause, SandboxEnd, SandboxReport, SandboxState
from builderd.services import qa

SANDBOX = SandboxId("a" * 16)


async def reported(world: World, monkeypatch: pytest.MonkeyPatch, ends_after: float) -> tuple[SandboxReport, float]:
    """Return the report of an app whose end the engine tells so many seconds later, and the seconds waited for it."""
    clock = world.clock
    begun = clock.passed()

    async def report(sandbox: SandboxId) -> SandboxReport:
        has_ended = clock.passed() - begun >= ends_after
        end = SandboxEnd(EndCause.EXITED, 3, clock.now()) if has_ended else None
        return SandboxReport(
            sandbox, BuilderId("b"), SandboxState.EXITED if has_ended else SandboxState.RUNNING, end=end
        )

    monkeypatch.setattr(world.engine, "report", report)
    found = await qa._report_of_ending(world.application, SANDBOX)
    return found, clock.passed() - begun


@pytest.mark.parametrize("seconds", [0.0, 0.9, 4.0])
async def test_end_that_is_known_late_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    report, waited = await reported(world, monkeypatch, seconds)
    assert report.end
    assert report.end.exit_code == 3
    assert seconds <= waited < seconds + 0.2


async def test_app_that_runs_on_without_its_port_is_waited_for_no_longer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, waited = await reported(world, monkeypatch, 3600)
    assert report.alive
    assert ENDING_SECONDS <= waited < ENDING_SECONDS + 0.2
