"""Create, list and revoke API tokens for the command line, also while the service runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

from builderd.bootstrap.data_directory import listening
from builderd.bootstrap.database import database_location, existing_store, has_content, store
from builderd.core.ids import TokenId
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import SYSTEM
from builderd.linux.clock import SystemClock
from builderd.sessions import revocations
from builderd.sessions import service as sessions
from builderd.sessions.revocations import Revocation
from builderd.settings import Settings
from builderd.tokens import service as tokens
from builderd.tokens.model import Ended, Scope, Token

T = TypeVar("T")
#: Tenant of the first sign-in link of a service that has none.
FIRST_TENANT = "me"


async def make_token(
    settings: Settings,
    say: Callable[[str], None],
    tenant: str,
    name: str,
    scopes: frozenset[Scope],
    expires_at: datetime | None = None,
) -> tuple[Token, str]:
    """Create a token; return it with its secret. Makes tenant, data directory and database where they are missing.

    Without ``expires_at`` it never expires.
    """
    now = SystemClock().now()
    return await _write_first(
        settings, lambda uow: tokens.create(uow, tenant, name, now, scopes=scopes, expires_at=expires_at), say
    )


async def make_link(settings: Settings, tenant: str, scopes: frozenset[Scope], say: Callable[[str], None]) -> str:
    """Return the code of a new one-time sign-in link. Makes tenant, data directory and database where missing."""
    now = SystemClock().now()
    return await _write_first(settings, lambda uow: sessions.make_link(uow, tenant, scopes, now), say)


async def _write_first(settings: Settings, work: Callable[[UnitOfWork], T], say: Callable[[str], None]) -> T:
    """Run the work on the database, which is made where it is missing."""
    was_there = await has_content(settings)
    async with store(settings) as opened:
        made = await opened.write(work)
    if not was_there:
        say(f"There was no builderd in {settings.data_dir} yet: created its database ({database_location(settings)}).")
    return made


async def first_link(settings: Settings) -> tuple[str, str] | None:
    """Return tenant and URL of a sign-in link for a fresh installation, None where it has several tenants.

    The link is for the only tenant, or for ``me`` where there is none, with the scope ``admin``. Raises
    ``BuilderdError`` where there is no database.
    """
    now = SystemClock().now()

    def make(uow: UnitOfWork) -> tuple[str, str] | None:
        tenants = uow.tenants.all()
        if len(tenants) > 1:
            return None
        tenant = tenants[0].name if tenants else FIRST_TENANT
        return tenant, sessions.make_link(uow, tenant, frozenset({Scope.ADMIN}), now)

    async with existing_store(settings) as opened:
        made = await opened.write(make)
    return made and (made[0], link_url(settings, made[1]))


def link_url(settings: Settings, code: str, url: str | None = None) -> str:
    """Return the URL of a sign-in link's code; ``url`` where browsers reach the service, if they do so elsewhere."""
    return f"{(url or page_url(settings)).rstrip('/')}/sign-in/once/{code}"


def page_url(settings: Settings) -> str:
    """Return where browsers reach the web pages: the public URL, or the address that the service listens on.

    Options of `builderd serve` may differ from the settings: a service that runs says where it listens.
    """
    return settings.public_url or listening(settings.data_dir) or settings.local_url


async def list_tokens(settings: Settings, tenant: str) -> Sequence[Token]:
    """Return the tenant's tokens, revoked ones included."""
    async with existing_store(settings) as opened:
        return await opened.read(lambda uow: tokens.list_of(uow, tenant))


async def revoke_token(settings: Settings, tenant: str, token_id: str) -> Sequence[Ended]:
    """End a token at once; return what ended with it. A service that runs finds it within 15 seconds."""
    now = SystemClock().now()

    def revoke(uow: UnitOfWork) -> Revocation:
        of = tokens.tenant_of(uow, tenant).id
        return revocations.revoke(uow, of, TokenId(token_id), SYSTEM, "revoked by the operator", now)

    async with existing_store(settings) as opened:
        return (await opened.write(revoke)).ended
