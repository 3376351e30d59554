"""Generated from ``_async`` by ``script/generate_client.py``: change that."""

from __future__ import annotations

from builderd.client._sync.pages import Pages, reader
from builderd.client._sync.transport import Transport
from builderd.client.models import Backup, BuilderState


class BuilderBackups:
    """Backups of a builder (``builder.backups``). A failure replaces nothing."""

    def __init__(self, transport: Transport, uuid: str) -> None:
        self._transport = transport
        self._uuid = uuid

    def list(self) -> Pages[Backup]:
        """List them, newest first, also those being taken and those that failed."""
        return Pages(self._transport, f"/builders/{self._uuid}/backups", reader(Backup))

    def take(self) -> Backup:
        """Take one now and wait for it. The app is frozen for some milliseconds."""
        return self._transport.read(Backup, "POST", f"/builders/{self._uuid}/backups", waits=True)

    def restore(self, backup: str) -> BuilderState:
        """Replace the files by the backup's, after a backup of the present ones; wait until it serves."""
        path = f"/builders/{self._uuid}/backups/{backup}/restore"
        return self._transport.read(BuilderState, "POST", path, waits=True)

    def remove(self, backup: str) -> None:
        """Remove one from all lists; its space comes back with the next pruning."""
        self._transport.request("DELETE", f"/builders/{self._uuid}/backups/{backup}")
