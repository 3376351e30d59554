"""Custom domains and accounts at certificate authorities in SQL."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from sqlalchemy import Column, Index, Integer, LargeBinary, Table, Text, and_, delete, func, select, update

from builderd.builders.model import Desired
from builderd.builders.table import builders
from builderd.core.addresses import names_above
from builderd.core.ids import BuilderId, DomainId, TenantId
from builderd.database.columns import NAME, builder_columns, metadata, unique_where
from builderd.database.connection import Kind
from builderd.database.repository import Repository, batches
from builderd.database.types import ForeignText, UtcDateTime, enum_column
from builderd.domains.model import AcmeAccount, Domain, DomainRoute, DomainStatus, WildcardCertificate

#: A released row only remembers who held the host.
_UNRELEASED = "released_at IS NULL"
#: One claim of all tenants holds a host.
_OWNED = "proven_at IS NOT NULL AND released_at IS NULL"

domains = Table(
    "domains",
    metadata,
    Column("id", Text, primary_key=True),
    *builder_columns(),
    Column("host", NAME, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", ForeignText, nullable=False),
    Column("status", enum_column(DomainStatus), nullable=False),
    Column("reason", ForeignText, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("next_try_at", UtcDateTime),
    Column("not_before", UtcDateTime),
    Column("proven_at", UtcDateTime),
    Column("released_at", UtcDateTime),
    Column("ordered_at", UtcDateTime),
    Column("certificate", LargeBinary),
    Column("fingerprint", Text),
    Column("expires_at", UtcDateTime),
    Column("warned_days", Integer),
    unique_where("uq_domains_claim", "tenant_id", _UNRELEASED, "host"),
    unique_where("uq_domains_held", "host", _OWNED),
    Index("ix_domains_builder_id", "builder_id"),
    Index("ix_domains_host", "host"),
    Index("ix_domains_next_try_at", "next_try_at"),
)

acme_accounts = Table(
    "acme_accounts",
    metadata,
    Column("directory", Text, primary_key=True),
    Column("key", LargeBinary, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

wildcard_certificates = Table(
    "wildcard_certificates",
    metadata,
    Column("domain", Text, primary_key=True),
    Column("next_try_at", UtcDateTime, nullable=False),
    Column("certificate", LargeBinary),
    Column("fingerprint", Text),
    Column("ordered_at", UtcDateTime),
    Column("expires_at", UtcDateTime),
    Column("failures", Integer, nullable=False),
    Column("reason", ForeignText, nullable=False),
)


_c = domains.c
_live = _c.released_at.is_(None)
_held = and_(_c.proven_at.is_not(None), _live)


# One of each tenant: a tenant with many due domains keeps no other waiting.
# The tenant is an expression here: by the column, SQLite would read the index of all claims, which has its order.
_turn = func.row_number().over(partition_by=_c.tenant_id.concat(""), order_by=(_c.next_try_at, _c.id))


class Domains(Repository[Domain]):
    """Rows with ``released_at`` are returned by ``related``, ``get``, ``released`` and ``all`` only."""

    _table, _record, _kind, _may_be_gone = domains, Domain, Kind.DOMAINS, True

    def get(self, domain: DomainId, *, lock: bool = False) -> Domain | None:
        """Return it; with ``lock``, other writers of this row wait until the unit of work ends."""
        found = select(domains).where(_c.id == domain)
        return self._first(found.with_for_update() if lock and self._locks else found)

    def by_host(self, tenant: TenantId, host: str) -> Domain | None:
        """Return the tenant's claim of this host."""
        return self._first(select(domains).where(_live, _c.tenant_id == tenant, _c.host == host))

    def of_builder(self, builder: BuilderId) -> Sequence[Domain]:
        """Return the builder's domains, sorted by host."""
        return self._all(select(domains).where(_live, _c.builder_id == builder).order_by(_c.host))

    def hosts(self, builders: Sequence[BuilderId]) -> Mapping[BuilderId, Sequence[str]]:
        """Return the hosts of those of these builders that have domains, sorted."""
        found: dict[BuilderId, list[str]] = {}
        for some in batches(builders):
            of_some = select(_c.builder_id, _c.host).where(_live, _c.builder_id.in_(some)).order_by(_c.host)
            for builder, host in self._connection.execute(of_some):
                found.setdefault(builder, []).append(host)
        return found

    def related(self, host: str) -> Sequence[Domain]:
        """Return all tenants' claims of this host, of names above it and below it, oldest first.

        A unit of work that writes locks them.
        """
        is_related = _c.host.in_(names_above(host)) | _c.host.like(f"%.{host}")
        found = select(domains).where(is_related).order_by(_c.created_at, _c.id)
        return self._all(found.with_for_update() if self._locks else found)

    def count(self, tenant: TenantId) -> int:
        counted = select(func.count()).select_from(domains).where(_live, _c.tenant_id == tenant)
        return self._connection.execute(counted).scalar_one()

    def due(self, now: datetime, limit: int) -> Sequence[tuple[TenantId, DomainId]]:
        """Return those whose next try has come, the longest waiting first; at most one of each tenant."""
        waiting = select(_c.tenant_id, _c.id, _c.next_try_at, _turn.label("turn"))
        first = waiting.where(_live, _c.next_try_at <= now).subquery().c
        due = select(first.tenant_id, first.id).where(first.turn == 1).order_by(first.next_try_at).limit(limit)
        return [(TenantId(tenant), DomainId(domain)) for tenant, domain in self._connection.execute(due)]

    def interrupted(self, *, without_certificate: bool) -> Sequence[DomainId]:
        """Return those whose check or order was under way, and of held ones those that wait for nothing.

        The latter only if they have no certificate and ``without_certificate`` is set.
        """
        wanted = _live & _c.status.in_((DomainStatus.CHECKING, DomainStatus.ISSUING))
        if without_certificate:
            wanted |= and_(_held, _c.certificate.is_(None), _c.next_try_at.is_(None))
        return self._connection.scalars(select(_c.id).where(wanted)).all()

    def orders_since(self, tenant: TenantId, since: datetime) -> int:
        """Return how often certificates of the tenant's domains, released ones too, were ordered since then, at most.

        Each domain that was ordered since counts once, and once more for each of its failures.
        """
        number = func.coalesce(func.sum(1 + _c.failures), 0)
        ordered = select(number).where(_c.tenant_id == tenant, _c.ordered_at >= since)
        return int(self._connection.execute(ordered).scalar_one())

    def routes(self) -> Sequence[DomainRoute]:
        """Return the routes of held domains, without reading certificates."""
        found = (
            select(_c.id, _c.host, builders.c.host.label("builder_host"), _c.fingerprint)
            .join(builders, builders.c.id == _c.builder_id)
            .where(_held, builders.c.desired != Desired.DELETED)
            .order_by(_c.host)
        )
        return [DomainRoute(**row) for row in self._connection.execute(found).mappings()]

    def released(self, now: datetime, limit: int) -> Sequence[tuple[DomainId, str]]:
        """Return released ones that the proxy may still have, with their hosts."""
        found = select(_c.id, _c.host).where(_c.released_at.is_not(None), _c.next_try_at <= now)
        rows = self._connection.execute(found.order_by(_c.next_try_at).limit(limit))
        return [(DomainId(domain), host) for domain, host in rows]

    def withdrawn(self, released: Collection[DomainId]) -> None:
        """Record that the proxy does not have these released ones any more."""
        self._change(update(domains).where(_c.id.in_(released), _c.released_at.is_not(None)), next_try_at=None)

    def expiries(self) -> Sequence[tuple[str, datetime]]:
        """Return host and end of each certificate in use, those that end first before others."""
        found = select(_c.host, _c.expires_at).where(_held, _c.expires_at.is_not(None))
        return [(host, end) for host, end in self._connection.execute(found.order_by(_c.expires_at, _c.host))]

    def outdated(self, claimed_before: datetime, released_before: datetime, limit: int) -> Sequence[Domain]:
        """Return unproven claims made before the one time, and rows released before the other."""
        is_unproven = and_(_live, _c.proven_at.is_(None), _c.created_at < claimed_before)
        return self._all(select(domains).where(is_unproven | (_c.released_at < released_before)).limit(limit))

    def expiring(self, before: datetime) -> Sequence[Domain]:
        """Return those whose certificate was not renewed and ends before this time."""
        return self._all(select(domains).where(_held, _c.failures > 0, _c.expires_at < before))

    def all(self) -> Sequence[Domain]:
        """Return those with a certificate."""
        return self._all(select(domains).where(_c.certificate.is_not(None)).order_by(_c.host, _c.id))

    def delete(self, domain: DomainId) -> None:
        """Delete it. Idempotent."""
        self._written.add(Kind.DOMAINS)
        self._change(delete(domains).where(_c.id == domain))


