"""The port on which a cluster's service takes what its standbys pass on, open to the addresses of members alone."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from builderd.adapters.previews.haproxy.options import Receiving
from builderd.adapters.previews.haproxy.previews import HaproxyPreviews
from builderd.adapters.previews.haproxy.process import worker_user
from builderd.bootstrap.membership import Membership
from builderd.bootstrap.previews import proxy_files
from builderd.domain.errors import EngineUnavailable

log = logging.getLogger(__name__)
#: Seconds between two looks at the cluster's list of members.
LOOK_INTERVAL = 5.0


class Receiver:
    """Has the previews' proxy take connections from members. While the cluster does not answer, all stays as it is."""

    def __init__(self, membership: Membership, previews: HaproxyPreviews) -> None:
        self._membership = membership
        self._previews = previews

    @property
    def api_socket(self) -> tuple[Path, str | None]:
        """The socket for calls that are passed on, and the user that the proxy is."""
        return proxy_files(self._membership.settings).passed_api_socket, worker_user()

    @property
    def ssh_socket(self) -> tuple[Path, str | None]:
        return proxy_files(self._membership.settings).passed_ssh_socket, worker_user()

    async def look(self) -> None:
        """Read the list of members once, and the secret: a key may have been rotated."""
        try:
            found = await self._membership.addresses()
            if found.own:
                secret = await asyncio.to_thread(self._membership.secret)
                receiving = Receiving(found.own, self._membership.settings.members_port, secret)
                await self._previews.receive(receiving, found.all)
        except EngineUnavailable as error:
            log.warning("ports for standbys not opened or changed error=%s", error.message)

    async def watch(self) -> None:
        """Look every ``LOOK_INTERVAL`` seconds until cancelled."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            await self.look()
