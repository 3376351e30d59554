"""Generated from ``_async`` by ``script/generate_client.py``: change that."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from builderd.client._sync.transport import Transport
from builderd.client.models import Qa, Review


class Reviews:
    """Review of a builder's code (``builder.review``)."""

    def __init__(self, transport: Transport, uuid: str) -> None:
        self._transport = transport
        self._uuid = uuid

    def get(self, version: int | None = None) -> Review:
        """Return the review of a version, by default the current one."""
        return self._transport.read(Review, "GET", f"/builders/{self._uuid}/review", params={"version": version})

    def sarif(self, version: int | None = None) -> dict[str, Any]:
        """Return the review as SARIF 2.1.0."""
        params = {"version": version, "format": "sarif"}
        return self._transport.json("GET", f"/builders/{self._uuid}/review", params=params)

    def run(self) -> Review:
        """Review the current version's code again, by the policy of today."""
        return self._transport.read(Review, "POST", f"/builders/{self._uuid}/review", waits=True)

    def accept(self, fingerprint: str, reason: str, *, expires: datetime | None = None) -> Review:
        """Accept a finding; one that blocks needs an admin's token and a date."""
        body = {"fingerprint": fingerprint, "reason": reason, "expires": expires.isoformat() if expires else None}
        sent = {name: value for name, value in body.items() if value is not None}
        return self._transport.read(Review, "POST", f"/builders/{self._uuid}/review/accept", json=sent)


class QaReports:
    """Quality checks of a builder (``builder.qa``)."""

    def __init__(self, transport: Transport, uuid: str) -> None:
        self._transport = transport
        self._uuid = uuid

    def get(self, version: int | None = None) -> Qa:
        """Return the verdict and the report of a version, by default the current one."""
        return self._transport.read(Qa, "GET", f"/builders/{self._uuid}/qa", params={"version": version})

    def export(self, form: str, version: int | None = None) -> bytes:
        """Return the report as ``junit`` (XML) or ``ctrf`` (JSON)."""
        params = {"version": version, "format": form}
        return (self._transport.request("GET", f"/builders/{self._uuid}/qa", params=params)).content

    def run(self) -> Qa:
        """Judge the running app again; the report on a copy follows, see ``get``."""
        return self._transport.read(Qa, "POST", f"/builders/{self._uuid}/qa", waits=True)

    def screenshot(self, name: str = "desktop", version: int | None = None) -> bytes:
        """Return a screenshot as PNG; ``name`` is ``desktop`` or ``phone``."""
        path, params = f"/builders/{self._uuid}/qa/screenshots/{name}", {"version": version}
        return (self._transport.request("GET", path, params=params)).content
