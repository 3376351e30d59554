"""The certificate file: noticed when it is renewed, and handed to the running proxy."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from builderd.adapters.previews.haproxy import runtime_api
from builderd.adapters.previews.haproxy.runtime_api import CommandRefused, ProxyBusy, ProxyGone

#: Seconds between two looks at the file. Whoever renews a certificate does so weeks before the old one ends.
INTERVAL = 15.0

log = logging.getLogger(__name__)


class Certificate:
    """A file that cannot be served is told of once, and the earlier certificate stays."""

    def __init__(self, file: Path, admin_socket: Path) -> None:
        self._file = file
        self._socket = admin_socket
        self._seen: bytes | None = b""

    async def watch(self) -> None:
        """Look from time to time, until cancelled."""
        while True:
            await self.renew()
            await asyncio.sleep(INTERVAL)

    async def renew(self) -> None:
        """Serve what is in the file, if it is not what was last looked at."""
        content = self._read()
        if content == self._seen:
            return
        try:
            await runtime_api.replace_certificate(self._socket, self._file, (content or b"").decode("ascii"))
            log.info("serving the certificate in %s", self._file)
        except (ProxyGone, ProxyBusy):
            return  # the next look tries again
        except (UnicodeDecodeError, CommandRefused) as error:
            log.error(  # noqa: TRY400
                "the certificate in %s cannot be served, the earlier one stays: %s", self._file, error
            )
        self._seen = content

    def _read(self) -> bytes | None:
        try:
            return self._file.read_bytes()
        except OSError:
            return None
