"""Custom domains as every store keeps them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.contract.store.samples import NOW, OTHER_TENANT, SECOND, TENANT, add, make_builder

from builderd.core.ids import DomainId, new_id
from builderd.database.unit_of_work import Store
from builderd.domains.model import AcmeAccount, Domain, DomainRoute, DomainStatus, WildcardCertificate

BUILDER = make_builder()
FOREIGN = make_builder(tenant_id=OTHER_TENANT.id)
DAY = timedelta(days=1)


def claim(**changes: Any) -> Domain:
    made = Domain(
        id=DomainId(new_id()),
        tenant_id=TENANT.id,
        builder_id=BUILDER.id,
        host="shop.example.com",
        created_at=NOW,
        created_by="token ci",
    )
    return replace(made, **changes)


async def put(store: Store, *claims: Domain) -> None:
    for one in claims:
        await store.write(lambda uow, one=one: uow.domains.add(one))  # type: ignore[misc]


async def test_every_field_is_stored(store: Store) -> None:
    await add(store, BUILDER)
    made = claim()
    await put(store, made)
    assert await store.read(lambda uow: uow.domains.get(made.id)) == made
    changed = replace(
        made,
        status=DomainStatus.ACTIVE,
        reason="no record",
        failures=3,
        next_try_at=NOW,
        not_before=NOW,
        proven_at=NOW,
        ordered_at=NOW,
        certificate=b"\x00sealed\xff",
        fingerprint="a" * 64,
        expires_at=NOW + DAY,
        warned_days=10,
    )
    await store.write(lambda uow: uow.domains.save(changed))
    assert await store.read(lambda uow: uow.domains.by_host(TENANT.id, made.host)) == changed
    assert await store.write(lambda uow: uow.domains.get(made.id, lock=True)) == changed
    assert await store.read(lambda uow: uow.domains.all()) == [changed]
    assert await store.read(lambda uow: uow.domains.expiries()) == [(made.host, NOW + DAY)]
    assert await store.read(lambda uow: uow.domains.routes()) == [
        DomainRoute(made.id, made.host, BUILDER.host, "a" * 64)
    ]
    assert await store.read(lambda uow: uow.domains.expiring(NOW + 2 * DAY)) == [changed]
    await store.write(lambda uow: uow.domains.delete(made.id))
    assert await store.read(lambda uow: uow.domains.of_builder(BUILDER.id)) == []


async def test_one_claim_of_all_tenants_holds_a_host(store: Store) -> None:
    await add(store, OTHER_TENANT, BUILDER, FOREIGN)
    mine, theirs = claim(), claim(tenant_id=OTHER_TENANT.id, builder_id=FOREIGN.id)
    await put(store, mine, theirs)
    await store.write(lambda uow: uow.domains.save(replace(mine, proven_at=NOW)))
    with pytest.raises(Exception, match=r"(?i)unique"):
        await store.write(lambda uow: uow.domains.save(replace(theirs, proven_at=NOW)))
    await store.write(lambda uow: uow.domains.save(replace(mine, proven_at=NOW, released_at=NOW)))
    await store.write(lambda uow: uow.domains.save(replace(theirs, proven_at=NOW)))
    found = await store.read(lambda uow: uow.domains.related(mine.host))
    assert {one.id for one in found} == {mine.id, theirs.id}
    assert await store.read(lambda uow: uow.domains.by_host(TENANT.id, mine.host)) is None
    with pytest.raises(Exception, match=r"(?i)unique"):
        await put(store, claim(tenant_id=OTHER_TENANT.id, builder_id=FOREIGN.id))


async def test_claims_of_names_above_and_below_are_related(store: Store) -> None:
    await add(store, OTHER_TENANT, BUILDER, FOREIGN)
    hosts = ("example.com", "shop.example.com", "a.b.shop.example.com")
    strange = ("myshop.example.com", "a.example.com", "shop.example.com.example.org", "shop-example.com")
    made = [claim(host=host) for host in (*hosts, *strange)]
    gone = claim(tenant_id=OTHER_TENANT.id, builder_id=FOREIGN.id, proven_at=NOW, released_at=NOW)
    await put(store, *made, gone)
    found = await store.write(lambda uow: uow.domains.related("shop.example.com"))
    assert sorted(one.host for one in found) == sorted([*hosts, gone.host])


async def test_released_hosts_are_due_until_the_proxy_has_them_no_more(store: Store) -> None:
    await add(store, BUILDER)
    held = claim(host="a.example.com", proven_at=NOW, next_try_at=NOW)
    other = claim(host="c.example.com", proven_at=NOW)
    gone = claim(host="b.example.com", proven_at=NOW, released_at=NOW, next_try_at=NOW)
    later = replace(gone, id=DomainId(new_id()), host="d.example.com", next_try_at=NOW + SECOND)
    await put(store, held, other, gone, later)
    assert await store.read(lambda uow: uow.domains.released(NOW, 10)) == [(gone.id, gone.host)]
    assert await store.read(lambda uow: uow.domains.due(NOW, 10)) == [(TENANT.id, held.id)]
    await store.write(lambda uow: uow.domains.withdrawn([gone.id, held.id]))
    assert await store.read(lambda uow: uow.domains.released(NOW, 10)) == []
    assert await store.read(lambda uow: uow.domains.due(NOW, 10)) == [(TENANT.id, held.id)]


async def test_a_tenant_with_many_due_domains_gets_one_turn(store: Store) -> None:
    await add(store, OTHER_TENANT, BUILDER, FOREIGN)
    many = [claim(host=f"{number}.example.com", next_try_at=NOW - SECOND * (30 - number)) for number in range(9)]
    one = claim(tenant_id=OTHER_TENANT.id, builder_id=FOREIGN.id, next_try_at=NOW)
    later = claim(host="later.example.com", next_try_at=NOW + SECOND)
    await put(store, *many, one, later)
    due = await store.read(lambda uow: uow.domains.due(NOW, 10))
    assert due == [(TENANT.id, many[0].id), (OTHER_TENANT.id, one.id)]
    assert await store.read(lambda uow: uow.domains.count(TENANT.id)) == 10


async def test_old_claims_and_old_releases_are_found(store: Store) -> None:
    await add(store, BUILDER)
    old = claim(created_at=NOW - 8 * DAY)
    proven = claim(created_at=NOW - 8 * DAY, host="a.example.com", proven_at=NOW - 7 * DAY)
    released = replace(proven, id=DomainId(new_id()), host="b.example.com", released_at=NOW - 91 * DAY)
    await put(store, old, proven, released, claim(host="c.example.com"))
    found = await store.read(lambda uow: uow.domains.outdated(NOW - 7 * DAY, NOW - 90 * DAY, 10))
    assert {one.id for one in found} == {old.id, released.id}


async def test_an_account_of_a_directory_replaces_the_one_before(store: Store) -> None:
    first = AcmeAccount("https://ca.test/dir", b"sealed", NOW)
    await store.write(lambda uow: uow.acme_accounts.put(first))
    await store.write(lambda uow: uow.acme_accounts.put(replace(first, key=b"new")))
    assert await store.read(lambda uow: uow.acme_accounts.get(first.directory)) == replace(first, key=b"new")
    assert len(await store.read(lambda uow: uow.acme_accounts.all())) == 1
    assert await store.write(lambda uow: uow.acme_accounts.delete(first.directory))
    assert not await store.write(lambda uow: uow.acme_accounts.delete(first.directory))


async def test_a_wildcard_certificate_of_a_domain_replaces_the_one_before(store: Store) -> None:
    first = WildcardCertificate("apps.test", NOW)
    await store.write(lambda uow: uow.wildcard_certificates.put(first))
    assert await store.read(lambda uow: uow.wildcard_certificates.get("apps.test")) == first
    whole = replace(
        first,
        certificate=b"\x00sealed\xff",
        fingerprint="a" * 64,
        ordered_at=NOW,
        expires_at=NOW + DAY,
        failures=2,
        reason="refused",
    )
    await store.write(lambda uow: uow.wildcard_certificates.put(whole))
    assert await store.read(lambda uow: uow.wildcard_certificates.all()) == [whole]
    await store.write(lambda uow: uow.wildcard_certificates.look_again("apps.test", NOW + SECOND))
    await store.write(lambda uow: uow.wildcard_certificates.look_again("other.test", NOW))
    asked = replace(whole, next_try_at=NOW + SECOND)
    assert await store.read(lambda uow: uow.wildcard_certificates.all()) == [asked]
    assert await store.read(lambda uow: uow.wildcard_certificates.get("other.test")) is None


async def test_interrupted_domains_and_those_without_a_certificate_are_found(store: Store) -> None:
    await add(store, BUILDER)
    begun = claim(status=DomainStatus.CHECKING, next_try_at=NOW + DAY)
    plain = claim(host="plain.example.com", status=DomainStatus.ACTIVE, proven_at=NOW, ordered_at=NOW)
    await put(store, begun, plain, claim(host="later.example.com", next_try_at=NOW + DAY))
    assert await store.read(lambda uow: uow.domains.interrupted(without_certificate=False)) == [begun.id]
    found = await store.read(lambda uow: uow.domains.interrupted(without_certificate=True))
    assert set(found) == {begun.id, plain.id}
    assert await store.read(lambda uow: uow.domains.orders_since(TENANT.id, NOW)) == 1
    assert await store.read(lambda uow: uow.domains.orders_since(TENANT.id, NOW + SECOND)) == 0
