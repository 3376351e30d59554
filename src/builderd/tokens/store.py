"""API tokens, sessions of the web pages, and sign-in links, in SQL."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Column, ForeignKey, RowMapping, Table, Text, bindparam, delete, select, update

from builderd.core.ids import TenantId, TokenId
from builderd.database.columns import document, metadata
from builderd.database.repository import Repository
from builderd.database.types import ForeignText, UtcDateTime, row_of
from builderd.tokens.model import NO_CALLS, CallHours, Scope, Session, SessionId, SignInLink, Token

tokens = Table(
    "tokens",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False, index=True),
    Column("name", ForeignText, nullable=False),
    Column("secret_hash", Text, nullable=False, unique=True),
    Column("scopes", document(), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Column("last_used_at", UtcDateTime),
    # [the newest hour since 1970, [calls of each hour]]; none before the first that was counted.
    Column("calls", document()),
    Column("made_by", Text),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False),
    Column("token_id", Text, ForeignKey("tokens.id"), nullable=False, index=True),
    Column("secret_hash", Text, nullable=False, unique=True),
    Column("client", ForeignText, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("last_used_at", UtcDateTime, nullable=False, index=True),
)

sign_in_links = Table(
    "sign_in_links",
    metadata,
    Column("code_hash", Text, primary_key=True),
    Column("token_id", Text, ForeignKey("tokens.id"), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
)


_BY_SECRET_HASH = select(tokens).where(tokens.c.secret_hash == bindparam("secret_hash"))
_BY_ID = select(tokens).where(tokens.c.id == bindparam("token"))
_CALLS = select(tokens.c.calls).where(tokens.c.id == bindparam("token")).with_for_update()
_UPDATE = update(tokens).where(tokens.c.id == bindparam("token"))


class Tokens(Repository[Token]):
    _table, _record = tokens, Token

    def get(self, token: TokenId, *, lock: bool = False) -> Token | None:
        """Return it; with ``lock``, other writers of this row wait until the unit of work ends."""
        return self._first(_BY_ID.with_for_update() if lock and self._locks else _BY_ID, token=token)

    def by_secret_hash(self, secret_hash: str) -> Token | None:
        return self._first(_BY_SECRET_HASH, secret_hash=secret_hash)

    def list(self, tenant: TenantId) -> Sequence[Token]:
        found = select(tokens).where(tokens.c.tenant_id == tenant)
        return self._all(found.order_by(tokens.c.created_at, tokens.c.id))

    def touch(self, token: TokenId, at: datetime, calls: CallHours = NO_CALLS) -> None:
        """Record the time of the last use, and add calls to those of their hours."""
        values: dict[str, Any] = {"token": token, "last_used_at": at}
        if calls.counts:
            stored = self._connection.scalar(_CALLS, {"token": token})
            values["calls"] = _document(_calls(stored).add_all(calls))
        self._change(_UPDATE, **values)

    def revoke(self, ids: Collection[TokenId], at: datetime) -> None:
        """Mark them as revoked. Those that are revoked already keep their time."""
        self._change(update(tokens).where(tokens.c.id.in_(ids), tokens.c.revoked_at.is_(None)), revoked_at=at)

    def _row(self, value: Token) -> dict[str, Any]:
        scopes = sorted(scope.value for scope in value.scopes)
        return {**row_of(value), "scopes": scopes, "calls": _document(value.calls)}

    def _value(self, row: RowMapping) -> Token:
        scopes = frozenset(Scope(scope) for scope in row["scopes"])
        return Token(**{**row, "scopes": scopes, "calls": _calls(row["calls"])})


def _calls(stored: Any) -> CallHours:
    return CallHours(stored[0], tuple(stored[1])) if stored else CallHours()


def _document(calls: CallHours) -> Any:
    return [calls.hour, list(calls.counts)] if calls.counts else None


_BY_HASH = select(sessions).where(sessions.c.secret_hash == bindparam("hash"))


class Sessions(Repository[Session]):
    _table, _record = sessions, Session

    def by_secret_hash(self, secret_hash: str) -> Session | None:
        return self._first(_BY_HASH, hash=secret_hash)

    def of_token(self, token: TokenId) -> Sequence[Session]:
        """Return the token's sessions, the last used first."""
        found = select(sessions).where(sessions.c.token_id == token)
        return self._all(found.order_by(sessions.c.last_used_at.desc(), sessions.c.id))

    def touch(self, session: SessionId, at: datetime) -> None:
        """Record the time of the last use."""
        self._change(update(sessions).where(sessions.c.id == session), last_used_at=at)

    def remove(self, session: SessionId) -> None:
        self._change(delete(sessions).where(sessions.c.id == session))

    def remove_of(self, token: TokenId) -> int:
        """Remove all sessions of the token; return the number."""
        return self._change(delete(sessions).where(sessions.c.token_id == token))

    def expire(self, used_before: datetime) -> int:
        """Delete those last used before this time; return the number."""
        return self._change(delete(sessions).where(sessions.c.last_used_at < used_before))


class SignInLinks(Repository[SignInLink]):
    _table, _record = sign_in_links, SignInLink

    def get(self, code_hash: str) -> SignInLink | None:
        return self._first(select(sign_in_links).where(sign_in_links.c.code_hash == code_hash))

    def spend(self, code_hash: str) -> bool:
        """Delete the link; return False if it was gone already. Of several callers at once one gets True."""
        return self._change(delete(sign_in_links).where(sign_in_links.c.code_hash == code_hash)) == 1

    def expire(self, before: datetime) -> int:
        """Delete those that expired before this time; return the number."""
        return self._change(delete(sign_in_links).where(sign_in_links.c.expires_at < before))
