"""Revocation of API tokens: what a token made and what works without it ends in the same transaction.

These are the tokens that it made, which may have made things of their own, SSH tokens, preview links, webhooks and
uploads. A builder's service token is the builder's: it stays until it is renewed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from builderd.application import Application
from builderd.core.errors import BuilderdError, NotFound
from builderd.core.ids import BuilderId, TenantId, TokenId, is_id
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import WebhookStatus
from builderd.executions import ssh
from builderd.previews import service as preview_links
from builderd.tokens.model import Ended, EndedKind, Token, made_by
from builderd.webhooks import service as webhooks

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Revocation:
    """Revoked token, and what ended with it just now."""

    token: Token
    ended: Sequence[Ended]

    @property
    def message(self) -> str:
        made = f", with {len(self.ended)} thing{'s' * (len(self.ended) > 1)} that it made" if self.ended else ""
        return f"The token {self.token.name} is revoked{made}."


async def end(application: Application, tenant_id: TenantId, token_id: TokenId, actor: str) -> Revocation:
    """Revoke a token, and have the gateway and the proxy know at once. Raises ``NotFound``."""
    now = application.clock.now()
    done = await application.store.write(
        lambda uow: revoke(uow, tenant_id, token_id, actor, f"revoked by {actor}", now)
    )
    for builder_id in {one.builder_id for one in done.ended if one.builder_id is not None}:
        application.signals.change(builder_id)
    if any(one.kind is EndedKind.PREVIEW_LINK for one in done.ended):
        try:
            await preview_links.sync(application)
        except BuilderdError as error:
            log.warning("preview links not removed from the proxy, retrying error=%s", error.message)
    return done


def revoke(
    uow: UnitOfWork, tenant_id: TenantId, token_id: TokenId, actor: str, reason: str, now: datetime
) -> Revocation:
    """Revoke a token of the tenant, with all that it made. Idempotent. Raises ``NotFound``."""
    token = uow.tokens.get(token_id) if is_id(token_id) else None
    if token is None or token.tenant_id != tenant_id:
        raise NotFound("There is no such token: list them to see their ids.")
    uow.tokens.revoke([token_id], now)
    ended: list[Token] = []
    # Again after each round: until its row is locked by the update, a token that is still valid makes others.
    while found := [one for one in made_by(token_id, uow.tokens.list(tenant_id)) if one.revoked_at is None]:
        uow.tokens.revoke([one.id for one in found], now)
        ended += found
    reasons: dict[TokenId | None, str] = {one.id: f"its token {one.name} ended: {reason}" for one in (token, *ended)}
    things = [Ended(EndedKind.TOKEN, one.id, one.name) for one in ended if one.is_valid(now)]
    things += _end_ways_in(uow, reasons, actor, now)
    for hook in uow.webhooks.list(tenant_id):
        if hook.token_id in reasons and hook.status is WebhookStatus.ACTIVE:
            webhooks.disable(uow, hook.id, actor, reasons[hook.token_id], now)
            things.append(Ended(EndedKind.WEBHOOK, hook.id, hook.url))
    for upload in uow.uploads.of_tenant(tenant_id):
        if upload.token_id in reasons:
            uow.uploads.delete(upload.id)
            things.append(Ended(EndedKind.UPLOAD, upload.id))
    revoked = uow.tokens.get(token_id)
    assert revoked is not None
    return Revocation(revoked, things)


def _end_ways_in(uow: UnitOfWork, reasons: dict[TokenId | None, str], actor: str, now: datetime) -> list[Ended]:
    """End the SSH grants and preview links that these tokens made."""
    makers = [one for one in reasons if one is not None]
    grants, links = uow.ssh_grants.revoke_of(makers, now), uow.preview_links.remove_of(makers, now)
    found: list[tuple[EndedKind, str, BuilderId]] = []
    for grant in grants:
        ssh.note_revoked(uow, grant, actor, reasons[grant.token_id], now)
        found.append((EndedKind.SSH, grant.id, grant.builder_id))
    for link in links:
        preview_links.note_revoked(uow, link, actor, reasons[link.token_id], now)
        found.append((EndedKind.PREVIEW_LINK, link.id, link.builder_id))
    builders = uow.builders.get_all(list({builder for _, _, builder in found}))
    return [
        Ended(kind, thing, builders[builder].name, builder) for kind, thing, builder in found if builder in builders
    ]
