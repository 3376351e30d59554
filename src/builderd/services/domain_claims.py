"""Claims of custom domains: how they end, and their events."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from builderd.domain.addresses import shown
from builderd.domain.builders import Builder
from builderd.domain.domains import Domain
from builderd.domain.events import Event
from builderd.store import UnitOfWork


def release(uow: UnitOfWork, domain: Domain, now: datetime) -> None:
    """End a claim. A proven one leaves a row that remembers who held the host; its certificate is dropped.

    That row is due at once: the job takes the host from the proxy.
    """
    if domain.proven_at is None:
        uow.domains.delete(domain.id)
    else:
        uow.domains.save(replace(domain, released_at=now, certificate=None, fingerprint=None, next_try_at=now))


def release_all(uow: UnitOfWork, builder: Builder, now: datetime) -> None:
    """End all claims of a deleted builder."""
    for domain in uow.domains.of_builder(builder.id):
        release(uow, domain, now)
        note(uow, domain, "domain.removed", builder.cause.actor, "its builder was deleted", now)


def note(uow: UnitOfWork, domain: Domain, kind: str, actor: str, reason: str, now: datetime, **details: Any) -> None:
    """Record an event of the domain's builder."""
    told = {"host": domain.host, "name": shown(domain.host), **details}
    uow.events.add(Event(domain.tenant_id, domain.builder_id, now, kind, actor, reason, told))
