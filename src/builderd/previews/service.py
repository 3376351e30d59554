"""Preview links: made, listed and revoked; and the URLs of other ports of a preview."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from builderd.application import Application
from builderd.builders import service as builders
from builderd.builders.model import Builder
from builderd.builders.service import Caller
from builderd.core.errors import Conflict, InvalidState, NotFound
from builderd.core.ids import new_id, new_secret, secret_hash
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.events.model import Event
from builderd.previews.model import MAX_LINKS, Link, Route, RoutedBuilder, closed_route, port_host
from builderd.tokens import service as tokens


@dataclass(frozen=True, slots=True)
class Made:
    """A new link with its URL, which has its token and is shown once."""

    builder: Builder
    link: Link
    url: str


def url_of_port(application: Application, builder: Builder, port: int | None) -> str:
    """Return the URL of another port of the preview. Raises ``InvalidState`` where there can be none."""
    if not builder.job_type.has_preview:
        raise InvalidState(f"A builder of job_type {builder.job_type.value} has no preview.")
    host = builder.host if port is None else port_host(builder.host, port)
    if host is None:
        raise InvalidState(
            f"{port}--{builder.host} is too long for a host name: other ports need a builder whose name has at most "
            "47 characters."
        )
    return application.preview_domain.url(host)


async def create(application: Application, caller: Caller, builder_id: str, minutes: int, port: int | None) -> Made:
    """Make a link to a port, None: the builder's own.

    Raises ``NotFound``, ``InvalidState`` without a preview, and ``Conflict`` for too many.
    """
    token, now = new_secret("bdpl"), application.clock.now()

    def write(uow: UnitOfWork) -> Made:
        builder = builders.get(uow, caller.tenant_id, builder_id, lock=True)
        tokens.require_unrevoked(uow, caller.token_id)
        url = f"{url_of_port(application, builder, port)}?service_token={token}"
        if len(uow.preview_links.valid_of(builder.id, now)) >= MAX_LINKS:
            raise Conflict(f"{MAX_LINKS} links to this builder are valid already: revoke one of them first.")
        link = Link(
            id=new_id(),
            tenant_id=builder.tenant_id,
            builder_id=builder.id,
            secret_hash=secret_hash(token),
            port=port,
            created_by=caller.actor,
            created_at=now,
            expires_at=caller.end(now + timedelta(minutes=minutes)),
            token_id=caller.token_id,
        )
        uow.preview_links.add(link)
        uow.events.add(_event(link, "preview_link.created", caller.actor, f"created by {caller.actor}", now))
        return Made(builder, link, url)

    made = await application.store.write(write)
    await sync(application)
    return made


def valid_of(uow: UnitOfWork, caller: Caller, builder_id: str, now: datetime) -> Sequence[Link]:
    """Return the builder's valid links, oldest first. Raises ``NotFound``."""
    return uow.preview_links.valid_of(builders.get(uow, caller.tenant_id, builder_id).id, now)


async def revoke(application: Application, caller: Caller, builder_id: str, link_id: str) -> None:
    """End a link at once. Raises ``NotFound``."""
    now = application.clock.now()

    def write(uow: UnitOfWork) -> None:
        builder = builders.get(uow, caller.tenant_id, builder_id, lock=True)
        found = next((one for one in uow.preview_links.valid_of(builder.id, now) if one.id == link_id), None)
        if found is None:
            raise NotFound("The builder has no such link: GET /api/v1/builders/{uuid}/preview-links lists them.")
        uow.preview_links.remove(found.id)
        note_revoked(uow, found, caller.actor, f"revoked by {caller.actor}", now)

    await application.store.write(write)
    await sync(application)


async def sync(application: Application) -> None:
    """Give the proxy all valid links: those that ended or whose builder is gone leave it."""
    now = application.clock.now()
    await application.previews.refresh_links(lambda: application.store.read(lambda uow: uow.preview_links.routes(now)))


def note_revoked(uow: UnitOfWork, ended: Link, actor: str, reason: str, now: datetime) -> None:
    """Record that a link was revoked."""
    uow.events.add(_event(ended, "preview_link.revoked", actor, reason, now))


def _event(link: Link, kind: str, actor: str, reason: str, now: datetime) -> Event:
    details = {"link": link.id, "port": link.port, "expires_at": link.expires_at.isoformat()}
    return Event(link.tenant_id, link.builder_id, now, kind, actor, reason, details)


#: Builders that are read by one transaction.
PAGE = 2_000


async def lost_routes(store: Store, known: Collection[str]) -> Sequence[Route]:
    """Return a closed route for every live builder whose host is not among ``known``.

    Of all other builders only the host name is read.
    """
    hosts = await store.read(lambda uow: uow.builders.live_hosts())
    lost = [host for host in hosts if host not in known]
    routes: list[Route] = []
    for start in range(0, len(lost), PAGE):
        found = await store.read(partial(_routed, hosts=lost[start : start + PAGE]))
        routes += (closed_route(one) for one in found)
    return routes


def _routed(uow: UnitOfWork, hosts: Sequence[str]) -> Sequence[RoutedBuilder]:
    return uow.builders.routed(hosts)
