"""API tokens: created by the operator, presented by callers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from builderd.core.errors import Forbidden, NotFound, QuotaExceeded, Unauthenticated, ValidationFailed
from builderd.core.ids import TenantId, TokenId, new_id, new_secret, secret_hash
from builderd.database.unit_of_work import UnitOfWork
from builderd.tokens.model import MAX_VALID_TOKENS, NAME, Scope, Tenant, Token

#: Minimum time between two records of a token's last use.
TOUCH_INTERVAL = timedelta(minutes=1)


def create(
    uow: UnitOfWork,
    tenant_name: str,
    name: str,
    now: datetime,
    *,
    scopes: Collection[Scope],
    expires_at: datetime | None = None,
) -> tuple[Token, str]:
    """Create a token; return it and its secret, which is not stored. Creates the tenant if needed."""
    if not NAME.fullmatch(tenant_name):
        raise ValidationFailed({"tenant": ["must be 1 to 63 lower-case letters, digits and hyphens, not at its ends"]})
    if expires_at is not None and expires_at <= now:
        raise ValidationFailed({"expires": ["must lie in the future"]})
    tenant = uow.tenants.by_name(tenant_name)
    if tenant is None:
        tenant = Tenant(TenantId(new_id()), tenant_name, now)
        uow.tenants.add(tenant)
    return _new_token(uow, tenant.id, name, now, scopes, expires_at)


def derive(
    uow: UnitOfWork,
    own: Token,
    name: str,
    now: datetime,
    *,
    scopes: Collection[Scope],
    expires_at: datetime | None = None,
) -> tuple[Token, str]:
    """Create a token of the caller's tenant that can do no more, and lasts no longer, than the caller's ``own``.

    ``expires_at`` None: as long as that. Raises ``Forbidden``, ``ValidationFailed``, ``QuotaExceeded``.
    """
    if Scope.OPERATOR in scopes:
        raise Forbidden("The scope operator is granted on the machine alone: builderd token create --scope operator.")
    lacking = sorted(scope for scope in scopes if not own.allows(scope))
    if lacking:
        raise Forbidden(f"Your token has not the scopes of the new one: {', '.join(lacking)}.")
    expires_at = own.expires_at if expires_at is None else expires_at
    if expires_at is not None and expires_at <= now:
        raise ValidationFailed({"expires_at": ["must lie in the future"]})
    if own.expires_at is not None and expires_at is not None and expires_at > own.expires_at:
        raise ValidationFailed({"expires_at": [f"must not be later than your token's own, {own.expires_at:%FT%TZ}"]})
    require_unrevoked(uow, own.id)
    valid = [token for token in uow.tokens.list(own.tenant_id) if token.is_valid(now)]
    if len(valid) >= MAX_VALID_TOKENS:
        raise QuotaExceeded(f"There are {MAX_VALID_TOKENS} valid tokens already: revoke one that is not used.")
    return _new_token(uow, own.tenant_id, name, now, scopes, expires_at, own.id)


def require_unrevoked(uow: UnitOfWork, token_id: TokenId | None) -> None:
    """Lock the caller's token. Raises ``Unauthenticated`` if it was revoked since it was recognized.

    What it makes would outlive it else: a revocation waits for the lock, and then finds what was made.
    """
    if token_id is None:
        return
    found = uow.tokens.get(token_id, lock=True)
    if found is None or found.revoked_at is not None:
        raise Unauthenticated("The token is expired or revoked.")


def authenticate(uow: UnitOfWork, secret: str, now: datetime) -> Token:
    """Return the valid token of this secret. Raises ``Unauthenticated``."""
    token = uow.tokens.by_secret_hash(secret_hash(secret))
    if token is None or not token.is_valid(now):
        raise Unauthenticated("The token is unknown, expired or revoked: make one with `builderd token create`.")
    return token


def is_good_still(uow: UnitOfWork, token: Token, now: datetime) -> bool:
    """Return whether a token that was valid has neither expired nor been revoked since."""
    found = uow.tokens.by_secret_hash(token.secret_hash)
    return found is not None and found.is_valid(now)


def needs_touch(token: Token, now: datetime) -> bool:
    """Return whether the token's last use is older than ``TOUCH_INTERVAL`` and should be recorded again."""
    return token.last_used_at is None or now - token.last_used_at >= TOUCH_INTERVAL


def list_of(uow: UnitOfWork, tenant_name: str) -> Sequence[Token]:
    """Return the tokens of a tenant, revoked ones included. Raises ``NotFound`` for an unknown tenant."""
    return uow.tokens.list(tenant_of(uow, tenant_name).id)


def tenant_of(uow: UnitOfWork, name: str) -> Tenant:
    """Return the tenant of this name. Raises ``NotFound``."""
    tenant = uow.tenants.by_name(name)
    if tenant is None:
        raise NotFound(f"There is no tenant {name!r}.")
    return tenant


def _new_token(
    uow: UnitOfWork,
    tenant: TenantId,
    name: str,
    now: datetime,
    scopes: Collection[Scope],
    expires_at: datetime | None,
    made_by: TokenId | None = None,
) -> tuple[Token, str]:
    secret = new_secret("bd")
    token = Token(
        id=TokenId(new_id()),
        tenant_id=tenant,
        name=name,
        secret_hash=secret_hash(secret),
        scopes=frozenset(scopes),
        created_at=now,
        expires_at=expires_at,
        made_by=made_by,
    )
    uow.tokens.add(token)
    return token, secret
