"""Differences between two versions of a builder: their files, and their settings."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from builderd.domain import diffs
from builderd.domain.errors import NotFound
from builderd.domain.versions import Version, VersionSettings, VersionStatus
from builderd.services import builders, bundles
from builderd.services.application import Application
from builderd.services.builders import Caller
from builderd.store import UnitOfWork


@dataclass(frozen=True, slots=True)
class VersionDiff:
    """``settings``: (name, old value, new value) of those that differ."""

    old: Version
    new: Version
    files: Sequence[diffs.FileDiff]
    settings: Sequence[tuple[str, Any, Any]]


async def compare(application: Application, caller: Caller, builder_id: str, old: int, new: int) -> VersionDiff:
    """Compare two versions. Raises ``NotFound``, also for one whose files are not kept, and ``BundleLost``."""
    before, after = await application.store.read(
        lambda uow: (_version(uow, caller, builder_id, old), _version(uow, caller, builder_id, new))
    )
    files: Sequence[diffs.FileDiff] = ()
    if before.bundle_hash != after.bundle_hash:
        one, other = await bundles.fetch(application, before), await bundles.fetch(application, after)
        files = await asyncio.to_thread(diffs.compare, one, other)
    return VersionDiff(before, after, files, _settings(before.settings, after.settings))


async def patch(application: Application, caller: Caller, builder_id: str, old: int, new: int) -> str:
    """Return the difference between the files of two versions as a patch. Raises as ``compare``."""
    found = await compare(application, caller, builder_id, old, new)
    return await asyncio.to_thread(diffs.patch, found.files, old, new)


def _version(uow: UnitOfWork, caller: Caller, builder_id: str, number: int) -> Version:
    builder = builders.get(uow, caller.tenant_id, builder_id)
    version = uow.versions.get(builder.id, number)
    if version is None or version.status is VersionStatus.DROPPED:
        raise NotFound(
            f"The builder keeps no version {number}: list them with GET /api/v1/builders/{builder.id}/versions."
        )
    return version


def _settings(old: VersionSettings, new: VersionSettings) -> Sequence[tuple[str, Any, Any]]:
    pairs = ((one.name, getattr(old, one.name), getattr(new, one.name)) for one in fields(VersionSettings))
    return [(name, before, after) for name, before, after in pairs if before != after]
