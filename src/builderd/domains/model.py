"""Custom domains: a host name of the tenant's own that leads to a builder, the states of its claim, and its DNS check.

``pending → checking → issuing → active | failed``. A claim is proven when the DNS check has passed: from then on it is
the only one of its host on this machine. An unproven claim blocks nobody, and lapses.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from builderd.core.addresses import Address, parse
from builderd.core.ids import BuilderId, DomainId, TenantId

#: An unproven claim is dropped after this time.
CLAIM_LIFE = timedelta(days=7)
#: For this long after a tenant held a host, another tenant needs a TXT record to get it.
HELD_LIFE = timedelta(days=90)
#: Pause after a failure, doubled with each further one: of a check, and of an order, which costs the authority.
FIRST_PAUSE, LAST_CHECK_PAUSE, LAST_ORDER_PAUSE = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
#: Longer than a check and an order take: after it a killed service's work is taken up again.
WORK_LEASE = timedelta(minutes=10)
#: Days before the end of a certificate that is not renewed, at which its tenant gets an event.
WARNING_DAYS = (20, 10, 5)
#: Part of a certificate's life after which it is renewed, where the authority does not say when (ARI).
RENEWAL_PART = 2 / 3
#: How often the authority is asked when to renew. No certificate is renewed sooner after its issue.
ARI_INTERVAL = timedelta(days=1)
TXT_LABEL = "_builderd"
_ORIGIN = "https://"
#: Error of an authority that wants no order for a time (RFC 8555, 6.7).
RATE_LIMITED = "rateLimited"


class DomainStatus(StrEnum):
    #: Just added: the first check is due.
    PENDING = "pending"
    #: Its DNS records are being checked.
    CHECKING = "checking"
    #: It leads to the builder over plain HTTP; its certificate is being ordered.
    ISSUING = "issuing"
    #: It leads to the builder, with a certificate where the service has TLS.
    ACTIVE = "active"
    #: The check or the order failed; the reason says why, ``next_try_at`` when it is tried again.
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Domain:
    """Claim of a host for a builder. ``host`` is in A-labels (``xn--…``), lower case.

    ``proven_at``: when its check first passed. ``released_at``: when a proven one was removed or lost; such a row is in
    no list and remembers for ``HELD_LIFE`` who held the host. ``not_before``: the authority wants no order until then.
    ``certificate`` is the sealed PEM of key and chain, ``fingerprint`` the sha256 of that PEM. ``warned_days`` is the
    last of ``WARNING_DAYS`` for which an event was recorded.
    """

    id: DomainId
    tenant_id: TenantId
    builder_id: BuilderId
    host: str
    created_at: datetime
    created_by: str
    status: DomainStatus = DomainStatus.PENDING
    reason: str = ""
    failures: int = 0
    next_try_at: datetime | None = None
    not_before: datetime | None = None
    proven_at: datetime | None = None
    released_at: datetime | None = None
    ordered_at: datetime | None = None
    certificate: bytes | None = None
    fingerprint: str | None = None
    expires_at: datetime | None = None
    warned_days: int | None = None

    @property
    def txt_name(self) -> str:
        """Name of the TXT record that proves the claim over any other tenant's."""
        return f"{TXT_LABEL}.{self.host}"

    @property
    def txt_value(self) -> str:
        return f"builderd-domain={self.id}"

    @property
    def associated_data(self) -> str:
        """Associated data that the vault binds the certificate's key to."""
        return f"domain/{self.id}"

    @property
    def is_held(self) -> bool:
        """True if it is proven and not released: its host is this claim's alone."""
        return self.proven_at is not None and self.released_at is None


@dataclass(frozen=True, slots=True)
class DomainRoute:
    """Route of a held domain: ``builder_host`` is its builder's preview. ``fingerprint`` is its certificate's."""

    id: DomainId
    host: str
    builder_host: str
    fingerprint: str | None


@dataclass(frozen=True, slots=True)
class AcmeAccount:
    """Account at a certificate authority. ``key`` is its sealed private key."""

    directory: str
    key: bytes
    created_at: datetime

    @property
    def associated_data(self) -> str:
        return f"acme-account/{self.directory}"


