"""The previews' wildcard certificate on fakes, with a clock that goes on at each look."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from tests.application import fake_world
from tests.fakes.clock import FakeClock
from tests.fakes.domains import FakeDnsUpdates

from builderd.ports.previews import OrderFailed
from builderd.reconciler.jobs.domains import WildcardJob


class RunningClock(FakeClock):
    def now(self) -> datetime:
        self.move(0.001)
        return super().now()


async def test_a_wildcard_is_ordered_once_retried_after_failures_and_renewed() -> None:
    async with fake_world() as world:
        clock = RunningClock()
        application = replace(world.application, clock=clock, dns_updates=FakeDnsUpdates(world.names))
        job = WildcardJob(application)
        world.authority.failures = [OrderFailed("rateLimited", timedelta(hours=1))]
        await job.run_once()
        await job.run_once()
        assert world.authority.issued == []
        clock.move(3601)
        for _ in range(2):
            await job.run_once()
        assert world.authority.issued == ["localhost and *.localhost"]
        assert world.previews.wildcard.startswith("certificate 1 of localhost and *.localhost")
        assert world.names.texts == {"_acme-challenge.localhost": ()}
        world.authority.now = clock.now
        clock.move(5 * 365 * 86_400)
        await job.run_once()
        assert world.previews.wildcard.startswith("certificate 2 of localhost and *.localhost")
