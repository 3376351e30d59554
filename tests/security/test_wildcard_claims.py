"""Attacks by wildcards of tenants: on zones and names of others, and on the service's own hosts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.application import World, fake_world
from tests.domains.claims import add, found, work
from tests.fakes.domains import FakeDnsUpdates, FakeNameServers

from builderd.domain.builders import Builder
from builderd.domain.domains import Domain, DomainStatus
from builderd.domain.errors import ValidationFailed
from builderd.ports.domains import CaaRecord, DnsRecords
from builderd.services import domains

ZONE, OURS = "shop.example.org", "203.0.113.5"
WILDCARD, NAME = f"*.{ZONE}", f"api.{ZONE}"


class WildcardRecords(FakeNameServers):
    """A zone whose wildcard record leads to the service, as a zone with a wildcard domain has it."""

    async def records(self, host: str, text_name: str) -> DnsRecords:
        if host.endswith(f".{ZONE}") and host not in self.records_of:
            self.point(host, OURS)
        return await super().records(host, text_name)


class RecordedUpdates(FakeDnsUpdates):
    """Updates that remember which names the operator's DNS was asked to write."""

    written: list[str]

    async def add_text(self, name: str, value: str) -> None:
        self.written.append(name)
        await super().add_text(name, value)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with fake_world() as made:
        made.names = WildcardRecords()
        updates = RecordedUpdates(made.names)
        updates.written = []
        made.application = replace(made.application, name_servers=made.names, dns_updates=updates)
        yield made


async def later(world: World) -> None:
    world.clock.move(3_601)
    await work(world)


def show_text(world: World, domain: Domain) -> None:
    world.names.texts[domain.txt_name] = (*world.names.texts.get(domain.txt_name, ()), domain.txt_value)


def written(world: World) -> list[str]:
    assert isinstance(world.application.dns_updates, RecordedUpdates)
    return world.application.dns_updates.written


async def active(world: World, host: str) -> tuple[Builder, Domain]:
    builder = await world.ask()
    domain = await add(world, builder, host)
    show_text(world, domain)
    await work(world)
    return builder, await found(world, domain)


async def test_an_owned_wildcard_gets_a_certificate_of_its_own_names_alone(world: World) -> None:
    builder, domain = await active(world, WILDCARD)
    assert (domain.status, domain.reason) == (DomainStatus.ACTIVE, "")
    assert domain.txt_name == f"_builderd.{ZONE}"
    # Not of the zone's own name, which may be another tenant's.
    assert world.authority.issued == [WILDCARD]
    assert written(world) == [f"_acme-challenge.{ZONE}"]
    assert await world.previews.domains() == {WILDCARD: (builder.host, domain.fingerprint)}
    assert {host for *_, host in world.probe.asked} != {WILDCARD}


async def test_the_operators_dns_is_asked_for_no_zone_that_the_tenant_did_not_prove(world: World) -> None:
    """The records lead here, and the operator's DNS could write the zone: the tenant's own proof is missing."""
    claim = await add(world, await world.ask(), WILDCARD)
    other = await add(world, await world.ask(name="other"), f"*.b.{ZONE}")
    world.names.texts[claim.txt_name] = (other.txt_value, claim.txt_value.upper(), f"{claim.txt_value} ")
    for _ in range(3):
        await later(world)
        assert not (await found(world, claim)).is_held
        assert f"_builderd.{ZONE}" in (await found(world, claim)).reason
    assert (written(world), world.authority.issued, await world.previews.domains()) == ([], [], {})


async def test_a_renewal_needs_the_proof_again(world: World) -> None:
    _, domain = await active(world, WILDCARD)
    del world.names.texts[domain.txt_name]
    assert domain.expires_at is not None
    world.clock.move(61 * 86_400)
    await work(world)
    assert world.authority.issued == [WILDCARD]
    seen = await found(world, domain)
    assert seen.status is DomainStatus.ACTIVE
    assert "needs proof" in seen.reason


