"""Custom domains and accounts at certificate authorities in SQL."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import and_, bindparam, delete, func, or_, select, update

from builderd.builders.model import Desired
from builderd.core.addresses import names_above
from builderd.core.ids import BuilderId, DomainId, TenantId
from builderd.database.connection import Kind
from builderd.database.repository import Repository
from builderd.database.tables import acme_accounts, builders, domains, wildcard_certificates
from builderd.domains.model import AcmeAccount, Domain, DomainRoute, DomainStatus, WildcardCertificate

_c = domains.c
_live = _c.released_at.is_(None)
_held = and_(_c.proven_at.is_not(None), _live)


def _time(name: str) -> Any:
    return bindparam(name, type_=_c.created_at.type)


_ONE = select(domains).where(_c.id == bindparam("domain"))
_BY_HOST = select(domains).where(_live, _c.tenant_id == bindparam("tenant"), _c.host == bindparam("name"))
_OF_BUILDER = select(domains).where(_live, _c.builder_id == bindparam("builder")).order_by(_c.host)
_RELATED = (
    select(domains)
    .where(or_(_c.host.in_(bindparam("names", expanding=True)), _c.host.like(bindparam("below"))))
    .order_by(_c.created_at, _c.id)
)
_COUNT = select(func.count()).select_from(domains).where(_live, _c.tenant_id == bindparam("tenant"))
# One of each tenant: a tenant with many due domains keeps no other waiting.
# The tenant is an expression here: by the column, SQLite would read the index of all claims, which has its order.
_turn = func.row_number().over(partition_by=_c.tenant_id.concat(""), order_by=(_c.next_try_at, _c.id))
_first = _turn.label("turn")
_waiting = select(_c.tenant_id, _c.id, _c.next_try_at, _first).where(_live, _c.next_try_at <= _time("now")).subquery()
_DUE = (
    select(_waiting.c.tenant_id, _waiting.c.id)
    .where(_waiting.c.turn == 1)
    .order_by(_waiting.c.next_try_at)
    .limit(bindparam("limit"))
)
_UNFINISHED = select(_c.id).where(_live, _c.status.in_((DomainStatus.CHECKING, DomainStatus.ISSUING)))
_WITHOUT_CERTIFICATE = select(_c.id).where(_held, _c.certificate.is_(None), _c.next_try_at.is_(None))
_ORDERS = (
    select(func.coalesce(func.sum(1 + _c.failures), 0))
    .select_from(domains)
    .where(_c.tenant_id == bindparam("tenant"), _c.ordered_at >= _time("since"))
)
_ROUTES = (
    select(_c.id, _c.host, builders.c.host.label("builder_host"), _c.fingerprint)
    .join(builders, builders.c.id == _c.builder_id)
    .where(_held, builders.c.desired != Desired.DELETED)
    .order_by(_c.host)
)
_RELEASED = (
    select(_c.id, _c.host)
    .where(_c.released_at.is_not(None), _c.next_try_at <= _time("now"))
    .order_by(_c.next_try_at)
    .limit(bindparam("limit"))
)
_WITHDRAWN = (
    update(domains)
    .where(_c.id.in_(bindparam("ids", expanding=True)), _c.released_at.is_not(None))
    .values(next_try_at=None)
)
_EXPIRIES = select(_c.host, _c.expires_at).where(_held, _c.expires_at.is_not(None)).order_by(_c.expires_at, _c.host)
_OUTDATED = (
    select(domains)
    .where(
        or_(
            and_(_live, _c.proven_at.is_(None), _c.created_at < _time("claimed_before")),
            _c.released_at < _time("released_before"),
        )
    )
    .limit(bindparam("limit"))
)

_ACCOUNT = select(acme_accounts).where(acme_accounts.c.directory == bindparam("of"))
_DELETE_ACCOUNT = delete(acme_accounts).where(acme_accounts.c.directory == bindparam("of"))

_LOOK_AGAIN = update(wildcard_certificates).where(wildcard_certificates.c.domain == bindparam("of"))
_DELETE_WILDCARD = delete(wildcard_certificates).where(wildcard_certificates.c.domain == bindparam("of"))


class Domains(Repository[Domain]):
    """Rows with ``released_at`` are returned by ``related``, ``get``, ``released`` and ``all`` only."""

    _table, _record, _kind = domains, Domain, Kind.DOMAINS

    def get(self, domain: DomainId, *, lock: bool = False) -> Domain | None:
        """Return it; with ``lock``, other writers of this row wait until the unit of work ends."""
        return self._first(_ONE.with_for_update() if lock and self._locks else _ONE, domain=domain)

    def by_host(self, tenant: TenantId, host: str) -> Domain | None:
        """Return the tenant's claim of this host."""
        return self._first(_BY_HOST, tenant=tenant, name=host)

    def of_builder(self, builder: BuilderId) -> Sequence[Domain]:
        """Return the builder's domains, sorted by host."""
        return self._all(_OF_BUILDER, builder=builder)

    def related(self, host: str) -> Sequence[Domain]:
        """Return all tenants' claims of this host, of names above it and below it, oldest first.

        A unit of work that writes locks them.
        """
        statement = _RELATED.with_for_update() if self._locks else _RELATED
        return self._all(statement, names=names_above(host), below=f"%.{host}")

    def count(self, tenant: TenantId) -> int:
        return int(self._connection.execute(_COUNT, {"tenant": tenant}).scalar_one())

    def due(self, now: datetime, limit: int) -> Sequence[tuple[TenantId, DomainId]]:
        """Return those whose next try has come, the longest waiting first; at most one of each tenant."""
        rows = self._connection.execute(_DUE, {"now": now, "limit": limit})
        return [(TenantId(tenant), DomainId(domain)) for tenant, domain in rows]

    def interrupted(self, *, without_certificate: bool) -> Sequence[DomainId]:
        """Return those whose check or order was under way, and of held ones those that wait for nothing.

        The latter only if they have no certificate and ``without_certificate`` is set.
        """
        found = list(self._connection.scalars(_UNFINISHED).all())
        if without_certificate:
            found += self._connection.scalars(_WITHOUT_CERTIFICATE).all()
        return list(map(DomainId, found))

    def orders_since(self, tenant: TenantId, since: datetime) -> int:
        """Return how often certificates of the tenant's domains, released ones too, were ordered since then, at most.

        Each domain that was ordered since counts once, and once more for each of its failures.
        """
        return int(self._connection.execute(_ORDERS, {"tenant": tenant, "since": since}).scalar_one())

    def routes(self) -> Sequence[DomainRoute]:
        """Return the routes of held domains, without reading certificates."""
        return [DomainRoute(**row) for row in self._connection.execute(_ROUTES).mappings()]

    def released(self, now: datetime, limit: int) -> Sequence[tuple[DomainId, str]]:
        """Return released ones that the proxy may still have, with their hosts."""
        rows = self._connection.execute(_RELEASED, {"now": now, "limit": limit})
        return [(DomainId(domain), host) for domain, host in rows]

    def withdrawn(self, domains: Collection[DomainId]) -> None:
        """Record that the proxy does not have these released ones any more."""
        self._change(_WITHDRAWN, ids=list(domains))

    def expiries(self) -> Sequence[tuple[str, datetime]]:
        """Return host and end of each certificate in use, those that end first before others."""
        return [(host, end) for host, end in self._connection.execute(_EXPIRIES)]

    def outdated(self, claimed_before: datetime, released_before: datetime, limit: int) -> Sequence[Domain]:
        """Return unproven claims made before the one time, and rows released before the other."""
        return self._all(_OUTDATED, claimed_before=claimed_before, released_before=released_before, limit=limit)

    def expiring(self, before: datetime) -> Sequence[Domain]:
        """Return those whose certificate was not renewed and ends before this time."""
        return self._all(select(domains).where(_held, _c.failures > 0, _c.expires_at < _time("before")), before=before)

    def all(self) -> Sequence[Domain]:
        """Return those with a certificate."""
        return self._all(select(domains).where(_c.certificate.is_not(None)).order_by(_c.host, _c.id))

    def save(self, value: Domain) -> None:
        """Save it, unless it was deleted."""
        self._update(value)

    def delete(self, domain: DomainId) -> None:
        """Delete it. Idempotent."""
        self._written.add(Kind.DOMAINS)
        self._change(delete(domains).where(_c.id == bindparam("domain")), domain=domain)


