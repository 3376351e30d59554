"""Backups: copies of a builder's files at one moment."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import httpx
from pydantic import BaseModel

from builderd.client.pages import all_of
from builderd.wire.v1.backups import Backup, BackupAnswer, BackupPage
from builderd.wire.v1.builders import Builder, BuilderAnswer

V = TypeVar("V", bound=BaseModel)

API = "/api/v1"
#: A large disk takes its time.
PATIENT = httpx.Timeout(10, read=None)


class Caller(Protocol):
    """How the client calls."""

    def call(self, answer: type[V], method: str, path: str, **options: Any) -> V: ...


class Backups:
    """``Client.backups``. One that fails is an ``ApiError`` and replaces nothing; ``backup_failed`` is a fault."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def list(self, uuid: str | None = None) -> list[Backup]:
        """A builder's, or those of all builders, deleted ones too; the newest first, failed ones with their error."""
        path = f"{API}/builders/{uuid}/backups" if uuid else f"{API}/backups"
        return all_of(self._caller.call, BackupPage, path)

    def take(self, uuid: str) -> Backup:
        """Take one now, and wait until it is taken. The app stands still for some milliseconds."""
        return self._caller.call(BackupAnswer, "POST", f"{API}/builders/{uuid}/backups", timeout=PATIENT).data

    def restore(self, uuid: str, backup: str) -> Builder:
        """Bring it back in place of what the builder has now, which is backed up first; wait until it serves."""
        path = f"{API}/builders/{uuid}/backups/{backup}/restore"
        return self._caller.call(BuilderAnswer, "POST", path, timeout=PATIENT).data

    def restore_as(self, backup: str, name: str) -> Builder:
        """Make a new builder of it, also of one whose builder was deleted; wait until it serves."""
        path, body = f"{API}/backups/{backup}/restore", {"as": name}
        return self._caller.call(BuilderAnswer, "POST", path, json=body, timeout=PATIENT).data

    def remove(self, backup: str) -> Backup:
        """It is in no list from now on; its space comes back with the next tidying."""
        return self._caller.call(BackupAnswer, "DELETE", f"{API}/backups/{backup}").data
