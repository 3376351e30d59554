"""Authentication of callers by API token, and authorization by scope."""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials
from starlette.requests import HTTPConnection

from builderd.application import Application
from builderd.builders.service import Caller
from builderd.core.errors import Forbidden, NotFound, Unauthenticated
from builderd.server.limits import count_for_tenant, reject
from builderd.server.operations import Operations
from builderd.server.rates import WINDOW, RateLimitStatus, Rates, too_many
from builderd.tokens import service as tokens
from builderd.tokens.model import Scope, Token

T = TypeVar("T")

_bearer = HTTPBearer(auto_error=False, scheme_name="token", description="An API token: Authorization: Bearer bd_…")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def _application(request: Request) -> Application:
    application: Application = request.app.state.application
    return application


# Asynchronous, since a synchronous dependency takes a thread of the pool, and two changes of threads, for each request.
TheApplication = Annotated[Application, Depends(_application)]


def operations_of(request: Request) -> Operations:
    """Return the operations that this app shares with the other interfaces."""
    operations: Operations = request.app.state.operations
    return operations


async def _operations(request: Request) -> Operations:
    return operations_of(request)


TheOperations = Annotated[Operations, Depends(_operations)]


#: Header with the program that calls, for the actor in events. A claim of the caller, no proof.
CLIENT = "Builderd-Client"
CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/+-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Identity:
    """A valid token, and its caller as services know it. ``client`` is the calling program, "" without a name."""

    token: Token
    client: str = ""

    @property
    def caller(self) -> Caller:
        return Caller.of(self.token, self.client)

    @property
    def may_write(self) -> bool:
        return self.token.allows(Scope.WRITE)

    def require(self, scope: Scope, what: str = "This call") -> None:
        """Raise ``Forbidden`` when the token lacks the scope."""
        if not self.token.allows(scope):
            raise Forbidden(
                f"{what} needs a token with the scope {scope}: ask the operator of this service for one. "
                f"`builderd token create --tenant NAME --scope {scope}` on its machine makes it, or `builderd tokens "
                f"create NAME --scope {scope}` with a token that has the scope."
            )


def secret_of(credentials: HTTPAuthorizationCredentials | None) -> str:
    """Return the bearer token's secret. Raises ``Unauthenticated`` when there is none."""
    if credentials is None or not credentials.credentials:
        raise Unauthenticated("Send your API token with the header Authorization: Bearer <token>.")
    return credentials.credentials


async def bearer_secret(request: Request) -> str:
    """Return the secret of the token that a request has. Raises ``Unauthenticated`` when there is none."""
    return secret_of(await _bearer(request))


async def identify(request: Request, credentials: Credentials) -> Identity:
    """Return the caller of a valid token, within its limit of calls; its last use is recorded now and then."""
    return await identity_of(request, secret_of(credentials))


async def identity_of(request: HTTPConnection, secret: str) -> Identity:
    """Return the caller whose valid token has this secret, within its limit of calls; its last use is recorded.

    Raises ``Unauthenticated`` and ``RateLimited``.
    """
    application: Application = request.app.state.application
    now = application.clock.now()
    token = await recognize(
        request, secret, lambda: application.store.read(lambda uow: tokens.authenticate(uow, secret, now))
    )
    count_for_tenant(request, token.tenant_id)
    operations: Operations = request.app.state.operations
    operations.token_calls.count(token.id, now)
    if tokens.needs_touch(token, now):
        await operations.last_uses.record(token.id, now)
    request.state.tenant_id = token.tenant_id
    client = request.headers.get(CLIENT, "")
    return Identity(token, client if CLIENT_NAME.fullmatch(client) else "")


async def is_good_still(application: Application, identity: Identity) -> bool:
    """Return whether a token that was valid is still valid, for answers that take a long time."""
    now = application.clock.now()
    return await application.store.read(lambda uow: tokens.is_good_still(uow, identity.token, now))


async def recognize(request: HTTPConnection, secret: str, lookup: Callable[[], Awaitable[T]]) -> T:
    """Return what ``lookup`` finds by this secret.

    Raises ``Unauthenticated``, and ``RateLimited`` when its calls come too often.
    """
    rates: Rates = request.app.state.rates
    status = rates.admit(secret)
    _keep_within(request, status)
    try:
        found = await lookup()
    except Unauthenticated:
        reject(request)
        rates.failed(request.client.host if request.client else "", secret)
        raise
    if status is None:
        _keep_within(request, rates.count(secret))
    return found


def _keep_within(request: HTTPConnection, status: RateLimitStatus | None) -> None:
    if status is None:
        return
    request.state.rate_limit = rate_headers(status)
    if status.retry_after is not None:
        raise too_many(status)


def rate_headers(status: RateLimitStatus) -> Mapping[str, str]:
    """Return the state of a limit of calls as headers of an answer.

    The fields of the IETF draft (https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/11/),
    ``RateLimit-Policy`` and ``RateLimit``, and the three of its earlier revisions, which most clients read.
    """
    return {
        "RateLimit-Policy": f'"requests";q={status.limit};w={WINDOW}',
        "RateLimit": f'"requests";r={status.remaining};t={status.reset}',
        "RateLimit-Limit": str(status.limit),
        "RateLimit-Remaining": str(status.remaining),
        "RateLimit-Reset": str(status.reset),
    }


async def reader(identity: Annotated[Identity, Depends(identify)]) -> Identity:
    """Return a caller with the scope to read. Raises ``Forbidden``."""
    identity.require(Scope.READ)
    return identity


async def writer(identity: Annotated[Identity, Depends(identify)]) -> Identity:
    """Return a caller with the scope to write. Raises ``Forbidden``."""
    identity.require(Scope.WRITE)
    return identity


async def administrator(identity: Annotated[Identity, Depends(identify)]) -> Identity:
    """A caller that may set limits for its tenant."""
    identity.require(Scope.ADMIN)
    return identity


Reader = Annotated[Identity, Depends(reader)]
Writer = Annotated[Identity, Depends(writer)]
Administrator = Annotated[Identity, Depends(administrator)]


async def check_metrics_token(
    request: Request, expected: str | None, credentials: HTTPAuthorizationCredentials | None
) -> None:
    """Raise ``NotFound`` without a configured metrics token, ``Unauthenticated`` for a wrong one."""
    if expected is None:
        raise NotFound("Metrics are not shown here: set a metrics token, or give them a listener of their own.")
    secret = secret_of(credentials)

    async def lookup() -> None:
        if not hmac.compare_digest(secret.encode(), expected.encode()):
            raise Unauthenticated("This is not the metrics token.")

    await recognize(request, secret, lookup)
