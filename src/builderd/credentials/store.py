"""Credentials, SSH grants and links to previews, in SQL."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    RowMapping,
    Table,
    Text,
    delete,
    select,
    update,
)

from builderd.builders.model import Desired
from builderd.builders.table import builders
from builderd.core.ids import BuilderId, TenantId, TokenId
from builderd.credentials.model import Credential
from builderd.database.columns import NAME, builder_columns, document, metadata
from builderd.database.repository import Repository
from builderd.database.types import ForeignText, UtcDateTime, row_of
from builderd.executions.model import Grant
from builderd.previews.model import Link, PreviewLink

credentials = Table(
    "credentials",
    metadata,
    Column("tenant_id", Text, ForeignKey("tenants.id"), primary_key=True),
    Column("name", NAME, primary_key=True),
    Column("variables", document(), nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("last_used_at", UtcDateTime),
    # No foreign key: the id stays when the builder is deleted.
    Column("last_used_by", Text),
)

ssh_grants = Table(
    "ssh_grants",
    metadata,
    Column("id", Text, primary_key=True),
    *builder_columns(),
    Column("secret_hash", Text, nullable=False, unique=True),
    Column("created_by", ForeignText, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
    Column("last_used_at", UtcDateTime),
    Column("token_id", Text),
    Index("ix_ssh_grants_builder_id", "builder_id"),
)

preview_links = Table(
    "preview_links",
    metadata,
    Column("id", Text, primary_key=True),
    *builder_columns(),
    Column("secret_hash", Text, nullable=False, unique=True),
    Column("port", Integer),
    Column("created_by", ForeignText, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("token_id", Text),
    Index("ix_preview_links_builder_id", "builder_id"),
)


_grant = ssh_grants.c


def _is_valid(now: datetime) -> ColumnElement[bool]:
    return _grant.revoked_at.is_(None) & (_grant.expires_at > now)


class SshGrants(Repository[Grant]):
    _table, _record = ssh_grants, Grant

    def get(self, grant_id: str) -> Grant | None:
        return self._first(select(ssh_grants).where(_grant.id == grant_id))

    def by_secret_hash(self, secret_hash: str) -> Grant | None:
        return self._first(select(ssh_grants).where(_grant.secret_hash == secret_hash))

    def valid_of(self, builder: BuilderId, now: datetime) -> Sequence[Grant]:
        """Return those that are neither revoked nor expired, oldest first."""
        found = select(ssh_grants).where(_grant.builder_id == builder, _is_valid(now))
        return self._all(found.order_by(_grant.created_at, _grant.id))

    def touch(self, grant_id: str, at: datetime) -> None:
        """Record the time of the last use."""
        self._change(update(ssh_grants).where(_grant.id == grant_id), last_used_at=at)

    def revoke(self, grant_id: str, at: datetime) -> None:
        """Mark a grant as revoked. One that is revoked already keeps its time."""
        self._change(update(ssh_grants).where(_grant.id == grant_id, _grant.revoked_at.is_(None)), revoked_at=at)

    def revoke_of(self, tokens: Collection[TokenId], at: datetime) -> Sequence[Grant]:
        """Revoke the valid ones that these API tokens made; return them."""
        made = update(ssh_grants).where(_grant.token_id.in_(tokens), _is_valid(at))
        return self._all(made.returning(ssh_grants), revoked_at=at)

    def expire(self, before: datetime) -> int:
        """Delete those that expired before this time; return the number."""
        return self._change(delete(ssh_grants).where(_grant.expires_at < before))


_link = preview_links.c


class PreviewLinks(Repository[Link]):
    _table, _record = preview_links, Link

    def valid_of(self, builder: BuilderId, now: datetime) -> Sequence[Link]:
        """Return those that have not expired, oldest first."""
        found = select(preview_links).where(_link.builder_id == builder, _link.expires_at > now)
        return self._all(found.order_by(_link.created_at, _link.id))

    def remove(self, link_id: str) -> None:
        self._change(delete(preview_links).where(_link.id == link_id))

    def remove_of(self, tokens: Collection[TokenId], now: datetime) -> Sequence[Link]:
        """Remove the valid ones that these API tokens made; return them."""
        made = delete(preview_links).where(_link.token_id.in_(tokens), _link.expires_at > now)
        return self._all(made.returning(preview_links))

    def routes(self, now: datetime) -> Sequence[PreviewLink]:
        """Return all valid links to builders that are not deleted, as the proxy needs them."""
        found = (
            select(_link.secret_hash, builders.c.host, _link.port, _link.expires_at)
            .join(builders, builders.c.id == _link.builder_id)
            .where(builders.c.desired != Desired.DELETED, _link.expires_at > now)
            .order_by(_link.secret_hash)
        )
        rows = self._connection.execute(found)
        return [PreviewLink(digest, host, port, int(end.timestamp())) for digest, host, port, end in rows]

    def expire(self, before: datetime) -> int:
        """Delete those that expired before this time; return the number."""
        return self._change(delete(preview_links).where(_link.expires_at < before))


_ALL = select(credentials).order_by(credentials.c.tenant_id, credentials.c.name)


def _is(tenant: TenantId, name: str) -> ColumnElement[bool]:
    return (credentials.c.tenant_id == tenant) & (credentials.c.name == name)


class Credentials(Repository[Credential]):
    _table, _record, _key = credentials, Credential, ("tenant_id", "name")

    def get(self, tenant: TenantId, name: str) -> Credential | None:
        return self._first(select(credentials).where(_is(tenant, name)))

    def list(self, tenant: TenantId) -> Sequence[Credential]:
        """Return the tenant's credentials, sorted by name."""
        return self._all(_ALL.where(credentials.c.tenant_id == tenant))

    def all(self) -> Sequence[Credential]:
        """Return all tenants' credentials; a unit of work that writes locks them until it ends."""
        return self._all(_ALL.with_for_update() if self._locks else _ALL)

    def touch(self, tenant: TenantId, name: str, at: datetime, by: BuilderId) -> None:
        """Record its last use; no other field is written. Does nothing if it was deleted."""
        self._change(update(credentials).where(_is(tenant, name)), last_used_at=at, last_used_by=by)

    def delete(self, tenant: TenantId, name: str) -> None:
        """Delete it. Idempotent."""
        self._change(delete(credentials).where(_is(tenant, name)))

    def _row(self, value: Credential) -> dict[str, Any]:
        return {**row_of(value), "variables": list(value.variables)}

    def _value(self, row: RowMapping) -> Credential:
        return Credential(**{**row, "variables": tuple(row["variables"])})
