"""People whom an identity provider vouches for, and the sign-in attempts that lead there and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from builderd.domain.errors import Unauthenticated
from builderd.domain.tenants import NAME
from builderd.domain.tokens import Scope

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
    scopes = frozenset(Scope(one) for one in _words(claims.get(rules.scope)) if one in set(Scope)) - {Scope.OPERATOR}
    if not scopes:
        raise Unauthenticated(
            f"Your account may do nothing here: the identity provider must put scopes into the claim {rules.scope!r}."
        )
    return Identity(claims["sub"], tenant, scopes)


def _words(value: Any) -> Iterable[str]:
    """Return the words of a list, or of a text with spaces between them."""
    if isinstance(value, str):
        return value.split()
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
