"""Credentials, SSH grants and links to previews, in SQL."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping, bindparam, delete, select, update

from builderd.builders.model import Desired
from builderd.core.ids import BuilderId, TenantId, TokenId
from builderd.credentials.model import Credential
from builderd.database.repository import Repository
from builderd.database.tables import builders, credentials, preview_links, ssh_grants
from builderd.database.types import row_of
from builderd.executions.model import Grant
from builderd.previews.model import Link, PreviewLink

_ONE = select(ssh_grants).where(ssh_grants.c.id == bindparam("grant"))
_BY_HASH = select(ssh_grants).where(ssh_grants.c.secret_hash == bindparam("hash"))
_VALID = (
    select(ssh_grants)
    .where(ssh_grants.c.builder_id == bindparam("builder"))
    .where(ssh_grants.c.revoked_at.is_(None), ssh_grants.c.expires_at > bindparam("now"))
    .order_by(ssh_grants.c.created_at, ssh_grants.c.id)
)
_UPDATE = update(ssh_grants).where(ssh_grants.c.id == bindparam("grant"))
_REVOKE = _UPDATE.where(ssh_grants.c.revoked_at.is_(None))
_REVOKE_OF = (
    update(ssh_grants)
    .where(ssh_grants.c.token_id.in_(bindparam("tokens", expanding=True)))
    .where(ssh_grants.c.revoked_at.is_(None), ssh_grants.c.expires_at > bindparam("now"))
    .returning(ssh_grants)
)
_EXPIRE = delete(ssh_grants).where(ssh_grants.c.expires_at < bindparam("before"))


class SshGrants(Repository[Grant]):
    _table, _record = ssh_grants, Grant

    def get(self, grant_id: str) -> Grant | None:
        return self._first(_ONE, grant=grant_id)

    def by_secret_hash(self, secret_hash: str) -> Grant | None:
        return self._first(_BY_HASH, hash=secret_hash)

    def valid_of(self, builder: BuilderId, now: datetime) -> Sequence[Grant]:
        """Return those that are neither revoked nor expired, oldest first."""
        return self._all(_VALID, builder=builder, now=now)

    def touch(self, grant_id: str, at: datetime) -> None:
        """Record the time of the last use."""
        self._change(_UPDATE, grant=grant_id, last_used_at=at)

    def revoke(self, grant_id: str, at: datetime) -> None:
        """Mark a grant as revoked. One that is revoked already keeps its time."""
        self._change(_REVOKE, grant=grant_id, revoked_at=at)

    def revoke_of(self, tokens: Collection[TokenId], at: datetime) -> Sequence[Grant]:
        """Revoke the valid ones that these API tokens made; return them."""
        return self._all(_REVOKE_OF, tokens=list(tokens), now=at, revoked_at=at)

    def expire(self, before: datetime) -> int:
        """Delete those that expired before this time; return the number."""
        return self._change(_EXPIRE, before=before)


_c = preview_links.c
_VALID_LINKS = (
    select(preview_links)
    .where(_c.builder_id == bindparam("builder"), _c.expires_at > bindparam("now"))
    .order_by(_c.created_at, _c.id)
)
_ROUTES = (
    select(_c.secret_hash, builders.c.host, _c.port, _c.expires_at)
    .join(builders, builders.c.id == _c.builder_id)
    .where(builders.c.desired != Desired.DELETED, _c.expires_at > bindparam("now"))
    .order_by(_c.secret_hash)
)
_REMOVE_OF = (
    delete(preview_links)
    .where(_c.token_id.in_(bindparam("tokens", expanding=True)), _c.expires_at > bindparam("now"))
    .returning(preview_links)
)
_EXPIRE_LINKS = delete(preview_links).where(_c.expires_at < bindparam("before"))


class PreviewLinks(Repository[Link]):
    _table, _record = preview_links, Link

    def valid_of(self, builder: BuilderId, now: datetime) -> Sequence[Link]:
        """Return those that have not expired, oldest first."""
        return self._all(_VALID_LINKS, builder=builder, now=now)

    def remove(self, link_id: str) -> None:
        self._change(delete(preview_links).where(_c.id == bindparam("link")), link=link_id)

    def remove_of(self, tokens: Collection[TokenId], now: datetime) -> Sequence[Link]:
        """Remove the valid ones that these API tokens made; return them."""
        return self._all(_REMOVE_OF, tokens=list(tokens), now=now)

    def routes(self, now: datetime) -> Sequence[PreviewLink]:
        """Return all valid links to builders that are not deleted, as the proxy needs them."""
        rows = self._connection.execute(_ROUTES, {"now": now})
        return [PreviewLink(digest, host, port, int(end.timestamp())) for digest, host, port, end in rows]

    def expire(self, before: datetime) -> int:
        """Delete those that expired before this time; return the number."""
        return self._change(_EXPIRE_LINKS, before=before)


_key = (credentials.c.tenant_id == bindparam("of_tenant"), credentials.c.name == bindparam("of_name"))

_ONE_CREDENTIAL = select(credentials).where(*_key)
_ALL = select(credentials).order_by(credentials.c.tenant_id, credentials.c.name)
_OF_TENANT = _ALL.where(credentials.c.tenant_id == bindparam("tenant"))
_UPDATE_CREDENTIAL = update(credentials).where(*_key)


class Credentials(Repository[Credential]):
    _table, _record, _key = credentials, Credential, ("tenant_id", "name")

    def get(self, tenant: TenantId, name: str) -> Credential | None:
        return self._first(_ONE_CREDENTIAL, of_tenant=tenant, of_name=name)

    def list(self, tenant: TenantId) -> Sequence[Credential]:
        """Return the tenant's credentials, sorted by name."""
        return self._all(_OF_TENANT, tenant=tenant)

    def all(self) -> Sequence[Credential]:
        """Return all tenants' credentials; a unit of work that writes locks them until it ends."""
        return self._all(_ALL.with_for_update() if self._locks else _ALL)

    def touch(self, tenant: TenantId, name: str, at: datetime, by: BuilderId) -> None:
        """Record its last use; no other field is written. Does nothing if it was deleted."""
        self._change(_UPDATE_CREDENTIAL, of_tenant=tenant, of_name=name, last_used_at=at, last_used_by=by)

    def delete(self, tenant: TenantId, name: str) -> None:
        """Delete it. Idempotent."""
        self._change(delete(credentials).where(*_key), of_tenant=tenant, of_name=name)

    def _row(self, value: Credential) -> dict[str, Any]:
        return {**row_of(value), "variables": list(value.variables)}

    def _value(self, row: RowMapping) -> Credential:
        return Credential(**{**row, "variables": tuple(row["variables"])})
