"""SSH grants in SQL."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from builderd.domain.ids import BuilderId, TokenId
from builderd.domain.processes import Grant
from builderd.store.tables import ssh_grants
from builderd.store.types import row_of

_INSERT = insert(ssh_grants)
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
        self._connection.execute(_INSERT, row_of(grant))

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
