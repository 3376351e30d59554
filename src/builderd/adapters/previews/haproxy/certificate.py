"""Watcher of the certificate file: loads a renewed certificate into the running proxy."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from builderd.adapters.previews.haproxy import runtime_api
from builderd.adapters.previews.haproxy.runtime_api import CommandRefused, ProxyBusy, ProxyGone

#: Seconds between two reads of the file. A certificate is renewed weeks before the old one expires.
INTERVAL = 15.0

log = logging.getLogger(__name__)


class Certificate:
    """The certificate file. An invalid one is logged once, and the earlier certificate stays in use."""

    def __init__(self, file: Path, admin_socket: Path) -> None:
        self._file = file
        self._socket = admin_socket
        self._last_content: bytes | None = b""

    async def watch(self) -> None:
        """Check the file every ``INTERVAL`` seconds until cancelled."""
        while True:
            await self.renew()
            await asyncio.sleep(INTERVAL)

    async def renew(self) -> None:
        """Load the file into the proxy if its content has changed since the last check."""
        content = self._read()
        if content == self._last_content:
            return
        try:
            await runtime_api.replace_certificate(self._socket, self._file, (content or b"").decode("ascii"))
            log.info("certificate loaded file=%s", self._file)
        except (ProxyGone, ProxyBusy):
            return  # the next check tries again
        except (UnicodeDecodeError, CommandRefused) as error:
            log.error(  # noqa: TRY400
                "certificate rejected, the earlier one stays file=%s error=%s", self._file, error
            )
        self._last_content = content

    def _read(self) -> bytes | None:
        try:
            return self._file.read_bytes()
        except OSError:
            return None
