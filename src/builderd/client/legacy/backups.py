"""Backups: copies of a builder's files at one moment."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import httpx2
from pydantic import BaseModel

from builderd.client.legacy.pages import all_of
from builderd.schemas.v1.backups import Backup, BackupAnswer, BackupPage
from builderd.schemas.v1.builders import Builder, BuilderAnswer

V = TypeVar("V", bound=BaseModel)

API = "/api/v1"
#: No read timeout: the backup of a large disk takes long.
PATIENT = httpx2.Timeout(10, read=None)


class Caller(Protocol):
    """Calls of the client that this class uses."""

    def call(self, answer: type[V], method: str, path: str, **options: Any) -> V: ...


class Backups:
    """Backup calls (``Client.backups``). A failure raises ``ApiError`` and replaces nothing."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def list(self, uuid: str | None = None) -> list[Backup]:
        """List the backups of one builder or of all, deleted ones included; newest first."""
        path = f"{API}/builders/{uuid}/backups" if uuid else f"{API}/backups"
        return all_of(self._caller.call, BackupPage, path)

    def take(self, uuid: str) -> Backup:
        """Take a backup now and wait for it. The app is frozen for some milliseconds."""
        return self._caller.call(BackupAnswer, "POST", f"{API}/builders/{uuid}/backups", timeout=PATIENT).data

    def restore(self, uuid: str, backup: str) -> Builder:
        """Replace the builder's files by the backup, after a backup of the present ones; wait until it serves."""
        path = f"{API}/builders/{uuid}/backups/{backup}/restore"
        return self._caller.call(BuilderAnswer, "POST", path, timeout=PATIENT).data

    def restore_as(self, backup: str, name: str) -> Builder:
        """Make a new builder of the backup, also of a deleted builder's; wait until it serves."""
        path, body = f"{API}/backups/{backup}/restore", {"as": name}
        return self._caller.call(BuilderAnswer, "POST", path, json=body, timeout=PATIENT).data

    def remove(self, backup: str) -> Backup:
        """Remove a backup from all lists; the next pruning frees its space."""
        return self._caller.call(BackupAnswer, "DELETE", f"{API}/backups/{backup}").data