class AcmeAccounts(Repository[AcmeAccount]):
    _table, _record = acme_accounts, AcmeAccount

    def get(self, directory: str) -> AcmeAccount | None:
        return self._first(_ACCOUNT, of=directory)

    def put(self, account: AcmeAccount) -> None:
        """Store the account of its directory in place of any other."""
        self._change(_DELETE_ACCOUNT, of=account.directory)
        self.add(account)

    def delete(self, directory: str) -> bool:
        """Delete the account; return False if there is none."""
        return self._change(_DELETE_ACCOUNT, of=directory) == 1

    def all(self) -> Sequence[AcmeAccount]:
        return self._all(select(acme_accounts))


class WildcardCertificates(Repository[WildcardCertificate]):
    _table, _record = wildcard_certificates, WildcardCertificate

    def get(self, domain: str) -> WildcardCertificate | None:
        return next((one for one in self.all() if one.domain == domain), None)

    def put(self, certificate: WildcardCertificate) -> None:
        """Store the certificate of its domain in place of any other."""
        self._change(_DELETE_WILDCARD, of=certificate.domain)
        self.add(certificate)

    def look_again(self, domain: str, at: datetime) -> None:
        """Have it looked at then; nothing else of it changes. Idempotent."""
        self._change(_LOOK_AGAIN, of=domain, next_try_at=at)

    def all(self) -> Sequence[WildcardCertificate]:
        return self._all(select(wildcard_certificates))
