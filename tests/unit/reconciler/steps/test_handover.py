"""During a take-over, visitors get an answer within the time for which requests are paused."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta

import pytest
from tests.application import ENTRYPOINT, World
from tests.fakes.sandboxes import Behaviour, FakeSandbox

from builderd.code.model import BundleFile
from builderd.core.errors import StartFailed
from builderd.core.ids import BuilderId, DiskId, SandboxId
from builderd.previews.haproxy.pause import MAX_PAUSE
from builderd.reconciler.steps.await_listening import MIN_HANDOVER_SECONDS, time_limit
from builderd.reconciler.steps.route import DRAIN_TIMEOUT, drained, grace
from builderd.sandboxes.model import Listening, Sandbox

NOW = datetime(2026, 1, 31, tzinfo=UTC)
USUAL, LONGEST = 12.0, 60.0
NEW = BundleFile("main.py", b"print('new')\n")
OTHER = "python3 -X dev main.py"


def started(seconds: float | None) -> Sandbox:
    """One that listened after so many seconds, or never."""
    listening = None if seconds is None else NOW + timedelta(seconds=seconds)
    return Sandbox(SandboxId("1"), BuilderId("b"), 1, 1, 1, NOW, DiskId("d"), started_at=NOW, listening_at=listening)


@pytest.mark.parametrize("drained", [0.0, 2.0, DRAIN_TIMEOUT])
@pytest.mark.parametrize("old", [0.1, 3.0, 6.0, 10.0, 12.0])
def test_there_is_time_to_bring_the_old_version_back(drained: float, old: float) -> None:
    held = drained + grace(10, drained) + time_limit(started(0.3), started(old), USUAL, LONGEST) + old
    assert held <= MAX_PAUSE - 0.5


async def test_drain_ends_with_the_last_open_request_or_its_timeout(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = [2, 1, 0]
    monkeypatch.setattr(world.previews, "open_requests", lambda _: asyncio.sleep(0, counts.pop(0)))
    assert await drained(world.application, "app.localhost") < 0.1
    assert counts == []
    monkeypatch.setattr(world.previews, "open_requests", lambda _: asyncio.sleep(0, 1))
    assert DRAIN_TIMEOUT <= await drained(world.application, "app.localhost") <= DRAIN_TIMEOUT + 0.1


def test_requests_that_took_long_leave_the_old_version_less_time_to_end() -> None:
    assert [grace(10, seconds) for seconds in (0, 2, 4.5, 10)] == [5, 3, 1, 1]
    assert grace(0.5, 0) == 0.5


def test_slow_starter_gets_a_longer_time_limit() -> None:
    assert time_limit(started(7), started(0.1), USUAL, LONGEST) == LONGEST
    assert time_limit(started(4), started(12), USUAL, LONGEST) == LONGEST
    assert time_limit(started(5), started(0.1), USUAL, LONGEST) == USUAL


def test_time_limit_of_an_unknown_start_is_what_visitors_can_wait() -> None:
    assert time_limit(None, None, USUAL, LONGEST) == USUAL
    assert time_limit(started(None), started(0.1), USUAL, LONGEST) == USUAL
    assert time_limit(started(0.1), started(0.1), USUAL, 1) == 1


def test_version_whose_trial_did_not_listen_counts_as_slow_as_its_predecessor() -> None:
    """Panel's trial ran for 89 s and its old version had taken 102 s: the new one was refused after 5 s."""
    assert time_limit(started(None), started(102), USUAL, LONGEST) == LONGEST
    assert time_limit(None, started(7), USUAL, LONGEST) == LONGEST
    assert time_limit(started(None), started(6), USUAL, LONGEST) == USUAL
    assert time_limit(started(0.3), started(102), USUAL, LONGEST) == MIN_HANDOVER_SECONDS


class SlowApps:
    """Engine calls of apps that listen after so many seconds (None: never).

    The new version's trial is no verdict, since it has no network.
    """

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch, old: float, new: float | None) -> None:
        self._world, self._old, self._new = world, old, new
        offline = "socket.gaierror: [Errno -3] Temporary failure in name resolution"
        world.engine.behave(OTHER, Behaviour(exits_at=0, exit_code=3, lines=(offline,)), Behaviour())
        monkeypatch.setattr(world.engine, "listening", self.listening)

    def _needs(self, found: FakeSandbox) -> float | None:
        return self._old if found.spec.entrypoint == ENTRYPOINT else self._new

    def _seconds(self, found: FakeSandbox) -> float:
        return (self._world.clock.now() - found.started_at).total_seconds()

    async def listening(self, sandbox: SandboxId, port: int) -> Listening:
        found = self._world.engine.known.get(sandbox)
        needs = self._needs(found) if found is not None else None
        if found is None or needs is None or self._seconds(found) < needs:
            return Listening(frozenset())
        return Listening(frozenset({("0.0.0.0", found.spec.port)}))


async def test_version_that_is_as_slow_as_its_predecessor_takes_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    SlowApps(world, monkeypatch, 50.0, 45.0)
    async with world.reconciling():
        builder = await world.create()
        await world.deploy(builder, NEW, entrypoint=OTHER)
    assert (await world.builder(builder)).version == 2


async def test_version_that_waits_is_refused_while_visitors_can_wait(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    SlowApps(world, monkeypatch, 3.0, None)
    async with world.reconciling():
        builder = await world.create()
        with pytest.raises(StartFailed, match="did not listen") as failed:
            await world.deploy(builder, NEW, entrypoint=OTHER)
    said = re.search(r"within (\d+) seconds", str(failed.value))
    assert said is not None
    assert USUAL <= int(said[1]) <= USUAL + 1
