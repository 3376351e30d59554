"""Custom domains: added, listed, checked and removed. ``domains/renewal`` checks them and gets certificates."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from builderd.application import Application
from builderd.builders import service as builders
from builderd.builders.candidates import note, release
from builderd.builders.model import Desired
from builderd.builders.service import Caller
from builderd.core.addresses import Address, a_labels, is_public, refusal
from builderd.core.errors import Conflict, NotFound, QuotaExceeded, ValidationFailed
from builderd.core.ids import BuilderId, DomainId, TenantId, new_id
from builderd.database.unit_of_work import UnitOfWork
from builderd.domains import model as domains
from builderd.domains.model import (
    CLAIM_LIFE,
    HELD_LIFE,
    TXT_LABEL,
    AcmeAccount,
    Domain,
    DomainRules,
    DomainStatus,
    WildcardCertificate,
)
from builderd.events.model import SYSTEM
from builderd.previews.model import fingerprint
from builderd.previews.port import Certificate, DnsRecords, OrderFailed, ProbeReply
from builderd.tokens.port import Vault

#: Orders of one tenant in ``ORDER_SPAN``: the authority limits those of the whole service.
MAX_ORDERS, ORDER_SPAN = 30, timedelta(hours=1)
#: Rows that are removed in one transaction.
BATCH = 200


def add(
    uow: UnitOfWork, application: Application, caller: Caller, builder_id: str, host: str, now: datetime
) -> tuple[Domain, bool]:
    """Claim a host for the builder; return it and True, or the claim that the builder has already and False.

    Raises ``ValidationFailed``, ``NotFound``, ``Conflict`` for a host of another builder of the tenant, and
    ``QuotaExceeded``.
    """
    builder = builders.get(uow, caller.tenant_id, builder_id, lock=True)
    rules = application.domain_rules
    if (why := refusal(host, rules.reserved, rules.preview_domain)) is not None:
        raise ValidationFailed({"host": [why]})
    known = uow.domains.by_host(caller.tenant_id, host)
    if known is not None:
        if known.builder_id == builder.id:
            return known, False
        raise Conflict(
            f"{host} is a domain of another builder of yours: remove it there first.", data={"uuid": known.builder_id}
        )
    _check_quota(uow, application, caller.tenant_id, builder.id)
    made = Domain(
        id=DomainId(new_id()),
        tenant_id=caller.tenant_id,
        builder_id=builder.id,
        host=host,
        created_at=now,
        created_by=caller.actor,
        reason=f"its first check is due; it needs {domains.wanted_record(host, rules.addresses)}",
        next_try_at=now,
    )
    uow.domains.add(made)
    note(uow, made, "domain.added", caller.actor, f"added by {caller.actor}", now)
    return made, True


def _check_quota(uow: UnitOfWork, application: Application, tenant_id: TenantId, builder_id: BuilderId) -> None:
    most = application.domain_rules.per_builder
    if len(uow.domains.of_builder(builder_id)) >= most:
        raise QuotaExceeded(f"The builder has {most} domains, the most that one may have: remove one first.")
    tenant = uow.tenants.get(tenant_id)
    limit = application.tenant_limits.of(tenant).domains if tenant is not None else None
    if limit is not None and uow.domains.count(tenant_id) >= limit:
        raise QuotaExceeded(f"Your builders have {limit} domains, the most that you may have: remove one first.")


def of_builder(uow: UnitOfWork, tenant_id: TenantId, builder_id: str) -> Sequence[Domain]:
    """Return the builder's domains by host. Raises ``NotFound``."""
    return uow.domains.of_builder(builders.get(uow, tenant_id, builder_id).id)


def get(uow: UnitOfWork, tenant_id: TenantId, builder_id: str, host: str) -> Domain:
    """Return a domain of the builder, named in any spelling. Raises ``NotFound``."""
    builder = builders.get(uow, tenant_id, builder_id)
    try:
        name = a_labels(host)
    except ValueError:
        name = ""
    found = uow.domains.by_host(tenant_id, name) if name else None
    if found is None or found.builder_id != builder.id:
        raise NotFound("The builder has no such domain: list them with GET /api/v1/builders/{uuid}/domains.")
    return found


def remove(uow: UnitOfWork, caller: Caller, builder_id: str, host: str, now: datetime) -> Domain:
    """End the claim: the domain leads nowhere from then on. Raises ``NotFound``."""
    found = get(uow, caller.tenant_id, builder_id, host)
    release(uow, found, now)
    note(uow, found, "domain.removed", caller.actor, f"removed by {caller.actor}", now)
    return found


