"""The review and the QA gate of a builder."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from builderd.client._async.transport import AsyncTransport
from builderd.client.models import Qa, Review
from builderd.client.paths import api_path


class AsyncReviews:
    """Review of a builder's code (``builder.review``)."""

    def __init__(self, transport: AsyncTransport, uuid: str) -> None:
        self._transport = transport
        self._uuid = uuid

    async def get(self, version: int | None = None) -> Review:
        """Return the review of a version, by default the current one."""
        return await self._transport.read(
            Review, "GET", api_path("builders", self._uuid, "review"), params={"version": version}
        )

    async def sarif(self, version: int | None = None) -> dict[str, Any]:
        """Return the review as SARIF 2.1.0."""
        params = {"version": version, "format": "sarif"}
        return await self._transport.json("GET", api_path("builders", self._uuid, "review"), params=params)

    async def run(self) -> Review:
        """Review the current version's code again, by the policy of today."""
        return await self._transport.read(Review, "POST", api_path("builders", self._uuid, "review"), waits=True)

    async def accept(self, fingerprint: str, reason: str, *, expires: datetime | None = None) -> Review:
        """Accept a finding; one that blocks needs an admin's token and a date."""
        body = {"fingerprint": fingerprint, "reason": reason, "expires": expires.isoformat() if expires else None}
        sent = {name: value for name, value in body.items() if value is not None}
        return await self._transport.read(
            Review, "POST", api_path("builders", self._uuid, "review", "accept"), json=sent
        )


class AsyncQaReports:
    """Quality checks of a builder (``builder.qa``)."""

    def __init__(self, transport: AsyncTransport, uuid: str) -> None:
        self._transport = transport
        self._uuid = uuid

    async def get(self, version: int | None = None) -> Qa:
        """Return the verdict and the report of a version, by default the current one."""
        return await self._transport.read(
            Qa, "GET", api_path("builders", self._uuid, "qa"), params={"version": version}
        )

    async def export(self, form: str, version: int | None = None) -> bytes:
        """Return the report as ``junit`` (XML) or ``ctrf`` (JSON)."""
        params = {"version": version, "format": form}
        return (await self._transport.request("GET", api_path("builders", self._uuid, "qa"), params=params)).content

    async def run(self) -> Qa:
        """Judge the running app again; the report on a copy follows, see ``get``."""
        return await self._transport.read(Qa, "POST", api_path("builders", self._uuid, "qa"), waits=True)

    async def screenshot(self, name: str = "desktop", version: int | None = None) -> bytes:
        """Return a screenshot as PNG; ``name`` is ``desktop`` or ``phone``."""
        path, params = api_path("builders", self._uuid, "qa", "screenshots", name), {"version": version}
        return (await self._transport.request("GET", path, params=params)).content
