"""Builders and backups of the token's tenant, its credentials, webhooks, spending and API tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any, Unpack

from builderd.client._async.builder import AsyncBuilder
from builderd.client._async.deployments import CreateOptions, prepare
from builderd.client._async.streams import PER_PAGE, AsyncCalls, AsyncPages
from builderd.client._async.transport import parsed
from builderd.client.errors import NotFound
from builderd.client.folders import Folder
from builderd.client.models import (
    Backup,
    BuilderState,
    Credential,
    DaysSpending,
    Delivery,
    NewToken,
    RevokedToken,
    Spending,
    SpendingCap,
    Token,
    Webhook,
    WebhookWithSecret,
)


class AsyncCredentials(AsyncCalls):
    """Credentials (``client.credentials``): values that go in and never come out."""

    async def put(self, name: str, values: Mapping[str, str], *, restart: bool = False) -> Credential:
        """Store secrets under a name; ``restart`` restarts the builders that run with the old values."""
        params = {"restart": True} if restart else {}
        body = {"values": dict(values)}
        return await self._read(Credential, "PUT", name, json=body, params=params)

    async def get(self, name: str) -> Credential:
        """Return one, without its values."""
        return await self._read(Credential, "GET", name)

    def list(self) -> AsyncPages[Credential]:
        """List them, by name."""
        return self._list(Credential)

    async def delete(self, name: str, *, force: bool = False) -> None:
        """Delete one; ``force`` also while builders use it."""
        params = {"force": True} if force else {}
        await self._send("DELETE", name, params=params)


class AsyncWebhooks(AsyncCalls):
    """Webhooks (``client.webhooks``): events that are sent to a URL."""

    async def create(self, url: str, *, events: Sequence[str] = ("*",), secret: str | None = None) -> WebhookWithSecret:
        """Create one; only this answer has its secret."""
        body = {"url": url, "events": list(events), **({"secret": secret} if secret else {})}
        return await self._read(WebhookWithSecret, "POST", json=body)

    def list(self) -> AsyncPages[Webhook]:
        """List them, oldest first."""
        return self._list(Webhook)

    async def delete(self, webhook: str) -> None:
        """Delete one; its pending deliveries are dropped."""
        await self._send("DELETE", webhook)

    def deliveries(self, webhook: str) -> AsyncPages[Delivery]:
        """List its deliveries, newest event first."""
        return self._list(Delivery, webhook, "deliveries")


class AsyncSpendings(AsyncCalls):
    """Costs (``client.spending``)."""

    async def get(self, *, since: datetime | None = None, until: datetime | None = None) -> Spending:
        """Return the cost of all builders, deleted ones included; fetches one page after the other."""
        number, found = 1, await self.page(since=since, until=until)
        deployments = list(found.deployments)
        while found.deployments and len(deployments) < found.vm_count:
            number += 1
            found = await self.page(number, since=since, until=until)
            deployments += found.deployments
        return found.model_copy(update={"deployments": deployments})

    async def page(
        self, number: int = 1, per_page: int = PER_PAGE, *, since: datetime | None = None, until: datetime | None = None
    ) -> Spending:
        """Return the cost of all builders together, and of each on one page, oldest first."""
        params = {"from": since, "to": until, "page": number, "per_page": per_page}
        return await self._read(Spending, "GET", "builders", "spending", params=params)

    async def days(self, *, since: date | None = None, until: date | None = None) -> DaysSpending:
        """Return the cost of all builders together by day (UTC), from ``since`` on, up to before ``until``.

        At most 366 days; without them, this month up to today.
        """
        params = {"from": since, "to": until}
        return await self._read(DaysSpending, "GET", "spending", "days", params=params)

    async def cap(self) -> SpendingCap:
        """Return the monthly cap of all builders together, and what they have cost this month."""
        return await self._read(SpendingCap, "GET", "spending-cap")

    async def set_cap(self, monthly: float | None) -> SpendingCap:
        """Set the monthly cap; None lifts it, but not the operator's. Needs the scope ``admin``."""
        return await self._read(SpendingCap, "PUT", "spending-cap", json={"monthly": monthly})


class AsyncTokens(AsyncCalls):
    """API tokens of the tenant (``client.tokens``). Needs the scope ``admin``, but for ``current``."""

    async def create(self, name: str, *, scopes: Sequence[str], expires_at: datetime | None = None) -> NewToken:
        """Create one, with no more scopes and no later expiry than the token in use.

        Only this answer has its secret.
        """
        body: dict[str, Any] = {"name": name, "scopes": list(scopes)}
        if expires_at is not None:
            body["expires_at"] = expires_at.isoformat()
        return await self._read(NewToken, "POST", json=body)

    def list(self) -> AsyncPages[Token]:
        """List them, revoked ones included."""
        return self._list(Token)

    async def current(self) -> Token:
        """Return the token in use."""
        return await self._read(Token, "GET", "current")

    async def revoke(self, token: str) -> RevokedToken:
        """End one at once, with what it made; return it with what ended."""
        return await self._read(RevokedToken, "DELETE", token)


UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class AsyncBuilders(AsyncCalls):
    """Builders (``client.builders``)."""

    async def create(
        self, name: str, path: str | Path | Folder | None = None, **options: Unpack[CreateOptions]
    ) -> AsyncBuilder:
        """Create a builder from a folder, ``files`` or a finished upload, and wait until it is up.

        A lost answer is asked for again with the same key: there is never a second builder. Raises ``ReviewFailed``,
        ``InstallFailed``, ``BuildFailed``, ``ReleaseFailed``, ``StartFailed`` or ``QaFailed`` when a stage fails; the
        builder is kept as failed.
        """
        call, body = await prepare(self._transport, path, {**options, "files": options.get("files") or {}})
        return AsyncBuilder(self._transport, await call.run("POST", self._path(), {"name": name, **body}))

    async def get(self, name: str) -> AsyncBuilder:
        """Return the builder with this name or uuid. Raises ``NotFound``."""
        if UUID.fullmatch(name):
            return AsyncBuilder(self._transport, await self._read(BuilderState, "GET", name.lower()))
        found, _ = await self.list(name=name).page(per_page=1)
        if not found:
            raise NotFound("not_found", f"There is no builder with the name {name!r}.")
        return found[0]

    def list(
        self,
        *,
        name: str | None = None,
        status: str | None = None,
        job_type: str | None = None,
        sort: str | None = None,
    ) -> AsyncPages[AsyncBuilder]:
        """List the builders, newest first unless sorted by ``created_at`` or ``name``."""
        params = {"name": name, "status": status, "job_type": job_type, "sort": sort}
        return AsyncPages(
            self._transport, self._path(), lambda one: AsyncBuilder(self._transport, parsed(BuilderState, one)), params
        )


class AsyncBackups(AsyncCalls):
    """Backups of all builders, deleted ones too (``client.backups``)."""

    def list(self) -> AsyncPages[Backup]:
        """List them, newest first."""
        return self._list(Backup)

    async def restore(self, backup: str, name: str) -> AsyncBuilder:
        """Make a new builder of a backup, also of a deleted builder's; wait until it serves."""
        state = await self._read(BuilderState, "POST", backup, "restore", json={"as": name}, waits=True)
        return AsyncBuilder(self._transport, state)

    async def remove(self, backup: str) -> None:
        """Remove one from all lists."""
        await self._send("DELETE", backup)