def ask_again(uow: UnitOfWork, caller: Caller, builder_id: str, host: str, now: datetime) -> Domain:
    """Have the domain checked now, or as soon as the authority allows. Raises ``NotFound``."""
    found = _locked(uow, get(uow, caller.tenant_id, builder_id, host))
    wanted = domains.asked_again(found, now)
    uow.domains.save(wanted)
    return wanted


def _locked(uow: UnitOfWork, domain: Domain) -> Domain:
    found = uow.domains.get(domain.id, lock=True)
    if found is None or found.released_at is not None:
        raise NotFound("The domain was removed meanwhile.")
    return found


# Steps of the job. Each reads the row again: it may be removed meanwhile.


def begin(uow: UnitOfWork, domain_id: DomainId, now: datetime) -> Domain | None:
    """Record that the check begins; None when the domain is gone or not due any more."""
    found = _live(uow, domain_id)
    if found is None or found.next_try_at is None or found.next_try_at > now:
        return None
    started = domains.begun(found, now)
    uow.domains.save(started)
    return started


def postpone(uow: UnitOfWork, domain_id: DomainId, until: datetime) -> None:
    """Look at it again at this time; nothing else changes."""
    found = _live(uow, domain_id)
    if found is not None:
        uow.domains.save(replace(found, next_try_at=until))


def checked(
    uow: UnitOfWork, application: Application, domain_id: DomainId, *, reason: str | None, owns_text: bool
) -> Domain | None:
    """Record a check; ``reason`` None: it passed. Return the domain whose certificate is to be ordered, or None.

    With ``owns_text`` the TXT record was found: the domain is taken over from the tenant that holds it.
    """
    found, now = _live(uow, domain_id), application.clock.now()
    if found is None:
        return None
    claims = uow.domains.related(found.host)
    other = domains.rival(found, [one for one in claims if one.host == found.host], now)
    if reason is None and not owns_text and not found.is_held:
        near = domains.rival(found, claims, now)
        reason = domains.wants_txt(found, near.host) if near is not None else None
    if reason is not None:
        _fail(uow, found, domains.check_failed(found, reason, now), now)
        return None
    if other is not None and other.released_at is None:
        release(uow, other, now)
        note(uow, other, "domain.lost", SYSTEM, "another tenant showed by a TXT record that it is theirs", now)
    tls = application.authority is not None
    if tls and (wait := _order_wait(uow, found, now)) is not None:
        owned = replace(domains.proven(found, now, tls=True), ordered_at=found.ordered_at, next_try_at=wait)
        uow.domains.save(replace(owned, reason=f"its certificate is ordered at {wait:%H:%M} UTC or later"))
        return None
    ready = domains.proven(found, now, tls=tls)
    uow.domains.save(ready)
    if not tls and found.status is not DomainStatus.ACTIVE:
        note(uow, ready, "domain.active", SYSTEM, "it leads to the builder", now)
    return ready if tls else None


def _order_wait(uow: UnitOfWork, domain: Domain, now: datetime) -> datetime | None:
    """Return until when nothing may be ordered for it; None: now."""
    due = domains.order_time(domain)
    if due is not None and due > now:
        return due
    if uow.domains.orders_since(domain.tenant_id, now - ORDER_SPAN) >= MAX_ORDERS:
        return now + ORDER_SPAN / 4
    return None


def order_failed(uow: UnitOfWork, domain_id: DomainId, failure: OrderFailed, now: datetime) -> None:
    found = _live(uow, domain_id)
    if found is not None:
        _fail(uow, found, domains.order_failed(found, failure.reason, now, failure.wait), now)


def _fail(uow: UnitOfWork, before: Domain, after: Domain, now: datetime) -> None:
    uow.domains.save(after)
    # It is tried again and again: a reason that did not change is no news.
    if before.failures == 0 or before.reason not in (after.reason, "its DNS records are being checked"):
        note(uow, after, "domain.failed", SYSTEM, after.reason, now)


def issued(uow: UnitOfWork, application: Application, domain_id: DomainId, certificate: Certificate) -> Domain | None:
    """Store the certificate, sealed. None when the domain was removed meanwhile."""
    found, now = _live(uow, domain_id), application.clock.now()
    if found is None or not found.is_held:
        return None
    renew_at = domains.renewal_time(certificate.begin, certificate.end, certificate.renew_at)
    look_at = min(renew_at, now + domains.ARI_INTERVAL)
    sealed = application.vault.seal(certificate.pem.encode(), found.associated_data)
    done = domains.issued(found, sealed, fingerprint(certificate.pem), expires_at=certificate.end, look_at=look_at)
    uow.domains.save(done)
    kind, reason = ("active", "its certificate is issued") if found.certificate is None else ("renewed", "renewed")
    note(uow, done, f"domain.{kind}", SYSTEM, reason, now, expires_at=certificate.end.isoformat())
    return done


