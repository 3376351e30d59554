"""Tenants, and who acts for them: API tokens with scopes, sessions of the pages, people of an identity provider."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from hashlib import sha256
from typing import Any, NewType

from builderd.core.errors import Unauthenticated
from builderd.core.ids import BuilderId, TenantId, TokenId

#: Characters of a token's name.
MAX_NAME = 100
#: A tenant's valid tokens, beyond which the API makes none.
MAX_VALID_TOKENS = 100
#: Hours of which a token's calls are kept.
HOURS = 24


class Scope(StrEnum):
    #: Read everything of the tenant except service tokens.
    READ = "read"
    #: Create and change builders; includes ``read``.
    WRITE = "write"
    #: Leave the review or QA gate out.
    SKIP_GATES = "skip-gates"
    #: The tenant's tokens, caps and overrides; includes all others of the tenant.
    ADMIN = "admin"
    #: See the machine and all tenants on the web pages. Granted on the machine's command line only, implied by none.
    OPERATOR = "operator"


IMPLIED: dict[Scope, frozenset[Scope]] = {
    Scope.READ: frozenset({Scope.READ}),
    Scope.WRITE: frozenset({Scope.READ, Scope.WRITE}),
    Scope.SKIP_GATES: frozenset({Scope.SKIP_GATES}),
    Scope.ADMIN: frozenset(Scope) - {Scope.OPERATOR},
    Scope.OPERATOR: frozenset({Scope.OPERATOR}),
}


@dataclass(frozen=True, slots=True)
class CallHours:
    """Calls by hour: ``counts`` of up to ``HOURS`` hours, the last one ``hour``, counted since 1970."""

    hour: int = 0
    counts: tuple[int, ...] = ()

    def add(self, calls: int, now: datetime) -> CallHours:
        """Count calls in the present hour. A clock that was set back counts in the newest one."""
        return self._add(calls, max(_hour(now), self.hour))

    def add_all(self, other: CallHours) -> CallHours:
        """Count the calls of ``other`` in their own hours; those before the kept hours in the oldest of these."""
        found = self
        for hour, calls in enumerate(other.counts, other.hour - len(other.counts) + 1):
            found = found._add(calls, hour) if calls else found
        return found

    def _add(self, calls: int, hour: int) -> CallHours:
        newest = max(hour, self.hour)
        gap = min(newest - self.hour, HOURS) if self.counts else 0
        counts = ([*self.counts, *([0] * gap)] or [0])[-HOURS:]
        before = min(newest - hour, HOURS - 1) + 1 - len(counts)
        counts = [0] * before + counts
        counts[max(hour - newest - 1, -HOURS)] += calls
        return CallHours(newest, tuple(counts))

    def of_day(self, now: datetime) -> int:
        """Return the number of calls in this hour and the 23 before it."""
        past = max(_hour(now) - self.hour, 0)
        return sum(self.counts[-(HOURS - past) :]) if past < HOURS else 0


def _hour(now: datetime) -> int:
    return int(now.timestamp()) // 3_600


#: Calls of no hour.
NO_CALLS = CallHours()


@dataclass(frozen=True, slots=True)
class Token:
    """``secret_hash`` is the sha256 of the secret; the secret itself is never stored.

    ``made_by`` is the token that made it over the API or the page; None: made on the machine.
    """

    id: TokenId
    tenant_id: TenantId
    name: str
    secret_hash: str
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    calls: CallHours = NO_CALLS
    made_by: TokenId | None = None

    def allows(self, scope: Scope) -> bool:
        """Return True if one of the token's scopes is, or includes, this one."""
        return any(scope in IMPLIED[own] for own in self.scopes)

    def is_valid(self, now: datetime) -> bool:
        """Return True if the token is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class EndedKind(StrEnum):
    """Things that a token makes, that work without it, and that end with it."""

    TOKEN = "token"  # noqa: S105 -- a word
    SSH = "ssh"
    PREVIEW_LINK = "preview_link"
    WEBHOOK = "webhook"
    UPLOAD = "upload"


@dataclass(frozen=True, slots=True)
class Ended:
    """Thing that ended with a token. ``name``: of a token or a builder, a webhook's URL, "" for an upload."""

    kind: EndedKind
    id: str
    name: str = ""
    builder_id: BuilderId | None = None


