"""Custom domains in the store, and accounts at certificate authorities."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

from builderd.domain.domains import AcmeAccount, Domain, DomainRoute, WildcardCertificate
from builderd.domain.ids import BuilderId, DomainId, TenantId


class Domains(Protocol):
    """Rows with ``released_at`` are returned by ``related``, ``get``, ``released`` and ``all`` only."""

    def add(self, domain: Domain) -> None: ...
    def get(self, domain: DomainId, *, lock: bool = False) -> Domain | None:
        """Return it; with ``lock``, other writers of this row wait until the unit of work ends."""

    def by_host(self, tenant: TenantId, host: str) -> Domain | None:
        """Return the tenant's claim of this host."""

    def of_builder(self, builder: BuilderId) -> Sequence[Domain]:
        """Return the builder's domains, sorted by host."""

    def related(self, host: str) -> Sequence[Domain]:
        """Return all tenants' claims of this host, of names above it and below it, oldest first.

        A unit of work that writes locks them.
        """

    def count(self, tenant: TenantId) -> int: ...
    def due(self, now: datetime, limit: int) -> Sequence[tuple[TenantId, DomainId]]:
        """Return those whose next try has come, the longest waiting first; at most one of each tenant."""

    def interrupted(self, *, without_certificate: bool) -> Sequence[DomainId]:
        """Return those whose check or order was under way, and of held ones those that wait for nothing.

        The latter only if they have no certificate and ``without_certificate`` is set.
        """

    def orders_since(self, tenant: TenantId, since: datetime) -> int:
        """Return how often certificates of the tenant's domains, released ones too, were ordered since then, at most.

        Each domain that was ordered since counts once, and once more for each of its failures.
        """

    def routes(self, hosts: Collection[str] | None = None) -> Sequence[DomainRoute]:
        """Return the routes of held domains, of these hosts or of all, without reading certificates."""

    def released(self, now: datetime, limit: int) -> Sequence[tuple[DomainId, str]]:
        """Return released ones that the proxy may still have, with their hosts."""

    def withdrawn(self, domains: Collection[DomainId]) -> None:
        """Record that the proxy does not have these released ones any more."""

    def expiries(self) -> Sequence[tuple[str, datetime]]:
        """Return host and end of each certificate in use, those that end first before others."""

    def outdated(self, claimed_before: datetime, released_before: datetime, limit: int) -> Sequence[Domain]:
        """Return unproven claims made before the one time, and rows released before the other."""

    def expiring(self, before: datetime) -> Sequence[Domain]:
        """Return those whose certificate was not renewed and ends before this time."""

    def all(self) -> Sequence[Domain]:
        """Return those with a certificate."""

    def save(self, domain: Domain) -> None:
        """Save it, unless it was deleted."""

    def delete(self, domain: DomainId) -> None:
        """Delete it. Idempotent."""


class AcmeAccounts(Protocol):
    def get(self, directory: str) -> AcmeAccount | None: ...
    def put(self, account: AcmeAccount) -> None:
        """Store the account of its directory in place of any other."""

    def delete(self, directory: str) -> bool:
        """Delete the account; return False if there is none."""

    def all(self) -> Sequence[AcmeAccount]: ...


class WildcardCertificates(Protocol):
    def get(self, domain: str) -> WildcardCertificate | None: ...
    def put(self, certificate: WildcardCertificate) -> None:
        """Store the certificate of its domain in place of any other."""

    def look_again(self, domain: str, at: datetime) -> None:
        """Have it looked at then; nothing else of it changes. Idempotent."""

    def all(self) -> Sequence[WildcardCertificate]: ...
