"""Sessions of the web pages and their one-time links in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from builderd.domain.ids import TokenId
from builderd.domain.tokens import Session, SessionId, SignInLink
from builderd.store.tables import sessions, sign_in_links
from builderd.store.types import row_of

_INSERT = insert(sessions)
_BY_HASH = select(sessions).where(sessions.c.secret_hash == bindparam("hash"))
_OF_TOKEN = (
    select(sessions)
    .where(sessions.c.token_id == bindparam("token"))
    .order_by(sessions.c.last_used_at.desc(), sessions.c.id)
)
_UPDATE = update(sessions).where(sessions.c.id == bindparam("session"))
_REMOVE = delete(sessions).where(sessions.c.id == bindparam("session"))
_REMOVE_OF = delete(sessions).where(sessions.c.token_id == bindparam("token"))
_EXPIRE = delete(sessions).where(sessions.c.last_used_at < bindparam("before"))

_INSERT_LINK = insert(sign_in_links)
_LINK = select(sign_in_links).where(sign_in_links.c.code_hash == bindparam("hash"))
_SPEND = delete(sign_in_links).where(sign_in_links.c.code_hash == bindparam("hash"))
_EXPIRE_LINKS = delete(sign_in_links).where(sign_in_links.c.expires_at < bindparam("before"))


class Sessions:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, session: Session) -> None:
        self._connection.execute(_INSERT, row_of(session))

    def by_secret_hash(self, secret_hash: str) -> Session | None:
        row = self._connection.execute(_BY_HASH, {"hash": secret_hash}).mappings().first()
        return Session(**row) if row else None

    def of_token(self, token: TokenId) -> Sequence[Session]:
        """Return the token's sessions, the last used first."""
        return [Session(**row) for row in self._connection.execute(_OF_TOKEN, {"token": token}).mappings()]

    def touch(self, session: SessionId, at: datetime) -> None:
        """Record the time of the last use."""
        self._connection.execute(_UPDATE, {"session": session, "last_used_at": at})

    def remove(self, session: SessionId) -> None:
        self._connection.execute(_REMOVE, {"session": session})

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
        self._connection.execute(_INSERT_LINK, row_of(link))

    def get(self, code_hash: str) -> SignInLink | None:
        row = self._connection.execute(_LINK, {"hash": code_hash}).mappings().first()
        return SignInLink(**row) if row else None

    def spend(self, code_hash: str) -> bool:
        """Delete the link; return False if it was gone already. Of several callers at once one gets True."""
        return self._connection.execute(_SPEND, {"hash": code_hash}).rowcount == 1

    def expire(self, before: datetime) -> int:
        """Delete those that expired before this time; return the number."""
        return self._connection.execute(_EXPIRE_LINKS, {"before": before}).rowcount
