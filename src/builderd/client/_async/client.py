"""The client of one service."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, Unpack, cast

import httpx2

from builderd import __version__
from builderd.client._async.account import (
    AsyncBackups,
    AsyncBuilders,
    AsyncCredentials,
    AsyncSpendings,
    AsyncTokens,
    AsyncWebhooks,
)
from builderd.client._async.builder import AsyncBuilder, events_of
from builderd.client._async.deployments import CreateOptions, DeployOptions, FolderOptions
from builderd.client._async.streams import AsyncStream
from builderd.client._async.transport import AsyncTransport, connect
from builderd.client._async.uploads import AsyncUploads
from builderd.client.errors import NotFound
from builderd.client.folders import Folder
from builderd.client.models import Event, Health, Readiness
from builderd.client.options import HEALTH, OPENAPI, READINESS, EventOptions, api_path, written_path
from builderd.client.retries import OnRetry, certificates, ignore_retry

MAX_RETRIES = 2


class AsyncBuilderd:
    """Client of the service at ``url``, with an API token. Use it in a ``with`` block, or close it.

    ``url`` and ``token`` come from ``BUILDERD_URL`` and ``BUILDERD_TOKEN`` where they are left out. ``timeout`` is in
    seconds, for the whole of a deployment, otherwise for a silence; None keeps the limits of each call. Calls that
    can be repeated without harm are sent ``max_retries`` times again after a broken connection, a 429 or a 503 with
    ``Retry-After``; ``on_retry`` is called before each wait. ``ca`` is a file with certificates to trust beside the
    system's or those of ``SSL_CERT_FILE``. Each call sends ``headers``, too.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout: float | None = None,
        max_retries: int = MAX_RETRIES,
        ca: str | Path | None = None,
        headers: Mapping[str, str] | None = None,
        on_retry: OnRetry = ignore_retry,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        url = url or os.environ.get("BUILDERD_URL", "")
        token = token or os.environ.get("BUILDERD_TOKEN", "")
        if not url or not token:
            missing = "url, or set BUILDERD_URL" if not url else "token, or set BUILDERD_TOKEN"
            raise ValueError(f"no service to talk to: give {missing}")
        http = connect(url, token, certificates(url, ca), transport, f"builderd/{__version__}")
        http.headers.update(headers or {})
        self._use(AsyncTransport(http, timeout, max_retries, on_retry))

    def _use(self, transport: AsyncTransport) -> None:
        self._transport = transport
        #: Builders of the token's tenant.
        self.builders = AsyncBuilders(transport, "builders")
        #: Backups of all builders, deleted ones too.
        self.backups = AsyncBackups(transport, "backups")
        #: Secrets that builders get.
        self.credentials = AsyncCredentials(transport, "credentials")
        #: URLs that events are sent to.
        self.webhooks = AsyncWebhooks(transport, "webhooks")
        #: Costs and the monthly cap.
        self.spending = AsyncSpendings(transport)
        #: API tokens of the tenant.
        self.tokens = AsyncTokens(transport, "tokens")
        #: Code too large for JSON.
        self.uploads = AsyncUploads(transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.http.aclose()

    def with_options(
        self, *, timeout: float | None = None, max_retries: int | None = None, on_retry: OnRetry | None = None
    ) -> AsyncBuilderd:
        """Return a client on the same connections, with another timeout, number of retries, or ``on_retry``."""
        other = object.__new__(type(self))
        other._use(self._transport.with_options(timeout, max_retries, on_retry))
        return other

    async def deploy(self, path: str | Path | Folder, name: str, **options: Unpack[FolderOptions]) -> AsyncBuilder:
        """Deploy a folder: create the builder, or deploy a new version of the one with this name.

        What ``.builderdignore`` and ``.gitignore`` leave out is not sent. Code too large for JSON is uploaded in
        parts, which are resumed after an interruption; ``on_progress`` gets the bytes sent and their total.
        """
        try:
            builder = await self.builders.get(name)
        except NotFound:
            return await self.builders.create(name, path, **cast("CreateOptions", options))
        # Given once, when the builder is created.
        options.pop("job_type", None)
        return await builder.deploy(path, **cast("DeployOptions", options))

    def events(self, **options: Unpack[EventOptions]) -> AsyncStream[Event]:
        """Iterate over the events of all builders, as ``AsyncBuilder.events`` does over those of one."""
        return events_of(self._transport, api_path("events"), options)

    async def health(self) -> Health:
        """Return the version of the service."""
        return await self._transport.read(Health, "GET", HEALTH)

    async def readiness(self) -> Readiness:
        """Return the parts of a ready service. Raises ``Unavailable`` while it is not, with the reason."""
        return await self._transport.read(Readiness, "GET", READINESS)

    async def openapi(self) -> dict[str, Any]:
        """Return the service's OpenAPI document."""
        return await self._transport.json("GET", OPENAPI)

    async def request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Send any call, such as ``request("GET", "/builders", params={"status": "running"})``.

        Quote what you put into ``path``.
        """
        return await self._transport.request(method, written_path(path), **options)
