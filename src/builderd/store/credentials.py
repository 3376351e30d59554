"""Credentials, SSH grants and links to previews, in SQL."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import Connection, RowMapping, bindparam, delete, insert, select, update

from builderd.domain.builders import Desired
from builderd.domain.credentials import Credential
from builderd.domain.ids import BuilderId, TenantId, TokenId
from builderd.domain.previews import Link, PreviewLink
from builderd.domain.processes import Grant
from builderd.store.tables import builders, credentials, preview_links, ssh_grants
from builderd.store.types import omit, row_of

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


class SshGrants:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, grant: Grant) -> None:
        self._connection.execute(insert(ssh_grants), row_of(grant))

    def get(self, grant_id: str) -> Grant | None:
        row = self._connection.execute(_ONE, {"grant": grant_id}).mappings().first()
        return Grant(**row) if row else None

    def by_secret_hash(self, secret_hash: str) -> Grant | None:
        row = self._connection.execute(_BY_HASH, {"hash": secret_hash}).mappings().first()
        return Grant(**row) if row else None

    def valid_of(self, builder: BuilderId, now: datetime) -> Sequence[Grant]:
        """Return those that are neither revoked nor expired, oldest first."""
        rows = self._connection.execute(_VALID, {"builder": builder, "now": now}).mappings()
        return [Grant(**row) for row in rows]

    def touch(self, grant_id: str, at: datetime) -> None:
        """Record the time of the last use."""
        self._connection.execute(_UPDATE, {"grant": grant_id, "last_used_at": at})

    def revoke(self, grant_id: str, at: datetime) -> None:
        """Mark a grant as revoked. One that is revoked already keeps its time."""
        self._connection.execute(_REVOKE, {"grant": grant_id, "revoked_at": at})

    def revoke_of(self, tokens: Collection[TokenId], at: datetime) -> Sequence[Grant]:
        """Revoke the valid ones that these API tokens made; return them."""
        values = {"tokens": list(tokens), "now": at, "revoked_at": at}
        return [Grant(**row) for row in self._connection.execute(_REVOKE_OF, values).mappings()]

    def expire(self, before: datetime) -> int:
        """Delete those that expired before this time; return the number."""
        return self._connection.execute(_EXPIRE, {"before": before}).rowcount


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


class PreviewLinks:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, link: Link) -> None:
        self._connection.execute(insert(preview_links), row_of(link))

    def valid_of(self, builder: BuilderId, now: datetime) -> Sequence[Link]:
        """Return those that have not expired, oldest first."""
        rows = self._connection.execute(_VALID_LINKS, {"builder": builder, "now": now}).mappings()
        return [Link(**row) for row in rows]

    def remove(self, link_id: str) -> None:
        self._connection.execute(delete(preview_links).where(_c.id == bindparam("link")), {"link": link_id})

    def remove_of(self, tokens: Collection[TokenId], now: datetime) -> Sequence[Link]:
        """Remove the valid ones that these API tokens made; return them."""
        rows = self._connection.execute(_REMOVE_OF, {"tokens": list(tokens), "now": now}).mappings()
        return [Link(**row) for row in rows]

    def routes(self, now: datetime) -> Sequence[PreviewLink]:
        """Return all valid links to builders that are not deleted, as the proxy needs them."""
        rows = self._connection.execute(_ROUTES, {"now": now})
        return [PreviewLink(digest, host, port, int(end.timestamp())) for digest, host, port, end in rows]

    def expire(self, before: datetime) -> int:
        """Delete those that expired before this time; return the number."""
        return self._connection.execute(_EXPIRE_LINKS, {"before": before}).rowcount


_key = (credentials.c.tenant_id == bindparam("of_tenant"), credentials.c.name == bindparam("of_name"))

_ONE_CREDENTIAL = select(credentials).where(*_key)
_ALL = select(credentials).order_by(credentials.c.tenant_id, credentials.c.name)
_OF_TENANT = _ALL.where(credentials.c.tenant_id == bindparam("tenant"))
_UPDATE_CREDENTIAL = update(credentials).where(*_key)


class Credentials:
    def __init__(self, connection: Connection, *, locks: bool) -> None:
        self._connection = connection
        self._all = _ALL.with_for_update() if locks else _ALL

    def add(self, credential: Credential) -> None:
        self._connection.execute(insert(credentials), _row(credential))

    def get(self, tenant: TenantId, name: str) -> Credential | None:
        row = self._connection.execute(_ONE_CREDENTIAL, {"of_tenant": tenant, "of_name": name}).mappings().first()
        return _credential(row) if row else None

    def list(self, tenant: TenantId) -> Sequence[Credential]:
        """Return the tenant's credentials, sorted by name."""
        return [_credential(row) for row in self._connection.execute(_OF_TENANT, {"tenant": tenant}).mappings()]

    def all(self) -> Sequence[Credential]:
        """Return all tenants' credentials; a unit of work that writes locks them until it ends."""
        return [_credential(row) for row in self._connection.execute(self._all).mappings()]

    def save(self, credential: Credential) -> None:
        """Update the row of this value. Raises ``LookupError`` when there is none."""
        key = {"of_tenant": credential.tenant_id, "of_name": credential.name}
        if (
            self._connection.execute(
                _UPDATE_CREDENTIAL, {**key, **omit(_row(credential), "tenant_id", "name")}
            ).rowcount
            != 1
        ):
            raise LookupError(f"no credential {credential.name} to save")

    def touch(self, tenant: TenantId, name: str, at: datetime, by: BuilderId) -> None:
        """Record its last use; no other field is written. Does nothing if it was deleted."""
        values = {"of_tenant": tenant, "of_name": name, "last_used_at": at, "last_used_by": by}
        self._connection.execute(_UPDATE_CREDENTIAL, values)

    def delete(self, tenant: TenantId, name: str) -> None:
        """Delete it. Idempotent."""
        self._connection.execute(delete(credentials).where(*_key), {"of_tenant": tenant, "of_name": name})


def _row(credential: Credential) -> dict[str, object]:
    return {**row_of(credential), "variables": list(credential.variables)}


def _credential(row: RowMapping) -> Credential:
    return Credential(**{**row, "variables": tuple(row["variables"]), "sealed": bytes(row["sealed"])})
