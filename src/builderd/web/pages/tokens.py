"""API tokens of a tenant: what each may, when it ends, when it was used last."""

from __future__ import annotations

from starlette.responses import Response

from builderd.domain.ids import TokenId
from builderd.domain.tokens import Scope
from builderd.services import tokens
from builderd.web.visits import Visit, page, see_other


async def show_tokens(visit: Visit) -> Response:
    """List the tokens that are valid, without their secrets."""
    found = await visit.read(lambda uow: tokens.list_of(uow, visit.tenant))
    valid = [one for one in found if one.is_valid(visit.now)]
    return await visit.page("tokens.html", tokens=valid, is_admin=visit.allows(Scope.ADMIN))


async def revoke(visit: Visit) -> Response:
    """Revoke a token, and so end its sessions."""
    form = await visit.form()
    wanted = TokenId(form.text("token"))
    await visit.write(lambda uow: tokens.revoke(uow, visit.tenant, wanted, visit.now))
    return see_other("/tokens", {"done": "token-revoked"})


ROUTES = [page("/tokens", show_tokens), page("/tokens", revoke, post=True, scope=Scope.ADMIN)]
