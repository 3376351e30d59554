"""Backups: copies of a builder's files at one moment."""

from __future__ import annotations

from builderd.client._async.pages import AsyncPages, reader
from builderd.client._async.transport import AsyncTransport
from builderd.client.models import Backup, BuilderState
from builderd.client.paths import api_path


class AsyncBuilderBackups:
    """Backups of a builder (``builder.backups``). A failure replaces nothing."""

    def __init__(self, transport: AsyncTransport, uuid: str) -> None:
        self._transport = transport
        self._uuid = uuid

    def list(self) -> AsyncPages[Backup]:
        """List them, newest first, also those being taken and those that failed."""
        return AsyncPages(self._transport, api_path("builders", self._uuid, "backups"), reader(Backup))

    async def take(self) -> Backup:
        """Take one now and wait for it. The app is frozen for some milliseconds."""
        return await self._transport.read(Backup, "POST", api_path("builders", self._uuid, "backups"), waits=True)

    async def restore(self, backup: str) -> BuilderState:
        """Replace the files by the backup's, after a backup of the present ones; wait until it serves."""
        path = api_path("builders", self._uuid, "backups", backup, "restore")
        return await self._transport.read(BuilderState, "POST", path, waits=True)

    async def remove(self, backup: str) -> None:
        """Remove one from all lists; its space comes back with the next pruning."""
        await self._transport.request("DELETE", api_path("builders", self._uuid, "backups", backup))
