"""The previews: a proxy that routes a host name to an app, and outlives the service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Protocol

from builderd.domain.previews import PreviewActivity, Route


class Previews(Protocol):
    async def start(self, expected: Iterable[Route] = ()) -> None:
        """Adopt the running proxy or start one, with the routes it had. Idempotent.

        Of ``expected``, hosts that it has forgotten are known before anybody is let in.

        Raises ``EngineUnavailable`` with the reason (port taken, program missing) when it cannot.
        """

    async def keep_up(self) -> None:
        """Start the proxy again as soon as it dies, until cancelled. ``start`` comes first."""

    async def ready(self) -> bool:
        """Whether the proxy answers on its control socket."""

    async def put(self, route: Route) -> None:
        """Set or replace the route of a host; in force when this returns. Idempotent."""

    async def get(self, host: str) -> Route | None:
        """The route in force, or None."""

    async def remove(self, host: str) -> None:
        """Forget the host: its visitors get a plain 404. Idempotent."""

    async def routes(self) -> Mapping[str, Route]:
        """All routes by host."""

    async def activity(self) -> Mapping[str, PreviewActivity]:
        """Counters of the hosts that were visited since the proxy started."""

    def visitors(self) -> AsyncIterator[str]:
        """Yields a host as soon as a visitor waits for its ``asleep`` route, for as long as it is iterated.

        Once for all who wait; again only when the wait has not ended for a while, the service began anew, or the
        host is put to sleep (again) while they wait.
        """

    async def turn_away(self, host: str) -> None:
        """Whoever waits for the host is told that there is no room for it, and so is who comes in the next moments.

        Who comes later waits anew.
        """

    async def open_requests(self, host: str) -> int:
        """How many requests the host's app works on now, streams of events and WebSockets left out."""

    async def down(self) -> None:
        """End the proxy and remove what it was given. Idempotent."""