@dataclass(frozen=True, slots=True)
class WildcardCertificate:
    """Certificate of the previews' domain and all hosts in it. ``certificate`` is the sealed PEM of key and chain.

    ``next_try_at``: when it is looked at again; ``reason`` says why the last order failed.
    """

    domain: str
    next_try_at: datetime
    certificate: bytes | None = None
    fingerprint: str | None = None
    ordered_at: datetime | None = None
    expires_at: datetime | None = None
    failures: int = 0
    reason: str = ""

    @property
    def associated_data(self) -> str:
        return f"wildcard-certificate/{self.domain}"

    def failed(
        self, reason: str, now: datetime, *, most: timedelta, wait: timedelta | None = None
    ) -> WildcardCertificate:
        """Return it after a failure; the present certificate stays. The pause is at most ``most``, but no less than
        the time that the authority asks for (``wait``)."""
        pause = max(_pause(self, most), wait or timedelta(0))
        return replace(self, failures=self.failures + 1, reason=reason, next_try_at=now + pause)

    def may_be_asked_again(self, now: datetime) -> bool:
        """Return False if it is not due and was refused by the authority's limits: its wait is kept."""
        return self.next_try_at <= now or RATE_LIMITED not in self.reason

    @property
    def label(self) -> str:
        """Return the host in metrics: ``*.<domain>``, or that of ``public_url``."""
        return self.domain.removeprefix(_ORIGIN) if self.domain.startswith(_ORIGIN) else f"*.{self.domain}"


def public_name(host: str) -> str:
    """Return the name under which the certificate of ``public_url``'s host is stored, beside that of the previews."""
    return f"{_ORIGIN}{host}"


def describe_public(host: str, stored: WildcardCertificate | None, now: datetime) -> tuple[bool, str]:
    """Return whether the certificate of ``public_url`` is in use, and what it waits for or when it ends."""
    if stored is None:
        return False, f"the certificate of {host} is not ordered yet"
    failure = (
        f": {stored.reason}; next try {stored.next_try_at:%Y-%m-%d %H:%M} UTC, or now: builderd acme check"
        if stored.reason
        else ""
    )
    if stored.certificate is None or stored.expires_at is None:
        return False, f"there is no certificate of {host}{failure}"
    if stored.expires_at <= now:
        return False, f"the certificate of {host} ended on {stored.expires_at:%Y-%m-%d}{failure}"
    failure = f", and could not be renewed{failure}" if failure else ""
    return True, f"the certificate of {host} ends on {stored.expires_at:%Y-%m-%d}{failure}"


@dataclass(frozen=True, slots=True)
class DomainRules:
    """Operator's rules. ``addresses``: where domains must lead. ``http_port`` and ``https_port``: what visitors use.

    ``https_port`` is None without TLS: a domain is then served over plain HTTP, without a certificate. ``reserved``
    are hosts of the service itself; nothing below ``preview_domain`` can be claimed. ``directory`` is the authority's.
    """

    addresses: tuple[str, ...] = ()
    http_port: int = 80
    https_port: int | None = None
    reserved: frozenset[str] = frozenset()
    preview_domain: str = "localhost"
    directory: str = ""
    per_builder: int = 20
    #: Whether the service orders a wildcard certificate for the previews.
    orders_previews: bool = False
    #: Host of ``public_url`` where the proxy of the previews serves the API, and whether its certificate is ordered:
    #: the operator's own may have that host.
    public_host: str | None = None
    orders_public: bool = False

    @property
    def own_certificates(self) -> frozenset[str]:
        """Return the names under which certificates that the service orders for itself are stored."""
        names = {self.preview_domain} if self.orders_previews else set[str]()
        if self.public_host is not None and self.orders_public:
            names.add(public_name(self.public_host))
        return frozenset(names)

    def url(self, domain: Domain) -> str:
        """Return the address that visitors use."""
        if self.https_port is not None and domain.certificate is not None:
            return f"https://{domain.host}{'' if self.https_port == 443 else f':{self.https_port}'}/"
        return f"http://{domain.host}{'' if self.http_port == 80 else f':{self.http_port}'}/"


# Transitions


def begun(domain: Domain, now: datetime) -> Domain:
    """Return the domain whose check begins. One that is active stays so: it is being renewed."""
    status = domain.status if domain.status is DomainStatus.ACTIVE else DomainStatus.CHECKING
    reason = domain.reason if domain.status is DomainStatus.ACTIVE else "its DNS records are being checked"
    return replace(domain, status=status, reason=reason, next_try_at=now + WORK_LEASE)


