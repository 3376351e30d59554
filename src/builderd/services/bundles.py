"""Bundles: stored before anything refers to them, removed when nothing does any more."""

from __future__ import annotations

from collections.abc import Callable

from builderd.domain.builders import Builder
from builderd.domain.bundles import Bundle
from builderd.ports.store import UnitOfWork
from builderd.services.application import Application


async def keep(application: Application, bundle: Bundle, refer: Callable[[UnitOfWork], Builder]) -> Builder:
    """Store the bundle and, in ``refer``, record what has it; a bundle that nothing refers to is not left."""
    async with application.bundle_lock:
        try:
            await application.bundles.put(bundle)
            return await application.commit(refer)
        except BaseException:
            await _drop(application, bundle.hash)
            raise


async def drop_unused(application: Application, bundle_hash: str) -> None:
    """Remove the bundle unless a version of a live builder has it."""
    async with application.bundle_lock:
        await _drop(application, bundle_hash)


async def _drop(application: Application, bundle_hash: str) -> None:
    if not await application.store.read(lambda uow: uow.versions.uses_bundle(bundle_hash)):
        await application.bundles.delete(bundle_hash)