def _live(uow: UnitOfWork, domain_id: DomainId) -> Domain | None:
    found = uow.domains.get(domain_id, lock=True)
    if found is None or found.released_at is not None:
        return None
    builder = uow.builders.get(found.builder_id)
    return found if builder is not None and builder.desired is not Desired.DELETED else None


# Housekeeping


def resume(uow: UnitOfWork, *, tls: bool, now: datetime) -> None:
    """Make what a killed service had begun due at once, and with TLS what was active before there was TLS."""
    for domain_id in uow.domains.interrupted(without_certificate=tls):
        found = uow.domains.get(domain_id, lock=True)
        if found is not None:
            uow.domains.save(replace(found, next_try_at=now))


def expire(uow: UnitOfWork, now: datetime) -> None:
    """Drop claims that were not proven in time, and forget who held a host long ago."""
    for one in uow.domains.outdated(now - CLAIM_LIFE, now - HELD_LIFE, BATCH):
        uow.domains.delete(one.id)
        if one.released_at is None:
            reason = f"it was not proven within {CLAIM_LIFE.days} days: {one.reason}"
            note(uow, one, "domain.lapsed", SYSTEM, reason, now)


def warn(uow: UnitOfWork, now: datetime) -> None:
    """Tell tenants of certificates that end soon and could not be renewed."""
    for one in uow.domains.expiring(now + timedelta(days=max(domains.WARNING_DAYS))):
        days = domains.warning(one, now)
        if days is not None:
            uow.domains.save(replace(one, warned_days=days))
            reason = f"its certificate ends in less than {days} days: {one.reason}"
            note(uow, one, "domain.expiring", SYSTEM, reason, now, days=days)


def account_key(uow: UnitOfWork, application: Application) -> bytes:
    """Return the private key of the account at the authority; it is made and stored, sealed, when there is none."""
    assert application.authority is not None
    stored = uow.acme_accounts.get(application.domain_rules.directory)
    if stored is not None:
        return application.vault.open(stored.key, stored.associated_data)
    key, now = application.authority.new_account_key(), application.clock.now()
    account = AcmeAccount(application.domain_rules.directory, b"", now)
    uow.acme_accounts.put(replace(account, key=application.vault.seal(key, account.associated_data)))
    return key


async def issue(application: Application, host: str) -> Certificate:
    """Order a certificate for the host; the proxy answers the challenge. Raises ``OrderFailed``."""
    assert application.authority is not None
    account = await application.store.write(lambda uow: account_key(uow, application))
    published: list[str] = []

    async def publish(token: str, answer: str) -> None:
        published.append(token)
        await application.previews.put_challenge(token, answer)

    try:
        return await application.authority.issue(account, host, publish)
    finally:
        for token in published:
            await application.previews.remove_challenge(token)


def certificate_ends(uow: UnitOfWork, application: Application) -> Sequence[tuple[str, datetime]]:
    """Return host and end of all certificates in use, the service's own too, sorted by end."""
    stored = own_certificates(uow, application.domain_rules)
    own = [(one.label, one.expires_at) for one in stored if one.expires_at is not None]
    return sorted((*own, *uow.domains.expiries()), key=lambda one: one[1])


def own_certificates(uow: UnitOfWork, rules: DomainRules) -> Sequence[WildcardCertificate]:
    """Return the certificates that the service orders for itself: those of earlier settings are left out."""
    used = rules.own_certificates
    return [one for one in uow.wildcard_certificates.all() if one.domain in used] if used else []


def reseal(uow: UnitOfWork, vault: Vault) -> int:
    """Seal keys that an earlier vault key sealed with the present one; return their number."""
    count = 0

    def sealed(old: bytes | None, data: str) -> bytes | None:
        """Return the text sealed anew, None if there is none or it is sealed with the present key."""
        nonlocal count
        if old is None or vault.is_current(old):
            return None
        count += 1
        return vault.seal(vault.open(old, data), data)

    for domain in uow.domains.all():
        if new := sealed(domain.certificate, domain.associated_data):
            uow.domains.save(replace(domain, certificate=new))
    for account in uow.acme_accounts.all():
        if new := sealed(account.key, account.associated_data):
            uow.acme_accounts.put(replace(account, key=new))
    for wildcard in uow.wildcard_certificates.all():
        if new := sealed(wildcard.certificate, wildcard.associated_data):
            uow.wildcard_certificates.put(replace(wildcard, certificate=new))
    return count


