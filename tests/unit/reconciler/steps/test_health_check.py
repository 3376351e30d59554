"""Time limit for an app to listen."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from tests.application import ENTRYPOINT, World
from tests.fakes.sandboxes import Behaviour

from builderd.builders.model import JobType, Status
from builderd.core.errors import StartFailed, ValidationFailed
from builderd.core.ids import SandboxId
from builderd.reconciler.steps.await_listening import ELSEWHERE_GRACE
from builderd.sandboxes.model import Listening
from builderd.tokens.limits import BUSY_FACTOR
from builderd.versions.model import VersionSettings


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
            world.clock.jump(far)
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
    assert world.called("listening") == looked + 1, "its time was over"


@pytest.mark.parametrize("busy", [False, True])
async def test_a_version_may_take_the_time_that_it_asks_for_and_twice_that_on_a_busy_machine(
    world: World, busy: bool
) -> None:
    world.engine.busy = busy
    world.engine.behave(ENTRYPOINT, Behaviour(listens_at=None))
    async with world.reconciling():
        for seconds in (90, 30):
            with pytest.raises(StartFailed, match=r'within (\d+) seconds.*set "start_timeout"') as failed:
                await world.create(name=f"after-{seconds}", start_timeout=seconds)
            said = re.search(r"within (\d+) seconds", str(failed.value))
            assert said is not None
            allowed = seconds * (BUSY_FACTOR if busy else 1)
            assert allowed <= int(said[1]) <= allowed + 1


async def test_a_lowered_bound_holds_for_what_was_stored_before(world: World) -> None:
    limits = replace(world.application.limits, max_start_timeout=90)
    assert limits.start_seconds(VersionSettings("run", start_timeout=150)) == 90
    assert limits.start_seconds(VersionSettings("run", start_timeout=10)) == 10
    assert limits.start_seconds(VersionSettings("run")) == limits.start_timeout


async def test_longer_than_the_service_allows_is_refused(world: World) -> None:
    with pytest.raises(ValidationFailed) as refused:
        await world.ask(start_timeout=601)
    assert refused.value.errors == {"start_timeout": ["must be at most 600 seconds, the limit of this service"]}


@pytest.mark.parametrize(("opens_after", "is_up"), [(4.0, True), (40.0, False)])
async def test_app_with_an_unreachable_port_has_five_seconds_for_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch, opens_after: float, is_up: bool
) -> None:
    """Notebooks and frameworks open ports of their helpers on loopback before the one that visitors ask."""
    begun, loopback = world.clock.passed(), ("127.0.0.1", 9999)

    async def listening(_: SandboxId) -> Listening:
        is_open = world.clock.passed() - begun >= opens_after
        return Listening(frozenset({loopback, ("0.0.0.0", 8000)} if is_open else {loopback}))

    monkeypatch.setattr(world.engine, "listening", listening)
    async with world.reconciling():
        if is_up:
            assert (await world.create()).status is Status.RUNNING
            return
        with pytest.raises(StartFailed, match=r"listens on port 9999, not on 0\.0\.0\.0:8000"):
            await world.create()
    assert ELSEWHERE_GRACE <= world.clock.passed() - begun <= ELSEWHERE_GRACE + 1


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("ends_at", [4, None])
async def test_worker_is_up_after_its_second_and_later_beside_a_busy_machine(
    world: World, busy: bool, ends_at: int | None
) -> None:
    world.engine.behave(ENTRYPOINT, Behaviour(listens_at=None, exits_at=ends_at, exit_code=1))
    world.engine.busy = busy
    begun = world.clock.passed()
    async with world.reconciling():
        builder = await world.ask(job_type=JobType.WORKER)
        if ends_at is None:
            assert (await world.outcome(builder)).status is Status.RUNNING
        else:
            with pytest.raises(StartFailed, match="ended before it was up"):
                await world.outcome(builder)
    assert (1 if ends_at is None else 0) <= world.clock.passed() - begun <= (BUSY_FACTOR if busy else 1) + 0.5
