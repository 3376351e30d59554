"""Parts of a builder: backups, domains, review and QA, leases, links to a private preview."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self

from builderd.client._async.streams import AsyncCalls, AsyncPages
from builderd.client.models import Backup, BuilderState, Domain, Lease, NewPreviewLink, PreviewLink, Qa, Review


class AsyncBuilderBackups(AsyncCalls):
    """Backups of a builder (``builder.backups``). A failure replaces nothing."""

    def list(self) -> AsyncPages[Backup]:
        """List them, newest first, also those being taken and those that failed."""
        return self._list(Backup)

    async def take(self) -> Backup:
        """Take one now and wait for it. The app is frozen for some milliseconds."""
        return await self._read(Backup, "POST", waits=True)

    async def restore(self, backup: str) -> BuilderState:
        """Replace the files by the backup's, after a backup of the present ones; wait until it serves."""
        return await self._read(BuilderState, "POST", backup, "restore", waits=True)

    async def remove(self, backup: str) -> None:
        """Remove one from all lists; its space comes back with the next pruning."""
        await self._send("DELETE", backup)


class AsyncDomains(AsyncCalls):
    """Domains of a builder (``builder.domains``)."""

    def list(self) -> AsyncPages[Domain]:
        """List them by host, with what is wrong with each."""
        return self._list(Domain)

    async def add(self, host: str) -> Domain:
        """Add a host name of your own; it is checked, and gets a certificate, in the background."""
        return await self._read(Domain, "POST", json={"host": host})

    async def check(self, host: str) -> Domain:
        """Have it checked now, after its records were changed."""
        return await self._read(Domain, "POST", host, "check")

    async def remove(self, host: str) -> None:
        """Remove it: it leads nowhere from then on."""
        await self._send("DELETE", host)


class AsyncReviews(AsyncCalls):
    """Review of a builder's code (``builder.review``)."""

    async def get(self, version: int | None = None) -> Review:
        """Return the review of a version, by default the current one."""
        return await self._read(Review, "GET", params={"version": version})

    async def sarif(self, version: int | None = None) -> dict[str, Any]:
        """Return the review as SARIF 2.1.0."""
        return await self._transport.json("GET", self._path(), params={"version": version, "format": "sarif"})

    async def run(self) -> Review:
        """Review the current version's code again, by the policy of today."""
        return await self._read(Review, "POST", waits=True)

    async def accept(self, fingerprint: str, reason: str, *, expires: datetime | None = None) -> Review:
        """Accept a finding; one that blocks needs an admin's token and a date."""
        until = {"expires": expires.isoformat()} if expires else {}
        return await self._read(Review, "POST", "accept", json={"fingerprint": fingerprint, "reason": reason, **until})


class AsyncQaReports(AsyncCalls):
    """Quality checks of a builder (``builder.qa``)."""

    async def get(self, version: int | None = None) -> Qa:
        """Return the verdict and the report of a version, by default the current one."""
        return await self._read(Qa, "GET", params={"version": version})

    async def export(self, form: str, version: int | None = None) -> bytes:
        """Return the report as ``junit`` (XML) or ``ctrf`` (JSON)."""
        return (await self._send("GET", params={"version": version, "format": form})).content

    async def run(self) -> Qa:
        """Judge the running app again; the report on a copy follows, see ``get``."""
        return await self._read(Qa, "POST", waits=True)

    async def screenshot(self, name: str = "desktop", version: int | None = None) -> bytes:
        """Return a screenshot as PNG; ``name`` is ``desktop`` or ``phone``."""
        return (await self._send("GET", "screenshots", name, params={"version": version})).content


class AsyncLeases(AsyncCalls):
    """Leases of a builder (``builder.leases``): until then it neither freezes nor stops for idleness."""

    def list(self) -> AsyncPages[Lease]:
        """List the leases that last, oldest first."""
        return self._list(Lease)

    async def take(self, seconds: int, reason: str = "") -> Lease:
        """Take a lease of at most 3,600 seconds."""
        return await self._read(Lease, "POST", json={"seconds": seconds, "reason": reason})

    async def renew(self, lease: str, seconds: int) -> Lease:
        """Renew a lease for so many seconds from now."""
        return await self._read(Lease, "PUT", lease, json={"seconds": seconds})

    async def end(self, lease: str) -> None:
        """End a lease early."""
        await self._send("DELETE", lease)


class AsyncHeldLease:
    """Lease that is taken when a ``with`` block begins, and ended with it."""

    def __init__(self, leases: AsyncLeases, seconds: int, reason: str) -> None:
        self._leases = leases
        self._seconds = seconds
        self._reason = reason
        self._id = ""

    async def __aenter__(self) -> Self:
        self._id = (await self._leases.take(self._seconds, self._reason)).id
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._leases.end(self._id)

    async def renew(self, seconds: int | None = None) -> Lease:
        """Renew it, for as long as it was taken by default."""
        return await self._leases.renew(self._id, seconds or self._seconds)


class AsyncPreviewLinks(AsyncCalls):
    """Links that open a private preview, or one of its ports, without the service token."""

    async def create(self, *, expires_minutes: int = 60, port: int | None = None) -> NewPreviewLink:
        """Make a link; its URL is shown once."""
        return await self._read(NewPreviewLink, "POST", json={"expires_minutes": expires_minutes, "port": port})

    def list(self) -> AsyncPages[PreviewLink]:
        """List the valid links."""
        return self._list(PreviewLink)

    async def revoke(self, link: str) -> None:
        """End a link at once."""
        await self._send("DELETE", link)
