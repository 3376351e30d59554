"""Bundles: stored before anything refers to them, removed when nothing refers to them any more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from builderd.domain.bundles import Alteration, Bundle, folder_of
from builderd.domain.errors import BuilderdError, BundleLost, ValidationFailed
from builderd.domain.versions import Version
from builderd.services import builders
from builderd.services.application import Application, Change
from builderd.services.builders import Caller
from builderd.services.code_space import SentCode
from builderd.store import UnitOfWork


async def keep(application: Application, sent: SentCode, refer: Callable[[UnitOfWork], Change]) -> Change:
    """Store a tenant's bundle and run ``refer``, which records the reference; remove the bundle if that fails.

    Raises ``NoCapacity`` where there is no room for the bundle, ``QuotaExceeded`` where the tenant has its share.
    Large bundles take many seconds to store: others are stored beside them, and the pin keeps them from being removed.
    """
    stored, bundle, kept = application.bundles, sent.bundle, application.limits.kept_versions
    try:
        async with AsyncExitStack() as held:
            replaced = await held.enter_async_context(
                application.code_space.reserved(stored, application.store, sent, kept)
            )
            async with stored.exclusive():  # no removal is under way that the pin would come too late for
                held.enter_context(stored.pinned(bundle.hash))
            await stored.put(bundle)
            async with stored.exclusive():
                change = await application.commit(refer)
    except BaseException:
        await drop_unused(application, bundle.hash)
        raise
    with suppress(BuilderdError):  # the sweep does it, too; until then others lack the space
        for one in replaced:
            await drop_unused(application, one)
    return change


async def fetch(application: Application, version: Version) -> Bundle:
    """Return the bundle of this version. Raises ``BundleLost`` with the remedy."""
    try:
        return await application.bundles.get(version.bundle_hash)
    except KeyError:
        raise BundleLost(
            f"The stored files of version {version.number} are damaged or gone: deploy them again with "
            f"PUT /api/v1/builders/{version.builder_id}, which stores them again.",
            data={"uuid": version.builder_id, "bundle": version.bundle_hash},
        ) from None


async def fetch_root(application: Application, version: Version) -> Bundle:
    """Return the files of this version's ``root``, where its manifests are. Raises ``BundleLost``."""
    return folder_of(await fetch(application, version), version.settings.root)


async def alter(
    application: Application, caller: Caller, builder_id: str, bundle_hash: str, alteration: Alteration
) -> Bundle:
    """Return what an alteration makes of the code of one of this builder's versions, stored.

    Only a version of the same builder counts: a hash alone gives nobody the files of others. Raises ``NotFound``,
    ``ValidationFailed`` and ``TooLarge``.
    """

    def has_it(uow: UnitOfWork) -> bool:
        builder = builders.get(uow, caller.tenant_id, builder_id)
        return any(version.bundle_hash == bundle_hash for version in uow.versions.list(builder.id))

    if await application.store.read(has_it):
        with suppress(KeyError):
            return await application.bundles.alter(bundle_hash, alteration, application.archive_limits)
    raise ValidationFailed({"stored.bundle": ["is no stored code of this builder: send all files"]})


@asynccontextmanager
async def dropped_on_error(application: Application, bundle: Bundle | None) -> AsyncIterator[None]:
    """Remove a bundle that was stored for a request if the block raises, unless a version of a live builder has it."""
    try:
        yield
    except BaseException:
        if bundle is not None:
            await drop_unused(application, bundle.hash)
        raise


async def drop_unused(application: Application, bundle_hash: str) -> None:
    """Remove the bundle unless a version of a live builder has it."""
    async with application.bundles.exclusive():
        if not await application.store.read(lambda uow: uow.versions.uses_bundle(bundle_hash)):
            await application.bundles.delete(bundle_hash)
