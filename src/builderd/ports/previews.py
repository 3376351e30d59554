"""Previews: a proxy that routes host names to apps, and survives the service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol

from builderd.domain.previews import DomainAlias, PreviewActivity, PreviewLink, Route

#: Returns routes of hosts that are not among those with a route.
LostRoutes = Callable[[Collection[str]], Awaitable[Sequence[Route]]]


class Previews(Protocol):
    async def start(self, lost: LostRoutes | None = None) -> None:
        """Adopt the running proxy or start one, with the routes it had. Idempotent.

        The routes that ``lost`` returns are put before the proxy accepts requests.

        Raises ``EngineUnavailable`` with the reason (port taken, program missing).
        """

    async def supervise(self) -> None:
        """Restart the proxy whenever it dies, until cancelled. Call ``start`` first."""

    async def ready(self) -> bool:
        """Return True if the proxy answers on its control socket."""

    async def put(self, route: Route) -> None:
        """Set or replace the route of a host; in force when this returns. Idempotent."""

    async def get(self, host: str) -> Route | None:
        """The route in force, or None."""

    async def remove(self, host: str) -> None:
        """Remove the host's route: its visitors get a 404. Idempotent."""

    async def routes(self) -> Mapping[str, Route]:
        """All routes by host."""

    async def activity(self) -> Mapping[str, PreviewActivity]:
        """Return the counters of the hosts that were visited since the proxy started."""

    def visitors(self) -> AsyncIterator[str]:
        """Yield a host as soon as a request is paused at its ``asleep`` route.

        A host is yielded once for all its paused requests, and again only if the pause lasts, the service restarted, or
        ``asleep`` is put again during the pause.
        """

    async def reject_visitors(self, host: str) -> None:
        """Answer the host's paused requests, and those of the next moments, with the page for a full machine.

        Later requests are paused again.
        """

    async def open_requests(self, host: str) -> int:
        """Return the number of open requests of the host, without event streams and WebSockets.

        It includes each request that is to reach the app by an earlier route than the present one.
        """

    async def put_domain(self, alias: DomainAlias) -> None:
        """Set or replace a custom domain, and its certificate for new connections. Idempotent.

        Nothing is reloaded and no connection lost. A proxy that speaks no TLS ignores the certificate.
        """

    async def remove_domain(self, host: str) -> None:
        """Remove a custom domain and its certificate. Idempotent."""

    async def domains(self) -> Mapping[str, tuple[str, str | None]]:
        """Return the preview host and the certificate's fingerprint of each custom domain."""

    async def put_wildcard(self, certificate: str) -> None:
        """Serve all hosts without a certificate of their own with this PEM of key and chain. Idempotent.

        A proxy that speaks no TLS ignores it.
        """

    async def refresh_links(self, load: Callable[[], Awaitable[Collection[PreviewLink]]]) -> None:
        """Let exactly the links that ``load`` returns open their previews; each ends by itself at its time.

        One call at a time loads and applies them. Idempotent.
        """

    async def put_challenge(self, token: str, answer: str) -> None:
        """Answer ``/.well-known/acme-challenge/<token>`` of any host with this text. Lost when the proxy restarts.

        No request below that path ever reaches an app.
        """

    async def remove_challenge(self, token: str) -> None:
        """Idempotent."""

    async def down(self) -> None:
        """End the proxy and remove its files. Idempotent."""