def check_failed(domain: Domain, reason: str, now: datetime) -> Domain:
    """Return the domain after a check that found something wrong; it is checked again by itself."""
    return _failed(domain, reason, now, _pause(domain, LAST_CHECK_PAUSE))


def order_failed(domain: Domain, reason: str, now: datetime, wait: timedelta | None = None) -> Domain:
    """Return the domain after a failed order. ``wait``: the authority wants no order before it."""
    pause = max(_pause(domain, LAST_ORDER_PAUSE), wait or timedelta(0))
    return replace(_failed(domain, reason, now, pause), not_before=now + wait if wait else None)


def _failed(domain: Domain, reason: str, now: datetime, pause: timedelta) -> Domain:
    serves = domain.expires_at is not None and domain.expires_at > now and domain.is_held
    status = DomainStatus.ACTIVE if serves else DomainStatus.FAILED
    reason = f"its certificate was not renewed: {reason}" if serves else reason
    return replace(domain, status=status, reason=reason, failures=domain.failures + 1, next_try_at=now + pause)


def _pause(domain: Domain | WildcardCertificate, most: timedelta) -> timedelta:
    return min(FIRST_PAUSE * (1 << min(domain.failures, 20)), most)


def proven(domain: Domain, now: datetime, *, tls: bool) -> Domain:
    """Return the domain after a check that passed: with TLS a certificate is ordered next, else it is active."""
    owned = replace(domain, proven_at=domain.proven_at or now)
    if tls:
        status = domain.status if domain.status is DomainStatus.ACTIVE else DomainStatus.ISSUING
        return replace(owned, status=status, reason="its certificate is being ordered", ordered_at=now)
    return replace(owned, status=DomainStatus.ACTIVE, reason="", failures=0, next_try_at=None)


def issued(domain: Domain, sealed: bytes, fingerprint: str, *, expires_at: datetime, look_at: datetime) -> Domain:
    """Return the domain with a new certificate; at ``look_at`` it is seen whether it is to be renewed."""
    return replace(
        domain,
        status=DomainStatus.ACTIVE,
        reason="",
        failures=0,
        not_before=None,
        certificate=sealed,
        fingerprint=fingerprint,
        expires_at=expires_at,
        next_try_at=look_at,
        warned_days=None,
    )


def asked_again(domain: Domain, now: datetime) -> Domain:
    """Return the domain that its owner wants checked now; a wait that the authority asked for is kept."""
    due = max(now, domain.not_before) if domain.not_before else now
    if domain.status is DomainStatus.ACTIVE:
        return domain if domain.next_try_at is None or not domain.reason else replace(domain, next_try_at=due)
    return replace(domain, next_try_at=due)


def order_time(domain: Domain) -> datetime | None:
    """Return before when nothing may be ordered again, also if its owner wants a check; None: no limit.

    A tenant that has a failing domain checked again and again would else use up the service's limit at the authority.
    """
    if domain.ordered_at is None or not domain.failures:
        return domain.not_before
    last = replace(domain, failures=domain.failures - 1)
    due = domain.ordered_at + _pause(last, LAST_CHECK_PAUSE)
    return max(due, domain.not_before) if domain.not_before else due


def renewal_time(begin: datetime, end: datetime, requested: datetime | None) -> datetime:
    """Return when to renew: when the authority requests it, else after two thirds of the certificate's life."""
    if requested is None or requested >= end:
        return begin + (end - begin) * RENEWAL_PART
    return max(requested, begin + ARI_INTERVAL)


def warning(domain: Domain, now: datetime) -> int | None:
    """Return the entry of ``WARNING_DAYS`` that is reached and has no event yet, or None."""
    due = reached_warning(domain, now)
    return due if due is not None and (domain.warned_days is None or due < domain.warned_days) else None


def reached_warning(found: Domain | WildcardCertificate, now: datetime) -> int | None:
    """Return the entry of ``WARNING_DAYS`` that is reached by a certificate that could not be renewed, or None."""
    if found.expires_at is None or not found.failures:
        return None
    left = found.expires_at - now
    return min((days for days in WARNING_DAYS if left <= timedelta(days=days)), default=None)