def made_by(maker: TokenId, tokens: Iterable[Token]) -> list[Token]:
    """Return those of these tokens that this token made, that those made, and so on."""
    of_maker: dict[TokenId | None, list[Token]] = {}
    for token in tokens:
        of_maker.setdefault(token.made_by, []).append(token)
    found = of_maker.pop(maker, [])
    for token in found:  # grows meanwhile
        found += of_maker.pop(token.id, [])
    return found


NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Tenant:
    """Tenant. ``name`` is unique on the service and matches ``NAME``.

    ``spending_cap`` is what the tenant set itself, per calendar month; ``cap_warned_at`` the time of the last
    warning that most of it is spent.
    """

    id: TenantId
    name: str
    created_at: datetime
    spending_cap: Decimal | None = None
    cap_warned_at: datetime | None = None


SessionId = NewType("SessionId", str)

#: A session ends when it was not used for so long, and at this age in any case.
IDLE = timedelta(hours=12)
MAX_AGE = timedelta(days=30)
#: A sign-in link is valid once, and no longer than this.
LINK_SPAN = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Session:
    """A browser's session. Only the hash of its secret is stored; ``client`` says from where it was signed in."""

    id: SessionId
    tenant_id: TenantId
    token_id: TokenId
    secret_hash: str
    client: str
    created_at: datetime
    last_used_at: datetime

    def is_valid(self, now: datetime) -> bool:
        """Return True if the session is neither idle for too long nor too old, nor from a time that has not come.

        The wall clock may have been set back since its last use.
        """
        return now < min(self.last_used_at + IDLE, self.created_at + MAX_AGE) and self.last_used_at < now + IDLE


@dataclass(frozen=True, slots=True)
class SignInLink:
    """A one-time link, of which only the hash of its code is stored. It signs in with its token's scopes."""

    code_hash: str
    token_id: TokenId
    created_at: datetime
    expires_at: datetime


#: Subjects that a token's name shows as they are.
_PLAIN = re.compile(r"[A-Za-z0-9._@|:+-]{1,60}")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One sign-in on its way. Only the browser that began it has its ``state``, ``nonce`` and ``verifier``."""

    state: str
    nonce: str
    verifier: str
    redirect_uri: str


@dataclass(frozen=True, slots=True)
class ClaimRules:
    """Names of the claims that say who a person is here."""

    tenant: str = "builderd_tenant"
    scope: str = "builderd_scope"


@dataclass(frozen=True, slots=True)
class Identity:
    """A person of a tenant. ``subject`` is unique at the provider."""

    subject: str
    tenant: str
    scopes: frozenset[Scope]

    @property
    def token_name(self) -> str:
        """Return the name of the person's token, which events show; other subjects have other names."""
        if _PLAIN.fullmatch(self.subject):
            return f"sso {self.subject}"
        plain = re.sub(r"[^A-Za-z0-9._@|:+-]", "", self.subject)[:40]
        return f"sso {plain}#{sha256(self.subject.encode()).hexdigest()[:16]}"


def identity_of(claims: Mapping[str, Any], rules: ClaimRules) -> Identity:
    """Return the person that verified claims describe. Raises ``Unauthenticated`` without a tenant or a scope.

    ``operator`` is granted on the machine alone; it and unknown scopes are passed over.
    """
    tenant = claims.get(rules.tenant)
    if not isinstance(tenant, str) or not NAME.fullmatch(tenant):
        raise Unauthenticated(
            f"Your account has no tenant here: the identity provider must put its name into the claim {rules.tenant!r}."
        )
    given = claims.get(rules.scope)
    words = given.split() if isinstance(given, str) else given if isinstance(given, list) else []
    scopes = frozenset(scope for scope in Scope if scope in words) - {Scope.OPERATOR}
    if not scopes:
        raise Unauthenticated(
            f"Your account may do nothing here: the identity provider must put scopes into the claim {rules.scope!r}."
        )
    return Identity(claims["sub"], tenant, scopes)
