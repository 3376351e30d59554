"""The check of a custom domain before anything is ordered: its DNS records, and the challenge path as others see it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from builderd.domain import domains
from builderd.domain.addresses import Address, is_public
from builderd.domain.domains import TXT_LABEL, Domain
from builderd.ports.domains import DnsRecords, ProbeReply
from builderd.services.application import Application

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
