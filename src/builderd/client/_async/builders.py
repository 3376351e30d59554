"""All builders of the token's tenant, and all their backups."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Unpack

from builderd.client._async.builder import AsyncBuilder
from builderd.client._async.deployments import CreateOptions, prepare
from builderd.client._async.pages import AsyncCalls, AsyncPages
from builderd.client._async.transport import parsed
from builderd.client.errors import NotFound
from builderd.client.folders import Folder
from builderd.client.models import Backup, BuilderState

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class AsyncBuilders(AsyncCalls):
    """Builders (``client.builders``)."""

    async def create(
        self,
        name: str,
        path: str | Path | Folder | None = None,
        **options: Unpack[CreateOptions],
    ) -> AsyncBuilder:
        """Create a builder from a folder, ``files`` or a finished upload, and wait until it is up.

        A lost answer is asked for again with the same key: there is never a second builder. Raises ``ReviewFailed``,
        ``InstallFailed``, ``BuildFailed``, ``ReleaseFailed``, ``StartFailed`` or ``QaFailed`` when a stage fails; the
        builder is kept as failed.
        """
        call, body = await prepare(self._transport, path, {**options, "files": options.get("files") or {}})
        return AsyncBuilder(self._transport, await call.run("POST", self._path(), {"name": name, **body}))

    async def get(self, name: str) -> AsyncBuilder:
        """Return the builder with this name or uuid. Raises ``NotFound``."""
        if UUID.fullmatch(name):
            return AsyncBuilder(self._transport, await self._read(BuilderState, "GET", name.lower()))
        found, _ = await self.list(name=name).page(per_page=1)
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
    ) -> AsyncPages[AsyncBuilder]:
        """List the builders, newest first unless sorted by ``created_at`` or ``name``."""
        params = {"name": name, "status": status, "job_type": job_type, "sort": sort}
        return AsyncPages(
            self._transport, self._path(), lambda one: AsyncBuilder(self._transport, parsed(BuilderState, one)), params
        )


class AsyncBackups(AsyncCalls):
    """Backups of all builders, deleted ones too (``client.backups``)."""

    def list(self) -> AsyncPages[Backup]:
        """List them, newest first."""
        return self._list(Backup)

    async def restore(self, backup: str, name: str) -> AsyncBuilder:
        """Make a new builder of a backup, also of a deleted builder's; wait until it serves."""
        state = await self._read(BuilderState, "POST", backup, "restore", json={"as": name}, waits=True)
        return AsyncBuilder(self._transport, state)

    async def remove(self, backup: str) -> None:
        """Remove one from all lists."""
        await self._send("DELETE", backup)
