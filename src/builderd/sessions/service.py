"""Sessions of the web pages: begun with a token or a one-time link, found again by their secret, and ended."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from builderd.core.errors import NotFound, Unauthenticated
from builderd.core.ids import new_id, new_secret, secret_hash
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import SYSTEM
from builderd.sessions import revocations
from builderd.tokens import service as tokens
from builderd.tokens.model import IDLE, LINK_SPAN, Identity, Scope, Session, SessionId, SignInLink, Token

#: Least time between two records of a session's last use.
TOUCH_INTERVAL = timedelta(minutes=1)
#: Name of the token that one-time links sign in with, and so of the actor in events.
LINK_TOKEN = "sign-in link"  # noqa: S105 -- a name
#: Life of a session by an identity provider, and of its token.
SSO_SPAN = timedelta(hours=12)
_SPENT = "This link is unknown, spent or older than 10 minutes: make another one with `builderd token link`."
_ENDED = "The session is over: sign in again."


def sign_in(uow: UnitOfWork, secret: str, client: str, now: datetime) -> tuple[Session, str]:
    """Begin a session with a token's secret; return it with its own. Raises ``Unauthenticated``."""
    return _begin(uow, tokens.authenticate(uow, secret, now), client, now)


def make_link(uow: UnitOfWork, tenant: str, scopes: Collection[Scope], now: datetime) -> str:
    """Return the code of a new one-time link for the tenant, with these scopes. Makes the tenant if needed.

    The sessions of all links with the same scopes belong to one token, whose secret nobody has: revoking it ends them.
    """
    code = new_secret("bdl")
    token = _link_token(uow, tenant, frozenset(scopes), now)
    uow.sign_in_links.expire(now)
    uow.sign_in_links.add(SignInLink(secret_hash(code), token.id, now, now + LINK_SPAN))
    return code


def _link_token(uow: UnitOfWork, tenant: str, scopes: frozenset[Scope], now: datetime) -> Token:
    found = uow.tenants.by_name(tenant)
    for one in uow.tokens.list(found.id) if found else ():
        if one.name == LINK_TOKEN and one.scopes == scopes and one.is_valid(now):
            return one
    return tokens.create(uow, tenant, LINK_TOKEN, now, scopes=scopes)[0]


def find_link(uow: UnitOfWork, code: str, now: datetime) -> SignInLink:
    """Return an unspent link, without spending it. Raises ``Unauthenticated``."""
    link = uow.sign_in_links.get(secret_hash(code))
    if link is None or now >= link.expires_at:
        raise Unauthenticated(_SPENT)
    return link


def spend_link(uow: UnitOfWork, code: str, client: str, now: datetime) -> tuple[Session, str]:
    """Begin a session with a one-time link, which is spent; return it with its secret. Raises ``Unauthenticated``."""
    link = find_link(uow, code, now)
    token = uow.tokens.get(link.token_id)
    if not uow.sign_in_links.spend(link.code_hash) or token is None or not token.is_valid(now):
        raise Unauthenticated(_SPENT)
    return _begin(uow, token, client, now)


def sign_in_as(uow: UnitOfWork, identity: Identity, client: str, now: datetime) -> tuple[Session, str]:
    """Begin a session for a person whom the identity provider vouches for; return it with its secret.

    It belongs to a token of the person's, whose secret nobody has and which ends after ``SSO_SPAN``: a person who loses
    the account, or a scope, loses the session with it. A token with other scopes than now is revoked.
    """
    tenant, name = uow.tenants.by_name(identity.tenant), identity.token_name
    mine = [one for one in (uow.tokens.list(tenant.id) if tenant else ()) if one.name == name and one.is_valid(now)]
    for one in mine:
        if one.scopes != identity.scopes:
            why = f"{one.name} signed in with other scopes"
            revocations.revoke(uow, one.tenant_id, one.id, SYSTEM, why, now)
    fresh = [one for one in mine if one.scopes == identity.scopes and _lasts(one, now)]
    made = fresh or [
        tokens.create(uow, identity.tenant, name, now, scopes=identity.scopes, expires_at=now + SSO_SPAN)[0]
    ]
    return _begin(uow, made[0], client, now)


def _lasts(token: Token, now: datetime) -> bool:
    """Return whether most of the token's time is left, so that a new sign-in need not make another."""
    return token.expires_at is not None and token.expires_at - now > SSO_SPAN / 2


def _begin(uow: UnitOfWork, token: Token, client: str, now: datetime) -> tuple[Session, str]:
    secret = new_secret("bdw")
    session = Session(SessionId(new_id()), token.tenant_id, token.id, secret_hash(secret), client, now, now)
    uow.sessions.expire(now - IDLE)
    uow.sessions.add(session)
    return session, secret


def authenticate(uow: UnitOfWork, secret: str, now: datetime) -> tuple[Session, Token]:
    """Return the valid session of this secret, and its token. Raises ``Unauthenticated``."""
    session = uow.sessions.by_secret_hash(secret_hash(secret))
    token = uow.tokens.get(session.token_id) if session else None
    if session is None or token is None or not session.is_valid(now) or not token.is_valid(now):
        raise Unauthenticated(_ENDED)
    return session, token


def is_good_still(uow: UnitOfWork, session: Session, now: datetime) -> bool:
    """Return whether a session that was valid has neither ended nor lost its token since."""
    found = uow.sessions.by_secret_hash(session.secret_hash)
    token = uow.tokens.get(session.token_id)
    return found is not None and found.is_valid(now) and token is not None and token.is_valid(now)


def needs_touch(session: Session, now: datetime) -> bool:
    """Return whether the session's last use is older than ``TOUCH_INTERVAL`` and should be recorded again."""
    return now - session.last_used_at >= TOUCH_INTERVAL


def touch(uow: UnitOfWork, session: Session, now: datetime) -> None:
    """Record a use of the session, and of its token."""
    uow.sessions.touch(session.id, now)
    uow.tokens.touch(session.token_id, now)


def end(uow: UnitOfWork, session: Session, session_id: str) -> None:
    """End a session of the same token, perhaps this one. Raises ``NotFound``."""
    if all(one.id != session_id for one in uow.sessions.of_token(session.token_id)):
        raise NotFound("There is no such session: it may have ended already.")
    uow.sessions.remove(SessionId(session_id))


def end_all(uow: UnitOfWork, session: Session) -> int:
    """End all sessions of this session's token, this one included; return the number."""
    return uow.sessions.remove_of(session.token_id)
