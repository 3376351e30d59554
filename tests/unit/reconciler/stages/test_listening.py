"""Time limit for an app to listen."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from tests.application import ENTRYPOINT, World

from builderd.adapters.fakes.sandboxes import Behaviour
from builderd.domain.builders import Status
from builderd.domain.errors import StartFailed, ValidationFailed
from builderd.domain.versions import VersionSettings
from builderd.services.start_time import INTERVAL, WINDOW


@pytest.mark.parametrize("far", [3600, 10 * 86400])
async def test_a_clock_that_is_set_forward_takes_no_time_from_an_app_that_starts(
    world: World, monkeypatch: pytest.MonkeyPatch, far: float
) -> None:
    """NTP sets a clock forward shortly after the machine has started with a clock that was late."""
    world.engine.behave(ENTRYPOINT, Behaviour(listens_at=5))
    listening, looks = world.engine.listening, 0

    async def look(*args: Any) -> Any:
        nonlocal looks
        looks += 1
        if looks == 2:
            world.clock.skip(far)
        return await listening(*args)

    monkeypatch.setattr(world.engine, "listening", look)
    async with world.reconciling():
        builder = await world.create()
    assert builder.status is Status.RUNNING
    assert looks >= 5


async def test_the_time_counts_from_the_start_also_for_a_later_service(world: World) -> None:
    world.engine.behave(ENTRYPOINT, Behaviour(listens_at=None))
    async with world.reconciling():
        builder = await world.ask()
        await world.until(lambda: world.called("listening") > 2)
    world.clock.move(world.application.limits.start_timeout)
    looked = world.called("listening")
    async with world.another().reconciling():
        with pytest.raises(StartFailed, match="did not listen"):
            await world.outcome(builder)
    # Not another minute, but one window of looks at its CPU time, with ten looks at its port a second.
    assert world.called("listening") <= looked + 10 * (WINDOW + 2 * INTERVAL)


async def test_a_version_may_take_the_time_that_it_asks_for(world: World) -> None:
    world.engine.behave(ENTRYPOINT, Behaviour(listens_at=None))
    async with world.reconciling():
        for seconds in (90, 30):
            with pytest.raises(StartFailed, match=r'within (\d+) seconds.*set "start_timeout"') as failed:
                await world.create(name=f"after-{seconds}", start_timeout=seconds)
            said = re.search(r"within (\d+) seconds", str(failed.value))
            assert said is not None
            assert seconds <= int(said[1]) <= seconds + WINDOW + 2 * INTERVAL


async def test_a_lowered_bound_holds_for_what_was_stored_before(world: World) -> None:
    limits = replace(world.application.limits, max_start_timeout=90)
    assert limits.start_seconds(VersionSettings("run", start_timeout=150)) == 90
    assert limits.start_seconds(VersionSettings("run", start_timeout=10)) == 10
    assert limits.start_seconds(VersionSettings("run")) == limits.start_timeout


async def test_longer_than_the_service_allows_is_refused(world: World) -> None:
    with pytest.raises(ValidationFailed) as refused:
        await world.ask(start_timeout=601)
    assert refused.value.errors == {"start_timeout": ["must be at most 600 seconds, the limit of this service"]}
