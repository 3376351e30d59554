"""Bundles: uploaded, stored before anything refers to them, compared, and removed when unused."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

from builderd.application import Application, Change
from builderd.builders import service as builders
from builderd.builders.service import Caller
from builderd.code.model import Alteration, Bundle, folder_of
from builderd.code.space import SentCode
from builderd.core.errors import (
    BadRequest,
    BuilderdError,
    BundleLost,
    Conflict,
    NotFound,
    QuotaExceeded,
    TooLarge,
    ValidationFailed,
)
from builderd.core.ids import TenantId, UploadId, is_id, new_id, new_secret, secret_hash
from builderd.database.unit_of_work import UnitOfWork
from builderd.files.model import LIFETIME, Upload, UploadRules
from builderd.tokens import service as tokens
from builderd.versions import diffs
from builderd.versions.model import Version, VersionSettings, VersionStatus


async def keep(application: Application, sent: SentCode, refer: Callable[[UnitOfWork], Change]) -> Change:
    """Store a tenant's bundle and run ``refer``, which records the reference; remove the bundle if that fails.

    Raises ``NoCapacity`` where there is no room for the bundle, ``QuotaExceeded`` where the tenant has its share.
    Large bundles take many seconds to store: others are stored beside them, and the pin keeps them from being removed.
    """
    stored, bundle, kept = application.bundles, sent.bundle, application.limits.kept_versions
    try:
        async with AsyncExitStack() as stack:
            replaced = await stack.enter_async_context(
                application.code_space.reserved(stored, application.store, sent, kept)
            )
            async with stored.exclusive():  # no removal is under way that the pin would come too late for
                stack.enter_context(stored.pinned(bundle.hash))
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


@dataclass(frozen=True, slots=True)
class Part:
    """Range of bytes that a request sends: from ``start`` on, of ``total`` (None: unknown until it ends)."""

    start: int
    total: int | None


def create(
    uow: UnitOfWork, rules: UploadRules, caller: Caller, size: int | None, sha256: str | None, now: datetime
) -> tuple[Upload, str]:
    """Announce an upload; return it, and the signature for its URL. Raises ``TooLarge`` or ``QuotaExceeded``."""
    if size is not None and size > rules.max_bytes:
        raise TooLarge(f"The upload is too large: at most {rules.max_bytes} bytes are taken.")
    tokens.require_unrevoked(uow, caller.token_id)
    live = [upload for upload in uow.uploads.of_tenant(caller.tenant_id) if upload.expires_at > now]
    promised = sum(upload.size or rules.max_bytes for upload in live) + (size or rules.max_bytes)
    if len(live) >= rules.max_count or promised > rules.max_tenant_bytes:
        raise QuotaExceeded(
            f"There are {len(live)} uploads: at most {rules.max_count}, of {rules.max_tenant_bytes} bytes together, "
            "are kept. Delete those that you have deployed, and say the size of new ones beforehand.",
            retry_after=max(int((min(upload.expires_at for upload in live) - now).total_seconds()), 1)
            if live
            else None,
        )
    secret = new_secret("bdu")
    end = caller.end(now + LIFETIME)
    upload = Upload(
        UploadId(new_id()), caller.tenant_id, secret_hash(secret), now, end, size, sha256, token_id=caller.token_id
    )
    uow.uploads.add(upload)
    return upload, secret


async def signed(application: Application, upload_id: str, signature: str) -> Upload:
    """Return the upload of this signed URL. Raises ``NotFound`` for any mismatch."""
    upload = await _live(application, upload_id)
    if upload is None or not hmac.compare_digest(secret_hash(signature), upload.secret_hash):
        raise NotFound("There is no such upload, or its URL has expired: ask for a new one with POST /api/v1/uploads.")
    return upload


async def owned(application: Application, tenant_id: TenantId, upload_id: str) -> Upload:
    """Return the tenant's upload. Raises ``NotFound``."""
    upload = await _live(application, upload_id)
    if upload is None or upload.tenant_id != tenant_id:
        raise NotFound("There is no such upload, or it has expired: send it again with POST /api/v1/uploads.")
    return upload


async def _live(application: Application, upload_id: str) -> Upload | None:
    if not is_id(upload_id):
        return None
    now = application.clock.now()
    upload = await application.store.read(lambda uow: uow.uploads.get(UploadId(upload_id)))
    return upload if upload and now < upload.expires_at else None


