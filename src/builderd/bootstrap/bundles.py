"""Choose where bundles, uploads and backups are stored.

Bundles and uploads are in the data directory, or in a database that several services share; backups in restic's
repositories.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from sqlalchemy import make_url

from builderd.backups.restic.repository import ResticRepository
from builderd.backups.restic.runs import RepositoryLocation
from builderd.bootstrap.data_directory import identity
from builderd.bootstrap.engines import engine_provider
from builderd.code.bundles.local import LocalBundles
from builderd.code.bundles.shared import SharedBundles
from builderd.code.port import Bundles, BundleSpace, Uploads
from builderd.code.upload_store import LocalUploads, SharedUploads
from builderd.core.errors import ValidationFailed
from builderd.core.resources import GB
from builderd.database.unit_of_work import Store
from builderd.engine.port import ClusterProvider, Tools
from builderd.settings import Settings

#: Part of ``limits.stored_code`` that uploads may take beside the bundles.
UPLOADS_SHARE = 0.25


def is_shared(settings: Settings) -> bool:
    """Return True if services on other machines may continue this one's work: disks and database are not its own."""
    is_sqlite = make_url(settings.database).get_backend_name() == "sqlite"
    return not is_sqlite and isinstance(engine_provider(settings), ClusterProvider)


async def open_bundles(settings: Settings, store: Store) -> Bundles:
    """Return the bundle store; one in the database gets what only the data directory has so far."""
    if not is_shared(settings):
        return _local(settings)
    shared = _shared(settings, store)
    await shared.upload_used()
    return shared


def open_uploads(settings: Settings, store: Store) -> Uploads:
    """Return the store of uploads' bytes."""
    folder, limits = settings.data_dir / "uploads", settings.limits
    if not is_shared(settings):
        return LocalUploads(folder, int(settings.store.floor * GB))
    return SharedUploads(store, folder, int(limits.stored_code * 1_000_000 * UPLOADS_SHARE), limits.code_share)


async def download_bundles(settings: Settings) -> None:
    """Copy the bundles that are in use from the database into the data directory, where they are stored there."""
    if is_shared(settings):
        store = Store(settings.database)
        try:
            await SharedBundles(store, _local(settings)).download_used()
        finally:
            await store.close()


async def bundle_sizes(settings: Settings, store: Store) -> Mapping[str, int]:
    """Return the stored bytes of each bundle, by hash."""
    if is_shared(settings):
        return await store.read(lambda uow: uow.stored_bundles.sizes())
    return await _local(settings).sizes()


async def bundle_space(settings: Settings, store: Store) -> BundleSpace:
    """Return the space of all bundles."""
    return await (_shared(settings, store) if is_shared(settings) else _local(settings)).space()


def _shared(settings: Settings, store: Store) -> SharedBundles:
    return SharedBundles(store, _local(settings), int(settings.limits.stored_code * 1_000_000))


def _local(settings: Settings) -> LocalBundles:
    # Half of the floor: disks may have filled the host down to all of it.
    return LocalBundles(settings.data_dir / "bundles", int(settings.store.floor * GB) // 2)


def make_backup_repository(settings: Settings, tools: Callable[[], Tools]) -> ResticRepository:
    """Build the repository of all apps' backups. Raises ``ValidationFailed`` for a key file that cannot be read."""
    cache, floor = _backups(settings) / "cache", int(settings.store.floor * GB)
    name, share = identity(settings.data_dir)[:13], settings.backup.tenant_share
    return ResticRepository(tools, make_location(settings), cache, name, floor_bytes=floor, tenant_share=share)


def make_location(settings: Settings) -> RepositoryLocation:
    """Return the location and credentials of the tenants' repositories."""
    backup = settings.backup
    return RepositoryLocation(
        base=backup.repository or str(_backups(settings) / "repositories"),
        environment={name: value.get_secret_value() for name, value in backup.environment.items()},
        ssh_key=_text("backup.ssh_key", backup.ssh_key),
        ssh_hosts=_text("backup.ssh_hosts", backup.ssh_hosts),
    )


def _backups(settings: Settings) -> Path:
    return settings.data_dir.absolute() / "backups"


def _text(setting: str, file: Path | None) -> str:
    try:
        return file.read_text().strip() if file else ""
    except OSError as error:
        raise ValidationFailed({setting: [f"{file} cannot be read: {error.strerror}"]}) from None
