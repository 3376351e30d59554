"""Generated from ``_async`` by ``script/generate_client.py``: change that."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Unpack

from builderd.client._sync.builder import Builder
from builderd.client._sync.deployments import CreateOptions, prepare
from builderd.client._sync.pages import Pages, reader
from builderd.client._sync.transport import Transport, parsed
from builderd.client.errors import NotFound
from builderd.client.folders import Folder
from builderd.client.models import Backup, BuilderState

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class Builders:
    """Builders (``client.builders``)."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        name: str,
        path: str | Path | Folder | None = None,
        **options: Unpack[CreateOptions],
    ) -> Builder:
        """Create a builder from a folder, ``files`` or a finished upload, and wait until it is up.

        A lost answer is asked for again with the same key: there is never a second builder. Raises ``ReviewFailed``,
        ``InstallFailed``, ``BuildFailed``, ``ReleaseFailed``, ``StartFailed`` or ``QaFailed`` when a stage fails; the
        builder is kept as failed.
        """
        call, body = prepare(self._transport, path, {**options, "files": options.get("files") or {}})
        return Builder(self._transport, call.run("POST", "/builders", {"name": name, **body}))

    def get(self, name: str) -> Builder:
        """Return the builder with this name or uuid. Raises ``NotFound``."""
        if UUID.fullmatch(name):
            return Builder(self._transport, self._transport.read(BuilderState, "GET", f"/builders/{name.lower()}"))
        found, _ = self.list(name=name).page(per_page=1)
        if not found:
            raise NotFound("not_found", f"There is no builder with the name {name!r}.")
        return found[0]

    def list(
        self,
        *,
        name: str | None = None,
        status: str | None = None,
        job_type: str | None = None,
        sort: str | None = None,
    ) -> Pages[Builder]:
        """List the builders, newest first unless sorted by ``created_at`` or ``name``."""
        params = {"name": name, "status": status, "job_type": job_type, "sort": sort}
        return Pages(
            self._transport, "/builders", lambda one: Builder(self._transport, parsed(BuilderState, one)), params
        )


class Backups:
    """Backups of all builders, deleted ones too (``client.backups``)."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> Pages[Backup]:
        """List them, newest first."""
        return Pages(self._transport, "/backups", reader(Backup))

    def restore(self, backup: str, name: str) -> Builder:
        """Make a new builder of a backup, also of a deleted builder's; wait until it serves."""
        state = self._transport.read(BuilderState, "POST", f"/backups/{backup}/restore", json={"as": name}, waits=True)
        return Builder(self._transport, state)

    def remove(self, backup: str) -> None:
        """Remove one from all lists."""
        self._transport.request("DELETE", f"/backups/{backup}")
