"""API tokens of a tenant: what each may, when it ends, when it was used last; new ones, shown once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from starlette.responses import Response

from builderd.domain.errors import ValidationFailed
from builderd.domain.ids import TokenId
from builderd.domain.tokens import EndedKind, Scope
from builderd.schemas.v1.tokens import NewToken
from builderd.services import revocations, tokens
from builderd.web import commands
from builderd.web.visits import Visit, page

#: What a new token may do, with what each scope means. `operator` is granted on the machine alone.
SCOPES = (
    (Scope.READ, "see everything but service tokens"),
    (Scope.WRITE, "read, create and change builders"),
    (Scope.SKIP_GATES, "leave the review or QA out"),
    (Scope.ADMIN, "all of these, tokens and caps"),
)
#: Lifetimes of a new token in days; "" is as long as the token of the session.
LIFETIMES = ("7", "30", "90", "365", "")

#: What ended with a token, in words.
KINDS = {
    EndedKind.TOKEN: "the token",
    EndedKind.SSH: "an SSH token of",
    EndedKind.PREVIEW_LINK: "a link to",
    EndedKind.WEBHOOK: "the webhook to",
    EndedKind.UPLOAD: "an upload",
}


async def show_tokens(visit: Visit) -> Response:
    """List the tokens that are valid, without their secrets."""
    return await _shown(visit)


async def _shown(visit: Visit, status: int = 200, **values: Any) -> Response:
    found = await visit.read(lambda uow: tokens.list_of(uow, visit.tenant))
    valid = sorted((one for one in found if one.is_valid(visit.now)), key=lambda one: one.created_at)[::-1]
    pending = visit.operations.token_calls.pending
    context = {
        "tokens": valid,
        "calls": {one.id: one.calls.add_all(pending(one.id)).of_day(visit.now) for one in valid},
        "is_admin": visit.allows(Scope.ADMIN),
        "scopes": SCOPES,
        "lifetimes": LIFETIMES,
        "kinds": KINDS,
        "errors": {},
        "asked": {"name": "", "scopes": [Scope.WRITE], "days": "30"},
        "secret": "",
        "revocation": None,
    }
    return await visit.page("tokens.html", status, **{**context, **values})


async def create(visit: Visit) -> Response:
    """Create a token with no more scopes and no later end than the session's token; show its secret this once."""
    form, now = await visit.form(), visit.now
    name, scopes, days = form.text("name").strip(), form.all("scope"), form.text("days")
    try:
        new = commands.shape_of(visit.application, NewToken, {"name": name, "scopes": scopes})
        ends = _end(visit, days)
        token, secret = await visit.write(
            lambda uow: tokens.derive(uow, visit.token, new.name, now, scopes=new.scopes, expires_at=ends)
        )
    except ValidationFailed as error:
        asked = {"name": name, "scopes": scopes, "days": days}
        return await _shown(visit, 422, errors=_by_field(error.errors), asked=asked)
    return await _shown(visit, 201, secret=secret, made=token.name)


def _end(visit: Visit, days: str) -> datetime | None:
    """Return when a token of this lifetime ends; None: with the session's token. Raises ``ValidationFailed``."""
    if days not in LIFETIMES:
        raise ValidationFailed({"days": ["must be one of the list"]})
    if not days:
        return None
    end, own = visit.now + timedelta(days=int(days)), visit.token.expires_at
    # "At most 30 days" is what is meant where the session's own token ends before.
    return end if own is None else min(end, own)


def _by_field(errors: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
    """Return the errors under the names of the form's fields: ``scopes.0`` is ``scopes``."""
    return {name.partition(".")[0]: why for name, why in errors.items()}


async def revoke(visit: Visit) -> Response:
    """Revoke a token, and so end its sessions and what it made, which is shown."""
    form, caller = await visit.form(), visit.caller
    done = await revocations.end(visit.application, caller.tenant_id, TokenId(form.text("token")), caller.actor)
    return await _shown(visit, revocation=done)


ROUTES = [
    page("/tokens", show_tokens),
    page("/tokens", create, post=True, scope=Scope.ADMIN),
    page("/tokens/revoke", revoke, post=True, scope=Scope.ADMIN),
]
