"""API tokens, sessions of the web pages, and sign-in links, in SQL."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, delete, insert, select, update

from builderd.domain.ids import TenantId, TokenId
from builderd.domain.tokens import NO_CALLS, CallHours, Scope, Session, SessionId, SignInLink, Token
from builderd.store.tables import sessions, sign_in_links, tokens
from builderd.store.types import row_of

_INSERT = insert(tokens)
_BY_SECRET_HASH = select(tokens).where(tokens.c.secret_hash == bindparam("secret_hash"))
_BY_ID = select(tokens).where(tokens.c.id == bindparam("token"))
_BY_ID_LOCKED = _BY_ID.with_for_update()
_OF_TENANT = select(tokens).where(tokens.c.tenant_id == bindparam("tenant")).order_by(tokens.c.created_at, tokens.c.id)
_CALLS = select(tokens.c.calls).where(tokens.c.id == bindparam("token")).with_for_update()
_UPDATE = update(tokens).where(tokens.c.id == bindparam("token"))
_REVOKE = update(tokens).where(tokens.c.id.in_(bindparam("tokens", expanding=True)), tokens.c.revoked_at.is_(None))


class Tokens:
    def __init__(self, connection: Connection, *, locks: bool) -> None:
        self._connection = connection
        self._locks = locks

    def add(self, token: Token) -> None:
        row = row_of(token)
        row["scopes"] = sorted(scope.value for scope in token.scopes)
        row["calls"] = _document(token.calls)
        self._connection.execute(_INSERT, row)

    def get(self, token: TokenId, *, lock: bool = False) -> Token | None:
        """Return it; with ``lock``, other writers of this row wait until the unit of work ends."""
        statement = _BY_ID_LOCKED if lock and self._locks else _BY_ID
        row = self._connection.execute(statement, {"token": token}).mappings().first()
        return read_token(row) if row else None

    def by_secret_hash(self, secret_hash: str) -> Token | None:
        row = self._connection.execute(_BY_SECRET_HASH, {"secret_hash": secret_hash}).mappings().first()
        return read_token(row) if row else None

    def list(self, tenant: TenantId) -> Sequence[Token]:
        rows = self._connection.execute(_OF_TENANT, {"tenant": tenant}).mappings()
        return [read_token(row) for row in rows]

    def touch(self, token: TokenId, at: datetime, calls: CallHours = NO_CALLS) -> None:
        """Record the time of the last use, and add calls to those of their hours."""
        values: dict[str, Any] = {"token": token, "last_used_at": at}
        if calls.counts:
            stored = self._connection.execute(_CALLS, {"token": token}).scalar()
            values["calls"] = _document(_calls(stored).add_all(calls))
        self._connection.execute(_UPDATE, values)

    def revoke(self, tokens: Collection[TokenId], at: datetime) -> None:
        """Mark them as revoked. Those that are revoked already keep their time."""
        self._connection.execute(_REVOKE, {"tokens": list(tokens), "revoked_at": at})


def read_token(row: RowMapping | Mapping[str, Any]) -> Token:
    """Return the token of these columns by name."""
    scopes = frozenset(Scope(scope) for scope in row["scopes"])
    return Token(**{**row, "scopes": scopes, "calls": _calls(row["calls"])})


def _calls(stored: Any) -> CallHours:
    return CallHours(stored[0], tuple(stored[1])) if stored else CallHours()


def _document(calls: CallHours) -> Any:
    return [calls.hour, list(calls.counts)] if calls.counts else None


_BY_HASH = select(sessions).where(sessions.c.secret_hash == bindparam("hash"))
_OF_TOKEN = (
    select(sessions)
    .where(sessions.c.token_id == bindparam("token"))
    .order_by(sessions.c.last_used_at.desc(), sessions.c.id)
)
_UPDATE_SESSION = update(sessions).where(sessions.c.id == bindparam("session"))
_REMOVE_OF = delete(sessions).where(sessions.c.token_id == bindparam("token"))
_EXPIRE = delete(sessions).where(sessions.c.last_used_at < bindparam("before"))

_LINK = select(sign_in_links).where(sign_in_links.c.code_hash == bindparam("hash"))
_SPEND = delete(sign_in_links).where(sign_in_links.c.code_hash == bindparam("hash"))
_EXPIRE_LINKS = delete(sign_in_links).where(sign_in_links.c.expires_at < bindparam("before"))


class Sessions:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, session: Session) -> None:
        self._connection.execute(insert(sessions), row_of(session))

    def by_secret_hash(self, secret_hash: str) -> Session | None:
        row = self._connection.execute(_BY_HASH, {"hash": secret_hash}).mappings().first()
        return Session(**row) if row else None

    def of_token(self, token: TokenId) -> Sequence[Session]:
        """Return the token's sessions, the last used first."""
        return [Session(**row) for row in self._connection.execute(_OF_TOKEN, {"token": token}).mappings()]

    def touch(self, session: SessionId, at: datetime) -> None:
        """Record the time of the last use."""
        self._connection.execute(_UPDATE_SESSION, {"session": session, "last_used_at": at})

    def remove(self, session: SessionId) -> None:
        self._connection.execute(delete(sessions).where(sessions.c.id == bindparam("session")), {"session": session})

    def remove_of(self, token: TokenId) -> int:
        """Remove all sessions of the token; return the number."""
        return self._connection.execute(_REMOVE_OF, {"token": token}).rowcount

    def expire(self, used_before: datetime) -> int:
        """Delete those last used before this time; return the number."""
        return self._connection.execute(_EXPIRE, {"before": used_before}).rowcount


class SignInLinks:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, link: SignInLink) -> None:
        self._connection.execute(insert(sign_in_links), row_of(link))

    def get(self, code_hash: str) -> SignInLink | None:
        row = self._connection.execute(_LINK, {"hash": code_hash}).mappings().first()
        return SignInLink(**row) if row else None

    def spend(self, code_hash: str) -> bool:
        """Delete the link; return False if it was gone already. Of several callers at once one gets True."""
        return self._connection.execute(_SPEND, {"hash": code_hash}).rowcount == 1

    def expire(self, before: datetime) -> int:
        """Delete those that expired before this time; return the number."""
        return self._connection.execute(_EXPIRE_LINKS, {"before": before}).rowcount
