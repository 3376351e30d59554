"""An app that listens no more after the gate's request: its end is the reason, also where it is known late."""

from __future__ import annotations

import pytest
from tests.application import World

from builderd.domain.ids import BuilderId, SandboxId
from builderd.domain.qa import ENDING_SECONDS, SecondLook
from builderd.domain.sandboxes import EndCause, Listening, SandboxEnd, SandboxReport, SandboxState
from builderd.services import qa

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

    async def listening(sandbox: SandboxId) -> Listening:
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