CHALLENGE_PATH = "/.well-known/acme-challenge/"
#: Addresses of each family at which the challenge path is requested.
PROBED = 2
#: Values of ``Server`` by which proxies that stand before a site's own server name themselves.
PROXIES = ("akamai", "bunny", "cloudflare", "cloudfront", "fastly", "imperva", "netlify", "sucuri", "varnish", "vercel")


@dataclass(frozen=True, slots=True)
class Finding:
    """Outcome of a check: ``reason`` is what is wrong, or None. ``owns_text``: the TXT record of ownership is there."""

    reason: str | None
    owns_text: bool


async def check(application: Application, domain: Domain) -> Finding:
    """Check the domain. Connects only to addresses that the lookup returned: the service's own, or public ones."""
    assert application.name_servers is not None
    records = await application.name_servers.records(domain.host, domain.txt_name)
    owns_text = domain.txt_value in records.texts
    return Finding(await _reason(application, domain.host, records), owns_text)


async def check_host(application: Application, host: str) -> str | None:
    """Check a host of the service's own; return what is wrong, or None."""
    assert application.name_servers is not None
    return await _reason(application, host, await application.name_servers.records(host, f"{TXT_LABEL}.{host}"))


async def _reason(application: Application, host: str, records: DnsRecords) -> str | None:
    ours = application.domain_rules.addresses
    if records.error:
        return f"name servers: {records.error}"
    found = domains.addresses_of(records.addresses)
    if not found:
        return domains.no_record(host, ours)
    if (why := await _caa(application, host, records)) is not None:
        return why
    strange = domains.strangers(found, ours)
    if not strange:
        return await _unreachable(application, host, found)
    if len(strange) < len(found) and all(address.version == 6 for address in strange):
        return domains.ipv6_elsewhere(host, strange, ours)
    elsewhere = domains.points_elsewhere(host, records.alias, strange, ours)
    return elsewhere if len(strange) < len(found) else await _behind_proxy(application, host, strange, elsewhere)


async def _caa(application: Application, host: str, records: DnsRecords) -> str | None:
    if application.authority is None or not records.caa:
        return None
    names = await application.authority.identities()
    return domains.caa_forbids(host, [(one.tag, one.value) for one in records.caa], names)


async def _unreachable(application: Application, host: str, addresses: Sequence[Address]) -> str | None:
    """Return why the challenge path of this service does not answer at its own addresses, or None."""
    port = application.domain_rules.http_port
    for version in (4, 6):
        for address in [one for one in addresses if one.version == version][:PROBED]:
            reply, passed = await _probe(application, host, address)
            if not passed:
                return domains.unreachable(host, address, port, _told(reply))
    return None


async def _behind_proxy(application: Application, host: str, strange: Sequence[Address], elsewhere: str) -> str | None:
    """Return None if a proxy at a public address passes the challenge path on to this service, else the reason."""
    public = [address for address in strange if is_public(address)]
    if len(public) < len(strange):
        return elsewhere
    reply, passed = await _probe(application, host, public[0])
    if passed:
        return None
    redirects = reply.status is not None and 300 <= reply.status < 400
    names_itself = any(name in reply.server.lower() for name in PROXIES)
    if redirects or names_itself:
        return domains.proxy_in_front(host, public[0], _told(reply))
    return elsewhere


async def _probe(application: Application, host: str, address: Address) -> tuple[ProbeReply, bool]:
    """Request an answer of our own at the challenge path; return the reply, and whether it is that answer."""
    assert application.challenge_probe is not None
    token, answer = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    await application.previews.put_challenge(token, answer)
    try:
        reply = await application.challenge_probe.get(
            str(address), application.domain_rules.http_port, host, f"{CHALLENGE_PATH}{token}"
        )
    finally:
        await application.previews.remove_challenge(token)
    return reply, reply.status == 200 and reply.body.strip() == answer


def _told(reply: ProbeReply) -> str:
    """Return what is known of the reply. Its body is not shown: it may be of a machine that is not the tenant's."""
    if reply.status is None:
        return reply.error
    return f"status {reply.status}{f', server {reply.server}' if reply.server else ''}"
