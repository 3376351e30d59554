"""Time limit for an app to listen."""

from __future__ import annotations

from typing import Any

import pytest
from tests.application import ENTRYPOINT, World

from builderd.adapters.fakes.sandboxes import Behaviour
from builderd.domain.builders import Status
from builderd.domain.errors import StartFailed


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
    assert world.called("listening") <= looked + 2
