"""API tokens of the caller's tenant."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from builderd.domain.tokens import MAX_NAME, EndedKind, Scope
from builderd.schemas.v1.shape import Page, Shape, Success, Time, UtcTime, View

#: Checked by value, so that JSON's text is taken.
ScopeName = Annotated[Scope, Field(strict=False)]


class NewToken(Shape):
    """New API token, with no more scopes and no later expiry than the one that makes it."""

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME, pattern=r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$")]
    scopes: list[ScopeName] = Field(
        default_factory=lambda: [Scope.WRITE], min_length=1, max_length=len(Scope), description="Left out: write."
    )
    expires_at: UtcTime | None = Field(
        default=None, strict=False, description="RFC 3339. Left out: as that of the token which makes it."
    )


class Token(View):
    """API token without its secret. ``current``: the one that this call was made with.

    ``made_by`` is the token that made it and with which it ends; null: made on the service's machine.
    ``calls_in_24_h`` counts calls in this hour and the 23 before, without web pages.
    """

    id: str
    name: str
    scopes: list[Scope]
    created_at: Time
    expires_at: Time | None
    revoked_at: Time | None
    last_used_at: Time | None
    calls_in_24_h: int
    current: bool
    made_by: str | None


class TokenWithSecret(Token):
    """New API token; ``secret`` is shown only once."""

    secret: str


class TokenAnswer(Success[Token]):
    """One token."""


class Ended(View):
    """Thing that ended with the token that made it.

    ``name``: of the token or of the builder, a webhook's URL, empty for an upload. ``builder`` is its uuid.
    """

    kind: EndedKind
    id: str
    name: str
    builder: str | None


class RevokedToken(Token):
    """Revoked API token, and what ended with it in this call."""

    ended: list[Ended]


class RevokedTokenAnswer(Success[RevokedToken]):
    """Response to a revocation."""


class NewTokenAnswer(Success[TokenWithSecret]):
    """Response with a new token."""


class TokenPage(Page[Token]):
    """Page of tokens, newest first."""
