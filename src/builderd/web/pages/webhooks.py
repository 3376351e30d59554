"""Webhooks of a tenant, with their last deliveries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.responses import Response

from builderd.domain.errors import ValidationFailed
from builderd.domain.events import Delivery, Webhook
from builderd.domain.tokens import Scope
from builderd.schemas.v1.webhooks import NewWebhook
from builderd.services import webhooks
from builderd.store import UnitOfWork
from builderd.web import commands
from builderd.web.visits import Visit, page, see_other

SHOWN_DELIVERIES = 10


async def show_webhooks(visit: Visit) -> Response:
    """List the webhooks and their last deliveries."""
    return await _shown(visit)


async def _shown(
    visit: Visit,
    status: int = 200,
    *,
    errors: Mapping[str, Sequence[str]] | None = None,
    secret: str = "",
    url: str = "",
) -> Response:
    def look(uow: UnitOfWork) -> Sequence[tuple[Webhook, Sequence[Delivery], int]]:
        tenant = visit.token.tenant_id
        return [
            (one, *webhooks.deliveries(uow, tenant, one.id, page=1, per_page=SHOWN_DELIVERIES))
            for one in uow.webhooks.list(tenant)
        ]

    found = await visit.read(look)
    return await visit.page("webhooks.html", status, webhooks=found, errors=errors or {}, secret=secret, url=url)


async def change(visit: Visit) -> Response:
    """Create a webhook, or delete one."""
    form = await visit.form()
    if form.text("action") == "delete":
        await visit.write(lambda uow: webhooks.delete(uow, visit.caller, form.text("webhook"), visit.now))
        return see_other("/webhooks", {"done": "webhook-deleted"})
    url = form.text("url").strip()
    patterns = form.text("events", "*").replace(",", " ").split()
    try:
        asked = commands.shape_of(visit.application, NewWebhook, {"url": url, "events": patterns or ["*"]})
        new = webhooks.NewWebhook(asked.url, tuple(asked.events), None)
        _, secret = await visit.write(lambda uow: webhooks.create(uow, visit.application, visit.caller, new, visit.now))
    except ValidationFailed as error:
        return await _shown(visit, 422, errors=error.errors, url=url)
    return await _shown(visit, 201, secret=secret)


ROUTES = [page("/webhooks", show_webhooks), page("/webhooks", change, post=True, scope=Scope.WRITE)]