@pytest.mark.parametrize("is_removed", [False, True])
async def test_a_name_below_anothers_wildcard_needs_the_txt_record(world: World, is_removed: bool) -> None:
    """Records of the name lead here by the owner's wildcard record: without the rule, any tenant could have it."""
    builder, owned = await active(world, WILDCARD)
    owner = world.caller
    if is_removed:
        now = world.clock.calendar()
        await world.application.store.write(lambda uow: domains.remove(uow, owner, builder.id, WILDCARD, now))
    world.caller = await world.tenant("other")
    thief = await world.ask(name="thief")
    claim = await add(world, thief, NAME)
    for _ in range(3):
        await later(world)
        assert not (await found(world, claim)).is_held
    assert WILDCARD in (await found(world, claim)).reason
    assert NAME not in await world.previews.domains()
    show_text(world, claim)
    await later(world)
    assert (await found(world, claim)).is_held
    # The wildcard is not lost by it.
    assert (await found(world, owned)).is_held is not is_removed
    assert (WILDCARD in await world.previews.domains()) is not is_removed


async def test_a_wildcard_takes_no_name_that_another_tenant_has_below_it(world: World) -> None:
    builder = await world.ask()
    single = await add(world, builder, NAME)
    await work(world)
    world.caller = await world.tenant("other")
    attacker = await world.ask(name="attacker")
    claim = await add(world, attacker, WILDCARD)
    await later(world)
    assert not (await found(world, claim)).is_held
    show_text(world, claim)
    await later(world)
    have = await world.previews.domains()
    assert (have[NAME][0], have[WILDCARD][0]) == (builder.host, attacker.host)
    # The single name is renewed without a record more.
    world.clock.move(61 * 86_400)
    await work(world)
    assert (await found(world, single)).reason == ""


async def test_one_tenant_has_a_wildcard_at_a_time(world: World) -> None:
    _, first = await active(world, WILDCARD)
    world.caller = await world.tenant("other")
    taker = await world.ask(name="taker")
    claim = await add(world, taker, WILDCARD)
    await work(world)
    assert not (await found(world, claim)).is_held
    show_text(world, claim)
    await later(world)
    assert (await found(world, claim)).is_held
    assert not (await found(world, first)).is_held
    assert (await world.previews.domains())[WILDCARD][0] == taker.host


async def test_a_wildcard_without_a_proof_by_dns_is_refused_with_what_to_do(world: World) -> None:
    world.application = replace(world.application, dns_updates=None)
    with pytest.raises(ValidationFailed) as refused:
        await add(world, await world.ask(), WILDCARD)
    assert "acme.hook" in str(refused.value.errors)


async def test_a_wildcard_over_hosts_of_the_service_leads_nowhere(world: World) -> None:
    _, domain = await active(world, WILDCARD)
    rules = replace(world.application.domain_rules, reserved=frozenset({NAME}))
    world.application = replace(world.application, domain_rules=rules)
    with pytest.raises(ValidationFailed):
        await add(world, await world.ask(name="second"), WILDCARD)
    # One from before the operator gave the API that host.
    await work(world)
    assert await world.previews.domains() == {}
    world.clock.move(61 * 86_400)
    await work(world)
    assert world.authority.issued == [WILDCARD]
    assert f"covers {NAME}" in (await found(world, domain)).reason


async def test_caa_records_for_wildcards_count_and_reasons_are_the_same_at_each_check(world: World) -> None:
    world.names.records_of[ZONE] = DnsRecords(caa=(CaaRecord("issue", "ca.test"), CaaRecord("issuewild", ";")))
    builder, domain = await active(world, WILDCARD)
    assert domain.reason.startswith(f"CAA forbids: the CAA records of {WILDCARD} allow no authority")
    assert "issuewild" in domain.reason
    await later(world)
    failed = [one for one in await world.events(builder) if one.type == "domain.failed"]
    assert len(failed) == 1
    assert (await found(world, domain)).created_at + timedelta(hours=1) < world.clock.calendar()