# Ownership


def rival(domain: Domain, claims: Iterable[Domain], now: datetime) -> Domain | None:
    """Return another tenant's claim that holds the host, or held it within ``HELD_LIFE``; None: the host is free."""
    others = [one for one in claims if one.tenant_id != domain.tenant_id and one.proven_at is not None]
    holder = next((one for one in others if one.released_at is None), None)
    recent = (one for one in others if one.released_at is not None and now - one.released_at < HELD_LIFE)
    return holder or next(recent, None)


def wants_txt(domain: Domain, other: str) -> str:
    """Return the reason for a host whose name, or one above or below it, another tenant holds or held.

    A name below it is another tenant's own, and is not shown.
    """
    name = f"a name below {domain.host}" if other.endswith(f".{domain.host}") else other
    return (
        f"another tenant holds {name}, or held it within the last {HELD_LIFE.days} days: to show that {domain.host} is "
        f'yours now, create the TXT record {domain.txt_name} with the value "{domain.txt_value}"'
    )


#: Addresses of one host that are looked at.
MAX_ADDRESSES = 20


def addresses_of(texts: Sequence[str]) -> list[Address]:
    """Parse the addresses of a host, each once."""
    found = [parse(text) for text in texts[:MAX_ADDRESSES]]
    return list(dict.fromkeys(one for one in found if one is not None))


def no_record(host: str, ours: Sequence[str]) -> str:
    return f"no record: {host} has no A or AAAA record; create {wanted_record(host, ours)}"


def strangers(found: Sequence[Address], ours: Sequence[str]) -> list[Address]:
    """Return the addresses that are not the service's."""
    own = {parse(text) for text in ours}
    return [address for address in found if address not in own]


def points_elsewhere(host: str, alias: str, strange: Sequence[Address], ours: Sequence[str]) -> str:
    """Return the reason for records that lead to other machines, all of them or some."""
    through = f" (through the CNAME to {alias})" if alias and alias != host else ""
    listed = ", ".join(map(str, strange))
    return f"points elsewhere: {host} leads to {listed}{through}; it should be {wanted_record(host, ours)}"


def ipv6_elsewhere(host: str, strange: Sequence[Address], ours: Sequence[str]) -> str:
    listed = ", ".join(map(str, strange))
    own = ", ".join(text for text in ours if ":" in text)
    cure = f"change it to {own}" if own else "remove it, since this service has no IPv6 address"
    return f"IPv6 points elsewhere: {host} has the AAAA record {listed}, which visitors and authorities prefer; {cure}"


def proxy_in_front(host: str, address: Address, told: str) -> str:
    return (
        f"a proxy in front: {host} leads to {address}, which answers by itself ({told}) and does not pass "
        "/.well-known/acme-challenge/ on: let it pass that path over plain HTTP, or point the name here directly"
    )


def unreachable(host: str, address: Address, port: int, told: str) -> str:
    return (
        f"challenge path not reachable: http://{host}:{port}/.well-known/acme-challenge/ at {address} does not answer "
        f"as it should ({told}): open port {port} in the firewall, and let nothing else answer there"
    )


def caa_forbids(host: str, caa: Sequence[tuple[str, str]], authority: Collection[str]) -> str | None:
    """Return why CAA records (tag, value) forbid this authority, or None. Unknown names of the authority: only a ban.

    The records are those of the closest name that has any; only ``issue`` counts for hosts (RFC 8659, 4.2).
    """
    issuers = [value.partition(";")[0].strip().lower() for tag, value in caa if tag.lower() == "issue"]
    if not issuers or (authority and any(one in authority for one in issuers)):
        return None
    allowed = ", ".join(one for one in issuers if one)
    if not authority and allowed:
        return None
    wanted = " or ".join(f'0 issue "{name}"' for name in sorted(authority)) or "one for the authority of this service"
    return f"CAA forbids: the CAA records of {host} allow {allowed or 'no authority'}; add {wanted}"


def wanted_record(host: str, ours: Sequence[str]) -> str:
    """Return the DNS record that the host needs, in words."""
    if not ours:
        return "a record for the public address of this service, which its operator sets as acme.addresses"
    kinds = [f"{'AAAA' if ':' in text else 'A'} {text}" for text in ours]
    return f"a record {host} {' and '.join(kinds)}"
