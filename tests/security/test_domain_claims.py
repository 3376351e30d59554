"""Attacks on custom domains: takeover of names, checks led to other machines, markup, the service's own host."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from tests.application import World, fake_world
from tests.domains.claims import HOST, add, found, work
from tests.fakes.domains import FakeNameServers

from builderd.builders import service as builders
from builderd.builders.model import Builder
from builderd.core.addresses import a_labels
from builderd.core.errors import ValidationFailed
from builderd.domains import service as domains
from builderd.domains.model import DomainStatus
from builderd.previews.model import API, DomainAlias
from builderd.previews.port import CaaRecord, DnsRecords, ProbeReply

OURS = "203.0.113.5"
PLANTED = "<script>alert(1)</script>"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with fake_world() as made:
        yield made


async def check_now(world: World, builder: Builder) -> None:
    now = world.clock.now()
    await world.application.store.write(lambda uow: domains.ask_again(uow, world.caller, builder.id, HOST, now))


INTERNAL = (
    "127.0.0.1",
    "10.0.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "::1",
    "fe80::1",
    "fd00::1",
    "::ffff:10.0.0.1",
    "64:ff9b::a00:1",
    "2002:a00:1::",
)


@pytest.mark.parametrize("address", INTERNAL)
async def test_a_check_connects_to_no_machine_of_the_network_around(world: World, address: str) -> None:
    domain = await add(world, await world.ask())
    for addresses in ((address,), (address, "8.8.8.8"), (OURS, address)):
        world.names.point(HOST, *addresses)
        await work(world)
        assert address not in {asked for asked, *_ in world.probe.asked}
        assert not (await found(world, domain)).is_held
        world.clock.move(3_601)
    assert world.authority.issued == []


async def test_a_name_that_changes_between_two_lookups_is_probed_at_the_checked_address(world: World) -> None:
    """Rebinding: a check that resolved the name again for its request would connect to the second answer."""

    class Rebinding(FakeNameServers):
        asked = 0

        async def records(self, host: str, text_name: str) -> DnsRecords:
            self.asked += 1
            return DnsRecords((OURS,) if self.asked == 1 else ("169.254.169.254",))

    names = Rebinding()
    world.application = replace(world.application, name_servers=names)
    domain = await add(world, await world.ask())
    await work(world)
    assert names.asked == 1
    assert {address for address, *_ in world.probe.asked} == {OURS}
    assert (await found(world, domain)).status is DomainStatus.ACTIVE


async def test_a_deleted_builders_domain_is_not_had_by_who_waits_for_it(world: World) -> None:
    """The records still lead here: a claim from before the deletion, asked for again and again, gets nothing."""
    builder = await world.ask()
    world.names.point(HOST, OURS)
    await add(world, builder)
    await work(world)
    owner, world.caller = world.caller, await world.tenant("other")
    thief = await world.ask(name="thief")
    claim = await add(world, thief)
    await work(world)
    attacker, world.caller = world.caller, owner
    await world.want(builders.delete, builder)
    world.caller = attacker
    for _ in range(5):
        world.clock.move(3_601)
        await check_now(world, thief)
        await work(world)
        assert not (await found(world, claim)).is_held
        assert await world.previews.domains() == {}
    # The owner's record, shown by the wrong tenant's claim, names that claim's id only.
    world.names.texts[claim.txt_name] = ("builderd-domain=", f"{claim.txt_value} ", claim.txt_value.upper())
    world.clock.move(3_601)
    await work(world)
    assert not (await found(world, claim)).is_held


@pytest.mark.parametrize("host", ["api.example.com", "shop.localhost", "localhost"])
async def test_no_tenant_claims_a_host_of_the_service(world: World, host: str) -> None:
    with pytest.raises(ValidationFailed):
        await add(world, await world.ask(), host)


async def test_a_claim_from_before_public_url_does_not_take_the_apis_host(world: World) -> None:
    builder = await world.ask()
    world.names.point(HOST, OURS)
    await add(world, builder)
    await work(world)
    assert (await world.previews.domains())[HOST][0] == builder.host
    # The operator gives the API that host, and restarts the service.
    rules = replace(world.application.domain_rules, public_host=HOST, orders_public=True)
    world.application = replace(world.application, domain_rules=rules)
    await world.previews.put_domain(DomainAlias(HOST, API, "certificate\n"))
    await work(world)
    assert (await world.previews.domains())[HOST][0] == API


@pytest.mark.parametrize("host", [f"{PLANTED}.example.com", 'a".example.com', "a&b.example.com", "a\u202e.example.com"])
def test_markup_is_no_host_name(host: str) -> None:
    with pytest.raises(ValueError, match="must "):
        a_labels(host)


async def test_reasons_quote_hostile_servers_within_bounds(world: World) -> None:
    builder = await world.ask()
    domain = await add(world, builder)
    world.names.records_of[HOST] = DnsRecords(("8.8.8.8",), alias=f"{PLANTED}.example.net")
    world.probe.replies["8.8.8.8"] = ProbeReply(301, body=PLANTED, server="cloudflare")
    await work(world)
    reason = (await found(world, domain)).reason
    assert "a proxy in front" in reason
    assert PLANTED not in reason
    world.names.records_of[HOST] = DnsRecords((OURS,), caa=(CaaRecord("issue", "a" * 300),) * 50)
    world.clock.move(3_601)
    await work(world)
    assert len((await found(world, domain)).reason) < 20_000