async def receive(
    application: Application, upload: Upload, part: Part, content: AsyncIterator[bytes], sha256: str | None
) -> tuple[Upload, int]:
    """Store a part; return the upload with its new size. It is complete when all bytes arrived and are valid.

    Raises ``BadRequest``, ``TooLarge``, ``Conflict``, ``NoCapacity``, ``NotFound`` when it was deleted meanwhile, or
    ``ValidationFailed`` for a wrong check sum: the bytes are discarded then.
    """
    total = _total(application, upload, part)
    limit = application.upload_rules.max_bytes if total is None else total
    if upload.complete:
        # A client whose response was lost sends the part again.
        upload = await _save(application, replace(upload, complete=False))
    received = await application.uploads.write(upload.id, part.start, content, limit)
    if total is not None and received < total:
        return await _save(application, upload), received
    await _check(application, upload, sha256)
    return await _save(application, replace(upload, size=received, complete=True)), received


def _total(application: Application, upload: Upload, part: Part) -> int | None:
    """Return the size of the complete upload in bytes; None: unknown.

    Raises ``BadRequest`` when it differs from the announced size, ``TooLarge`` beyond the limit.
    """
    if upload.size is not None and part.total is not None and part.total != upload.size:
        raise BadRequest(f"{upload.size} bytes were announced for this upload, not {part.total}.")
    total = part.total if part.total is not None else upload.size
    if total is not None and total > application.upload_rules.max_bytes:
        raise TooLarge(f"The upload is too large: at most {application.upload_rules.max_bytes} bytes are taken.")
    return total


async def _check(application: Application, upload: Upload, sha256: str | None) -> None:
    wanted = {one.lower() for one in (sha256, upload.sha256) if one is not None}
    if not wanted:
        return
    try:
        found = await application.uploads.sha256(upload.id)
    except KeyError:
        raise Conflict("Another request has taken away what had arrived: send it again.") from None
    if wanted != {found}:
        await application.uploads.delete(upload.id)
        raise ValidationFailed({"sha256": [f"is {found} of the received bytes: send them again"]})


async def _save(application: Application, upload: Upload) -> Upload:
    """Save the upload. Raises ``NotFound`` when it was deleted meanwhile; ``expire`` removes its bytes."""
    if not await application.store.write(lambda uow: uow.uploads.update(upload)):
        raise NotFound("The upload was deleted in the meantime: ask for a new one with POST /api/v1/uploads.")
    return upload


async def bundle(application: Application, tenant_id: TenantId, upload_id: str) -> Bundle:
    """Unpack the upload and return it as a stored bundle. Raises ``ValidationFailed`` or ``TooLarge``."""
    try:
        upload = await owned(application, tenant_id, upload_id)
    except NotFound as error:
        raise ValidationFailed({"source.upload_id": [error.message]}) from None
    if not upload.complete:
        received = await application.uploads.size(upload.id)
        raise ValidationFailed({"source.upload_id": [f"is not complete: {received} bytes have arrived"]})
    try:
        archive = await application.uploads.open(upload.id)
    except KeyError:
        raise ValidationFailed({"source.upload_id": ["is gone: send it again"]}) from None
    with archive:
        return await application.bundles.unpack(archive, application.archive_limits)


async def delete(application: Application, tenant_id: TenantId, upload_id: str) -> None:
    """Delete the upload. Raises ``NotFound``, and ``Conflict`` while it is being sent."""
    upload = await owned(application, tenant_id, upload_id)
    await _remove(application, upload.id)


async def expire(application: Application) -> None:
    """Remove expired uploads and unrecorded bytes, except those being sent right now."""
    now = application.clock.now()
    for upload_id in await application.store.read(lambda uow: uow.uploads.expired(now)):
        with suppress(Conflict):
            await _remove(application, upload_id)
    # In this order: the bytes of an upload are stored after its record.
    stored = await application.uploads.ids()
    live = await application.store.read(lambda uow: uow.uploads.live(now))
    for upload_id in set(stored).difference(live):
        with suppress(Conflict):
            await application.uploads.delete(upload_id)


async def _remove(application: Application, upload_id: UploadId) -> None:
    """Remove the bytes, then the record: until then the bytes can be found."""
    await application.uploads.delete(upload_id)
    await application.store.write(lambda uow: uow.uploads.delete(upload_id))


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
        one, other = await fetch(application, before), await fetch(application, after)
        files = await asyncio.to_thread(diffs.compare, one, other)
    names = (one.name for one in fields(VersionSettings) if one.name != "detected")
    pairs = [(name, getattr(before.settings, name), getattr(after.settings, name)) for name in names]
    return VersionDiff(before, after, files, [one for one in pairs if one[1] != one[2]])


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
