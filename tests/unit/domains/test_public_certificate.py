"""Certificates of ``public_url`` and of the previews on fakes: failing authorities, wrong records, renewals."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from tests.application import World, fake_world
from tests.fakes.clock import FakeClock
from tests.fakes.domains import FakeDnsUpdates

from builderd.domains.model import (
    LAST_CHECK_PAUSE,
    LAST_ORDER_PAUSE,
    WildcardCertificate,
    describe_public,
    public_name,
)
from builderd.domains.renewal import PublicCertificateJob, WildcardJob
from builderd.domains.service import certificate_ends
from builderd.previews.model import API
from builderd.previews.port import OrderFailed

HOST, OURS = "builderd.example.com", "203.0.113.5"
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with fake_world() as made:
        rules = replace(made.application.domain_rules, public_host=HOST, orders_public=True)
        made.application = replace(made.application, domain_rules=rules)
        yield made


async def stored(world: World) -> WildcardCertificate:
    found = await world.read(lambda uow: uow.wildcard_certificates.get(public_name(HOST)))
    assert found is not None
    return found


def wait(world: World, one: WildcardCertificate) -> timedelta:
    return one.next_try_at - world.clock.now()


async def test_wrong_records_are_looked_at_again_and_cost_the_authority_nothing(world: World) -> None:
    job = PublicCertificateJob(world.application)
    pauses = []
    for _ in range(9):
        await job.run_once()
        pauses.append(wait(world, await stored(world)))
        world.clock.move(pauses[-1].total_seconds())
    assert pauses[:3] == [MINUTE, 2 * MINUTE, 4 * MINUTE]
    assert max(pauses) == LAST_CHECK_PAUSE
    assert world.authority.accounts == set()
    failed = await stored(world)
    assert failed.reason.startswith("no record: builderd.example.com has no A or AAAA record; create")
    ready, text = describe_public(HOST, failed, world.clock.now())
    assert not ready
    assert failed.reason in text
    # Its host is in the proxy, which answers 503 with the reason's place.
    assert await world.previews.domains() == {HOST: (API, None)}
    world.names.point(HOST, OURS)
    await job.run_once()
    assert world.authority.issued == [HOST]
    assert (await world.previews.domains())[HOST][1] == (await stored(world)).fingerprint
    assert describe_public(HOST, await stored(world), world.clock.now())[0]
    assert world.previews.challenges == {}


async def test_an_authority_that_fails_for_a_day_keeps_the_present_certificate(world: World) -> None:
    world.names.point(HOST, OURS)
    world.authority.now = world.clock.now
    job = PublicCertificateJob(world.application)
    await job.run_once()
    first = await stored(world)
    world.clock.move(61 * 86_400)
    world.authority.failures = [OrderFailed("the authority does not answer")] * 11
    while world.authority.failures:
        await job.run_once()
        failed = await stored(world)
        assert failed.certificate == first.certificate
        assert wait(world, failed) <= LAST_ORDER_PAUSE
        world.clock.move(wait(world, failed).total_seconds())
    ready, text = describe_public(HOST, failed, world.clock.now())
    assert ready
    assert "could not be renewed: the authority does not answer" in text
    assert (await world.previews.domains())[HOST] == (API, first.fingerprint)
    await job.run_once()
    assert world.authority.issued == [HOST, HOST]
    assert (await stored(world)).failures == 0
    assert (await world.previews.domains())[HOST][1] == (await stored(world)).fingerprint


async def test_the_authoritys_own_wait_is_kept(world: World) -> None:
    world.names.point(HOST, OURS)
    world.authority.failures = [OrderFailed("rateLimited", 3 * DAY)]
    await PublicCertificateJob(world.application).run_once()
    assert wait(world, await stored(world)) == 3 * DAY


async def test_the_next_service_installs_what_is_stored(world: World) -> None:
    world.names.point(HOST, OURS)
    await PublicCertificateJob(world.application).run_once()
    await world.previews.down()
    await world.previews.start()
    world.names.records_of.clear()
    await PublicCertificateJob(world.application).run_once()
    assert (await world.previews.domains())[HOST] == (API, (await stored(world)).fingerprint)
    assert world.authority.issued == [HOST]
    ends = await world.read(lambda uow: certificate_ends(uow, world.application))
    assert [host for host, _ in ends] == [HOST]
    # Another public_url leaves a row behind, which is no certificate in use.
    rules = replace(world.application.domain_rules, public_host="other.example.com")
    other = replace(world.application, domain_rules=rules)
    assert await world.read(lambda uow: certificate_ends(uow, other)) == []


async def test_a_certificate_of_the_operator_is_enough(world: World) -> None:
    rules = replace(world.application.domain_rules, orders_public=False)
    await PublicCertificateJob(replace(world.application, domain_rules=rules)).run_once()
    assert await world.previews.domains() == {HOST: (API, None)}
    assert world.authority.issued == []


async def test_a_short_life_is_renewed_after_two_thirds_of_it(world: World) -> None:
    world.names.point(HOST, OURS)
    job, clock = PublicCertificateJob(world.application), world.clock
    await job.run_once()
    short = replace(await stored(world), ordered_at=clock.now(), expires_at=clock.now() + 6 * DAY)
    await world.application.store.write(lambda uow: uow.wildcard_certificates.put(short))
    for hours, issued in ((95, 1), (2, 2)):
        clock.move(hours * 3_600)
        for _ in range(2):
            await job.run_once()
        assert len(world.authority.issued) == issued, hours


async def test_a_certificate_that_cannot_be_renewed_is_logged_20_10_and_5_days_before_its_end(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.names.point(HOST, OURS)
    job = PublicCertificateJob(world.application)
    await job.run_once()
    world.names.records_of.clear()
    world.clock.move(61 * 86_400)
    left = []
    for _ in range(28):
        caplog.clear()
        for _ in range(2):
            await job.run_once()
        ends = [one.getMessage() for one in caplog.records if "own certificate ends" in one.getMessage()]
        assert all(f"name=https://{HOST} days_left=" in one and "no record" in one for one in ends)
        left += [float(one.partition("days_left=")[2].partition(" ")[0]) for one in ends]
        world.clock.move(86_400)
    assert [round(days) for days in left] == [20, 10, 5]


async def test_the_operator_has_it_checked_now_but_not_before_the_authoritys_own_time(world: World) -> None:
    job = PublicCertificateJob(world.application)
    for _ in range(3):
        await job.run_once()
        world.clock.move(wait(world, await stored(world)).total_seconds())
    await job.run_once()
    failed, now = await stored(world), world.clock.now()
    assert failed.next_try_at > now
    assert failed.may_be_asked_again(now)
    assert "builderd acme check" in describe_public(HOST, failed, now)[1]
    world.names.point(HOST, OURS)
    await world.application.store.write(lambda uow: uow.wildcard_certificates.look_again(failed.domain, now))
    await job.run_once()
    assert world.authority.issued == [HOST]
    limited = replace(failed, reason="the authority refused the order: rateLimited: too many certificates")
    assert not limited.may_be_asked_again(now)
    assert limited.may_be_asked_again(limited.next_try_at)


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
