"""Time limit for an app to listen."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tests.application import ENTRYPOINT, MAIN, World
from tests.fakes.sandboxes import Behaviour

from builderd.builders import service as builders
from builderd.builders.model import JobType, Status
from builderd.code.model import BundleFile
from builderd.core.errors import StartFailed, ValidationFailed
from builderd.core.ids import SandboxId
from builderd.reconciler.steps.await_listening import ELSEWHERE_GRACE, SETTLE_SECONDS
from builderd.sandboxes.model import Listening, SandboxUsage
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


LOAD, OWN = ("127.0.0.1", 9090), ("0.0.0.0", 8000)


@dataclass
class Opening:
    """Sockets of an app over time: seconds after the test's begin → those that are open from then on."""

    world: World
    sockets: Mapping[float, Collection[tuple[str, int]]]
    begun: float = field(init=False)

    def __post_init__(self) -> None:
        self.begun = self.world.clock.passed()

    @property
    def seconds(self) -> float:
        return self.world.clock.passed() - self.begun

    async def listening(self, _: SandboxId, port: int) -> Listening:
        now = next((found for at, found in sorted(self.sockets.items(), reverse=True) if self.seconds >= at), ())
        if {(ip, port) for ip in ("0.0.0.0", "127.0.0.1")} & set(now):
            return Listening(frozenset({("0.0.0.0", port)}))
        return Listening(frozenset(now))


@pytest.mark.parametrize("seconds", [4.0, 40.0])
async def test_app_that_was_given_its_port_has_five_seconds_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    opening = Opening(world, {0: [LOAD], seconds: [LOAD, OWN]})
    monkeypatch.setattr(world.engine, "listening", opening.listening)
    async with world.reconciling():
        if seconds < ELSEWHERE_GRACE:
            assert (await world.create(port=8000, fixed_port=True)).status is Status.RUNNING
            return
        with pytest.raises(StartFailed, match=r"listens on 127\.0\.0\.1:9090, which cannot be reached"):
            await world.create(port=8000, fixed_port=True)
    assert ELSEWHERE_GRACE <= opening.seconds <= ELSEWHERE_GRACE + 1


async def test_preview_leads_to_the_only_port_of_each_run_and_the_version_records_it(world: World) -> None:
    world.engine.behave(ENTRYPOINT, Behaviour(sockets=(("127.0.0.1", 5000), ("0.0.0.0", 9229))))
    async with world.reconciling():
        builder = await world.create()
        route = await world.route(builder)
        assert route is not None
        assert route.destination is not None
        assert (route.destination.port, (await world.version(builder)).port) == (5000, 5000)
        begun = world.clock.passed()
        await world.reached(builders.stop, builder)
        await world.reached(builders.start, builder)
        assert world.clock.passed() - begun < SETTLE_SECONDS, "it is known by now"
        await world.deploy(builder, BundleFile(MAIN.path, b"new"))
    assert (await world.version(await world.builder(builder))).adopted_port == 5000
    said = [one.reason for one in await world.events(builder) if one.type == "port.adopted"]
    assert said == ["the app listens on 127.0.0.1:5000, not on port 8000: the preview leads there"]


@pytest.mark.parametrize("seconds", [0.6, 30.0])
async def test_preview_leads_to_the_own_port_of_an_app_that_opens_it_after_another(
    world: World, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(world.engine, "listening", Opening(world, {0: [LOAD], seconds: [LOAD, OWN]}).listening)
    async with world.reconciling():
        builder = await world.create()

        async def leads_to_own() -> bool:
            route = await world.route(builder)
            return route is not None and route.destination is not None and route.destination.port == 8000

        await world.until(leads_to_own)
    assert (await world.version(builder)).adopted_port is None


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


@pytest.mark.parametrize(("computes", "shortest"), [(5, 5), (60, 10)])
async def test_worker_that_computes_when_its_time_is_over_is_watched_for_up_to_ten_seconds(
    world: World, monkeypatch: pytest.MonkeyPatch, computes: float, shortest: float
) -> None:
    """A bot whose imports take longer than its lifetime would otherwise crash as a success."""
    begun = world.clock.passed()

    async def usage(_: SandboxId) -> SandboxUsage:
        return SandboxUsage(min(world.clock.passed() - begun, computes), 0, 0, 0, 0, 1)

    monkeypatch.setattr(world.engine, "usage", usage)
    world.engine.behave(ENTRYPOINT, Behaviour(listens_at=None))
    async with world.reconciling():
        assert (await world.create(job_type=JobType.WORKER)).status is Status.RUNNING
    assert shortest <= world.clock.passed() - begun <= shortest + 1.5
