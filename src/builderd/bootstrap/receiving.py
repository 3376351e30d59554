"""The port on which a cluster's service takes what its standbys pass on, open to the addresses of members alone."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from builderd.adapters.previews.haproxy.options import Receiving
from builderd.adapters.previews.haproxy.previews import HaproxyPreviews
from builderd.adapters.previews.haproxy.process import worker_user
from builderd.api.server.servers import bind
from builderd.bootstrap.data_directory import proxy_files
from builderd.bootstrap.membership import Membership
from builderd.bootstrap.route_lists import RouteSource
from builderd.domain.errors import BuilderdError, EngineUnavailable
from builderd.ports.previews import LostRoutes

log = logging.getLogger(__name__)
#: Seconds between two reads of the cluster's list of members, and between two log lines on the same failure.
LOOK_INTERVAL, LOG_INTERVAL = 5.0, 60.0


class Receiver:
    """Has the previews' proxy take connections from members. While the cluster does not answer, all stays as it is.

    No failure ends the service: it works without standbys, too.
    """

    def __init__(self, membership: Membership, previews: HaproxyPreviews) -> None:
        self._membership = membership
        self._previews = previews
        self._said: tuple[str, float] = ("", 0.0)

    @property
    def api_socket(self) -> tuple[Path, str | None]:
        """The socket for calls that are passed on, and the user that the proxy is."""
        return proxy_files(self._membership.settings.data_dir).passed_api_socket, worker_user()

    @property
    def ssh_socket(self) -> tuple[Path, str | None]:
        return proxy_files(self._membership.settings.data_dir).passed_ssh_socket, worker_user()

    @property
    def routes_socket(self) -> tuple[Path, str | None]:
        """The socket for the standbys' questions for routes."""
        return proxy_files(self._membership.settings.data_dir).passed_routes_socket, worker_user()

    def source(self, term: int, next_hop: Callable[[str], str]) -> RouteSource:
        """Return what tells standbys the routes of this service."""
        return RouteSource(self._previews, term, next_hop, lambda: self._membership.own_address or "")

    async def start(self, lost: LostRoutes | None = None) -> None:
        """Start the previews; without the port for standbys where it cannot be opened. Raises ``EngineUnavailable``."""
        # A proxy that runs already holds the port, so it is not probed.
        await self._look(probe=False)
        try:
            await self._previews.start(lost)
        except EngineUnavailable as error:
            if self._previews.receiving is None:
                raise
            self._previews.receive_nothing()
            await self._previews.start(lost)
            self._say(error.message)

    async def watch(self) -> None:
        """Read the list of members, and the secret, every ``LOOK_INTERVAL`` seconds until cancelled."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            await self._look()

    async def _look(self, *, probe: bool = True) -> None:
        try:
            await self._receive(probe=probe)
        except BuilderdError as error:
            self._say(error.message)
        except Exception as error:
            self._say(f"{type(error).__name__}: {error}")
        else:
            self._said = ("", 0.0)

    async def _receive(self, *, probe: bool) -> None:
        found = await self._membership.addresses()
        if not found.own:
            return
        settings = self._membership.settings
        if (other := settings.name_of_port(settings.members_port)) is not None:
            raise EngineUnavailable(f"{settings.members_port} is the {other}, too: set another members_port")
        # The key may have been rotated.
        secret = await asyncio.to_thread(self._membership.secret)
        wanted, open_now = Receiving(found.own, settings.members_port, secret), self._previews.receiving
        if probe and (open_now is None or (open_now.address, open_now.port) != (wanted.address, wanted.port)):
            # A reload of the proxy that fails costs more.
            bind(wanted.address, wanted.port, "members_port").close()
        await self._previews.receive(wanted, found.all)

    def _say(self, reason: str) -> None:
        """Log a failure when it changes, and each ``LOG_INTERVAL`` seconds."""
        said, at = self._said
        now = time.monotonic()
        if reason != said or now - at >= LOG_INTERVAL:
            self._said = (reason, now)
            log.warning("port for standbys not opened or changed, retrying delay=%g error=%s", LOOK_INTERVAL, reason)
