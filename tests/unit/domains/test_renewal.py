"""Custom domains on fakes: checks in words, certificates, takeovers, kills between the steps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.application import World, fake_world
from tests.domains.claims import HOST, add, found, work

from builderd.bootstrap import keys
from builderd.builders import service as builders
from builderd.builders.model import Builder
from builderd.core.errors import Conflict, EngineUnavailable, NotFound, QuotaExceeded
from builderd.domains import service as domains
from builderd.domains.model import Domain, DomainStatus
from builderd.domains.renewal import DomainJob
from builderd.previews.model import DomainAlias
from builderd.previews.port import CaaRecord, DnsRecords, OrderFailed, ProbeReply
from builderd.tokens.limits import TenantLimit, TenantLimits

OURS = "203.0.113.5"
DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with fake_world() as made:
        yield made


async def active(world: World, host: str = HOST) -> tuple[Builder, Domain]:
    builder = await world.ask()
    world.names.point(host, OURS)
    domain = await add(world, builder, host)
    await work(world)
    return builder, await found(world, domain)


async def events(world: World, builder: Builder, kind: str) -> list[str]:
    return [one.reason for one in await world.events(builder) if one.type == kind]


async def test_a_domain_that_points_here_gets_a_certificate_and_leads_to_the_builder(world: World) -> None:
    builder, domain = await active(world)
    assert (domain.status, domain.reason) == (DomainStatus.ACTIVE, "")
    assert domain.expires_at == world.clock.now() + 90 * DAY
    assert domain.next_try_at == world.clock.now() + DAY
    assert await world.previews.domains() == {HOST: (builder.host, domain.fingerprint)}
    assert world.application.domain_rules.url(domain) == f"https://{HOST}/"
    assert domain.certificate is not None
    assert b"certificate" not in domain.certificate
    assert world.previews.challenges == {}
    assert len(await events(world, builder, "domain.active")) == 1


async def test_without_tls_it_is_active_over_plain_http(world: World) -> None:
    world.application = replace(
        world.application, authority=None, domain_rules=replace(world.application.domain_rules, https_port=None)
    )
    builder, domain = await active(world)
    assert domain.status is DomainStatus.ACTIVE
    assert await world.previews.domains() == {HOST: (builder.host, None)}
    assert world.application.domain_rules.url(domain) == f"http://{HOST}/"


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (DnsRecords(), f"no record: {HOST}"),
        (DnsRecords(("198.51.100.9",)), "points elsewhere: shop.example.com leads to 198.51.100.9; it should be"),
        (DnsRecords((OURS, "198.51.100.9")), "points elsewhere"),
        (DnsRecords(("198.51.100.9",), alias="old.example.net"), "through the CNAME to old.example.net"),
        (DnsRecords((OURS, "2001:db8::bad")), "IPv6 points elsewhere"),
        (DnsRecords((OURS,), caa=(CaaRecord("issue", "other.test"),)), "CAA forbids"),
        (DnsRecords((OURS,), caa=(CaaRecord("issue", ";"),)), "allow no authority"),
        (DnsRecords(error="SERVFAIL from 127.0.0.1"), "name servers: SERVFAIL"),
        (DnsRecords(("127.0.0.1",)), "points elsewhere"),
        (DnsRecords(("169.254.169.254",)), "points elsewhere"),
        (DnsRecords(("no address",)), "no record"),
    ],
)
async def test_wrong_dns_is_reported_and_retried(world: World, records: DnsRecords, words: str) -> None:
    builder = await world.ask()
    world.names.records_of[HOST] = records
    domain = await add(world, builder)
    await work(world)
    failed = await found(world, domain)
    assert failed.status is DomainStatus.FAILED
    assert words in failed.reason
    assert failed.next_try_at == world.clock.now() + MINUTE
    assert await world.previews.domains() == {}
    assert world.authority.issued == []
    assert {address for address, *_ in world.probe.asked} <= {OURS}
    assert await events(world, builder, "domain.failed") == [failed.reason]
    world.names.point(HOST, OURS)
    world.clock.move(61)
    await work(world)
    assert (await found(world, domain)).status is DomainStatus.ACTIVE


@pytest.mark.parametrize(
    "caa", [CaaRecord("issue", "ca.test; account=1"), CaaRecord("iodef", "mailto:a@b"), CaaRecord("issuewild", ";")]
)
async def test_caa_records_that_allow_the_authority(world: World, caa: CaaRecord) -> None:
    builder = await world.ask()
    world.names.records_of[HOST] = DnsRecords((OURS,), caa=(caa,))
    domain = await add(world, builder)
    await work(world)
    assert (await found(world, domain)).status is DomainStatus.ACTIVE


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (ProbeReply(404, "no such challenge", server="nginx"), "challenge path not reachable"),
        (ProbeReply(200, "what the app wants to answer"), "challenge path not reachable"),
        (ProbeReply(None, error="connection refused"), "connection refused"),
    ],
)
async def test_a_challenge_path_that_does_not_answer(world: World, reply: ProbeReply, words: str) -> None:
    builder = await world.ask()
    world.names.point(HOST, OURS)
    world.probe.replies[OURS] = reply
    domain = await add(world, builder)
    await work(world)
    failed = await found(world, domain)
    assert words in failed.reason
    assert reply.body == "" or reply.body not in failed.reason
    assert world.authority.issued == []


async def test_a_proxy_in_front_passes_the_challenge_or_is_named(world: World) -> None:
    builder = await world.ask()
    world.names.point(HOST, "8.8.8.8")
    world.probe.replies["8.8.8.8"] = ProbeReply(301, server="cloudflare")
    domain = await add(world, builder)
    await work(world)
    assert "a proxy in front" in (await found(world, domain)).reason
    world.probe.replies["8.8.8.8"] = ProbeReply(404, server="Apache")
    world.clock.move(61)
    await work(world)
    assert "points elsewhere" in (await found(world, domain)).reason
    del world.probe.replies["8.8.8.8"]
    world.clock.move(601)
    await work(world)
    assert (await found(world, domain)).status is DomainStatus.ACTIVE


async def test_a_builder_has_20_domains_and_a_tenant_its_quota(world: World) -> None:
    builder, other = await world.ask(), await world.ask(name="other")
    for number in range(20):
        await add(world, builder, f"{number}.example.com")
    with pytest.raises(QuotaExceeded, match="20 domains"):
        await add(world, builder)
    limits = TenantLimits(default=TenantLimit(domains=20))
    world.application = replace(world.application, tenant_limits=limits)
    with pytest.raises(QuotaExceeded, match="you may have"):
        await add(world, other)
    assert (await add(world, builder, "0.example.com")).host == "0.example.com"
    with pytest.raises(Conflict):
        await add(world, other, "0.example.com")


async def test_unproven_claim_blocks_no_tenant_and_lapses_after_seven_days(world: World) -> None:
    mine = await world.ask()
    squatter = await add(world, mine)
    await work(world)
    world.caller = await world.tenant("other")
    theirs = await world.ask()
    world.names.point(HOST, OURS)
    domain = await add(world, theirs)
    await work(world)
    assert (await found(world, domain)).status is DomainStatus.ACTIVE
    world.clock.move(61)
    await work(world)
    assert "another tenant holds" in (await found(world, squatter)).reason
    world.clock.move(7 * 86_400)
    await DomainJob(world.application).upkeep()
    assert await world.read(lambda uow: uow.domains.get(squatter.id)) is None
    assert len(await events(world, mine, "domain.lapsed")) == 1
    assert (await found(world, domain)).is_held


async def test_a_domain_of_another_tenant_is_taken_over_by_a_txt_record_only(world: World) -> None:
    builder, domain = await active(world)
    world.caller = await world.tenant("other")
    theirs = await world.ask()
    claim = await add(world, theirs)
    await work(world)
    refused = await found(world, claim)
    assert refused.status is DomainStatus.FAILED
    assert claim.txt_name in refused.reason
    assert claim.txt_value in refused.reason
    # Another claim's record proves nothing.
    world.names.texts[claim.txt_name] = (domain.txt_value,)
    world.clock.move(61)
    await work(world)
    assert not (await found(world, claim)).is_held
    assert (await world.previews.domains())[HOST][0] == builder.host
    world.names.texts[claim.txt_name] = ("unrelated", claim.txt_value)
    world.clock.move(601)
    await work(world)
    assert (await found(world, claim)).status is DomainStatus.ACTIVE
    assert (await world.previews.domains())[HOST][0] == theirs.host
    assert (await found(world, domain)).released_at is not None
    assert len(await events(world, builder, "domain.lost")) == 1


@pytest.mark.parametrize("is_removed", [False, True])
@pytest.mark.parametrize(
    ("held", "wanted"),
    [(HOST, f"login.{HOST}"), (HOST, f"a.b.{HOST}"), (HOST, "example.com")],
    ids=["below", "far below", "above"],
)
async def test_a_name_above_or_below_another_tenants_needs_a_txt_record(
    world: World, held: str, wanted: str, is_removed: bool
) -> None:
    """DNS with a wildcard record leads it here; its app would get the cookies of the name above."""
    builder, domain = await active(world, held)
    if is_removed:
        now = world.clock.now()
        await world.application.store.write(lambda uow: domains.remove(uow, world.caller, builder.id, held, now))
    owner, world.caller = world.caller, await world.tenant("other")
    theirs = await world.ask()
    world.names.point(wanted, OURS)
    claim = await add(world, theirs, wanted)
    await work(world)
    reason = (await found(world, claim)).reason
    assert claim.txt_value in reason
    assert wanted not in await world.previews.domains()
    # A name below the one that is asked for is another tenant's secret.
    assert (held in reason) is not held.endswith(f".{wanted}")
    world.names.texts[claim.txt_name] = (claim.txt_value,)
    world.clock.move(61)
    await work(world)
    assert (await world.previews.domains())[wanted][0] == theirs.host
    # The name above or below stays its tenant's, which needs no record for others of its own.
    assert (await found(world, domain)).is_held is not is_removed
    world.caller = owner
    world.names.point(f"own.{held}", OURS)
    own = await add(world, await world.ask(name="own"), f"own.{held}")
    await work(world)
    assert (await found(world, own)).is_held is (wanted != "example.com")


async def test_a_name_beside_another_tenants_needs_no_record(world: World) -> None:
    await active(world, HOST)
    world.caller = await world.tenant("other")
    _, beside = await active(world, f"my{HOST}")
    assert beside.is_held


async def test_a_deleted_builders_domain_is_not_free_for_others_for_90_days(world: World) -> None:
    builder, domain = await active(world)
    await world.want(builders.delete, builder)
    await work(world)
    assert await world.previews.domains() == {}
    assert (await found(world, domain)).certificate is None
    owner, world.caller = world.caller, await world.tenant("other")
    claim = await add(world, await world.ask(name="thief"))
    await work(world)
    assert claim.txt_value in (await found(world, claim)).reason
    # Its own tenant needs no record.
    world.caller = owner
    again = await add(world, await world.ask(name="again"))
    await work(world)
    assert (await found(world, again)).status is DomainStatus.ACTIVE


async def test_after_90_days_the_name_is_free(world: World) -> None:
    builder, _ = await active(world)
    now = world.clock.now()
    await world.application.store.write(lambda uow: domains.remove(uow, world.caller, builder.id, HOST, now))
    world.clock.move(91 * 86_400)
    await DomainJob(world.application).upkeep()
    world.caller = await world.tenant("other")
    claim = await add(world, await world.ask())
    await work(world)
    assert (await found(world, claim)).status is DomainStatus.ACTIVE


async def test_another_tenants_domain_is_unknown(world: World) -> None:
    builder, _ = await active(world)
    stranger, now = await world.tenant("other"), world.clock.now()
    for call in (domains.remove, domains.ask_again):
        with pytest.raises(NotFound):
            await world.application.store.write(lambda uow, call=call: call(uow, stranger, builder.id, HOST, now))  # type: ignore[misc]


async def test_a_certificate_is_renewed_after_two_thirds_of_its_life_or_when_the_authority_wants(world: World) -> None:
    builder, first = await active(world)
    world.clock.move(59 * 86_400)
    await work(world)
    assert world.authority.issued == [HOST]
    world.clock.move(2 * 86_400)
    await work(world)
    renewed = await found(world, first)
    assert renewed.fingerprint != first.fingerprint
    assert await world.previews.domains() == {HOST: (builder.host, renewed.fingerprint)}
    assert len(await events(world, builder, "domain.renewed")) == 1
    # An early renewal, as after a mass revocation, is seen within a day.
    world.authority.suggested = world.clock.now()
    world.clock.move(86_401)
    await work(world)
    assert len(world.authority.issued) == 3


async def test_a_failing_authority_is_asked_ever_less_often_and_its_wish_respected(world: World) -> None:
    builder = await world.ask()
    world.names.point(HOST, OURS)
    world.authority.failures = [OrderFailed("serverInternal: 500") for _ in range(3)]
    world.authority.failures.append(OrderFailed("rateLimited: too many", timedelta(hours=30)))
    domain = await add(world, builder)
    pauses = []
    for _ in range(4):
        await work(world)
        failed = await found(world, domain)
        assert failed.next_try_at is not None
        pauses.append((failed.next_try_at - world.clock.now()) / MINUTE)
        if len(pauses) < 4:
            world.clock.move(pauses[-1] * 60 + 1)
    assert pauses == [1, 2, 4, 30 * 60]
    assert "too many" in failed.reason
    assert failed.status is DomainStatus.FAILED
    # It is its owner's and is served over plain HTTP meanwhile.
    assert (await world.previews.domains())[HOST] == (builder.host, None)
    now = world.clock.now()
    asked = await world.application.store.write(lambda uow: domains.ask_again(uow, world.caller, builder.id, HOST, now))
    assert asked.next_try_at == failed.not_before
    world.clock.move(30 * 3600 + 1)
    await work(world)
    assert (await found(world, domain)).status is DomainStatus.ACTIVE


async def test_authority_down_for_weeks_is_reported_20_10_and_5_days_before_the_end(world: World) -> None:
    builder, domain = await active(world)
    world.authority.failures = [OrderFailed("the authority does not answer")] * 1000
    for _ in range(88):
        world.clock.move(86_400)
        await work(world)
        await DomainJob(world.application).upkeep()
    held = await found(world, domain)
    assert held.status is DomainStatus.ACTIVE
    assert "not renewed" in held.reason
    told = await events(world, builder, "domain.expiring")
    assert [reason.split(" days")[0].rsplit(" ", 1)[1] for reason in told] == ["20", "10", "5"]
    world.clock.move(3 * 86_400)
    await work(world)
    assert (await found(world, domain)).status is DomainStatus.FAILED
    world.authority.failures = []
    world.clock.move(2 * 86_400)
    await work(world)
    assert (await found(world, domain)).status is DomainStatus.ACTIVE


@pytest.mark.parametrize("point", ["domain.begun", "domain.checked", "domain.issued", "domain.recorded"])
async def test_a_service_killed_between_the_steps_takes_the_domain_up_again(world: World, point: str) -> None:
    builder = await world.ask()
    world.names.point(HOST, OURS)
    domain = await add(world, builder)

    def kill(at: str) -> None:
        if at == point:
            raise asyncio.CancelledError

    job = DomainJob(world.application, kill)
    await job.poll()
    with suppress(asyncio.CancelledError):
        await job.rest()
    await world.previews.down()
    await world.previews.start()
    after = world.another()
    now = after.clock.now()
    await after.application.store.write(lambda uow: domains.resume(uow, tls=True, now=now))
    await work(after)
    done = await found(after, domain)
    assert done.status is DomainStatus.ACTIVE
    assert await after.previews.domains() == {HOST: (builder.host, done.fingerprint)}


async def test_a_domain_removed_while_its_certificate_is_ordered_stays_removed(world: World) -> None:
    builder = await world.ask()
    world.names.point(HOST, OURS)
    await add(world, builder)
    now = world.clock.now()

    async def removing(at: str) -> None:
        await world.application.store.write(lambda uow: domains.remove(uow, world.caller, builder.id, HOST, now))

    issue = world.authority.issue

    async def issue_and_remove(*arguments: object) -> object:
        await removing("")
        return await issue(*arguments)  # type: ignore[arg-type]

    world.authority.issue = issue_and_remove  # type: ignore[method-assign, assignment]
    await work(world)
    assert await world.previews.domains() == {}
    assert await world.read(lambda uow: uow.domains.of_builder(builder.id)) == []


async def test_a_change_that_the_proxy_did_not_take_is_made_by_the_next_look(world: World) -> None:
    builder = await world.ask()
    world.names.point(HOST, OURS)
    job = DomainJob(world.application)
    await job.poll()
    domain = await add(world, builder)
    put = world.previews.put_domain

    async def refused(alias: DomainAlias) -> None:
        raise EngineUnavailable("busy")

    world.previews.put_domain = refused  # type: ignore[method-assign]
    await job.poll()
    await job.rest()
    assert await world.previews.domains() == {}
    world.previews.put_domain = put  # type: ignore[method-assign]
    await job.poll()
    assert await world.previews.domains() == {HOST: (builder.host, (await found(world, domain)).fingerprint)}


async def test_one_tenants_failing_domains_keep_no_other_waiting(world: World) -> None:
    builder = await world.ask()
    for number in range(20):
        await add(world, builder, f"{number}.example.com")
    world.caller = await world.tenant("other")
    world.names.point(HOST, OURS)
    domain = await add(world, await world.ask())
    job = DomainJob(world.application)
    await job.poll()
    await job.rest()
    assert (await found(world, domain)).status is DomainStatus.ACTIVE


async def test_a_tenant_cannot_use_up_the_authoritys_limit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domains, "MAX_ORDERS", 2)
    builder = await world.ask()
    for number in range(3):
        world.names.point(f"{number}.example.com", OURS)
        await add(world, builder, f"{number}.example.com")
    await work(world)
    await work(world)
    assert len(world.authority.issued) == 2
    waiting = next(
        one for one in await world.read(lambda uow: uow.domains.of_builder(builder.id)) if not one.expires_at
    )
    assert waiting.status is DomainStatus.ISSUING
    world.clock.move(3601)
    await work(world)
    assert len(world.authority.issued) == 3


async def test_secrets_are_sealed_again_with_a_new_vault_key(world: World) -> None:
    await active(world)
    assert len(await world.read(lambda uow: list(keys.sealed(uow)))) == 2
    assert await world.application.store.write(lambda uow: keys.reseal(uow, world.application.vault)) == 0


async def test_a_forgotten_account_is_made_anew_at_the_next_order(world: World) -> None:
    await active(world)
    assert len(world.authority.accounts) == 1
    directory = world.application.domain_rules.directory
    await world.application.store.write(lambda uow: uow.acme_accounts.delete(directory))
    world.clock.move(61 * 86_400)
    await work(world)
    assert len(world.authority.accounts) == 2


async def test_a_failing_domain_checked_in_a_loop_orders_no_more_often(world: World) -> None:
    builder = await world.ask()
    world.names.point(HOST, OURS)
    world.authority.failures = [OrderFailed("rejectedIdentifier")] * 100
    await add(world, builder)
    for _ in range(50):
        await work(world)
        now = world.clock.now()
        await world.application.store.write(
            lambda uow, now=now: domains.ask_again(uow, world.caller, builder.id, HOST, now)  # type: ignore[misc]
        )
        world.clock.move(1)
    assert 100 - len(world.authority.failures) == 1
    world.clock.move(60)
    await work(world)
    assert 100 - len(world.authority.failures) == 2