class AcmeAccounts(Repository[AcmeAccount]):
    _table, _record = acme_accounts, AcmeAccount

    def get(self, directory: str) -> AcmeAccount | None:
        return self._first(select(acme_accounts).where(acme_accounts.c.directory == directory))

    def put(self, account: AcmeAccount) -> None:
        """Store the account of its directory in place of any other."""
        self.delete(account.directory)
        self.add(account)

    def delete(self, directory: str) -> bool:
        """Delete the account; return False if there is none."""
        return self._change(delete(acme_accounts).where(acme_accounts.c.directory == directory)) == 1

    def all(self) -> Sequence[AcmeAccount]:
        return self._all(select(acme_accounts))


class WildcardCertificates(Repository[WildcardCertificate]):
    _table, _record = wildcard_certificates, WildcardCertificate

    def get(self, domain: str) -> WildcardCertificate | None:
        return next((one for one in self.all() if one.domain == domain), None)

    def put(self, certificate: WildcardCertificate) -> None:
        """Store the certificate of its domain in place of any other."""
        self._change(delete(wildcard_certificates).where(wildcard_certificates.c.domain == certificate.domain))
        self.add(certificate)

    def look_again(self, domain: str, at: datetime) -> None:
        """Have it looked at then; nothing else of it changes. Idempotent."""
        self._change(update(wildcard_certificates).where(wildcard_certificates.c.domain == domain), next_try_at=at)

    def all(self) -> Sequence[WildcardCertificate]:
        return self._all(select(wildcard_certificates))
