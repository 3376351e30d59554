"""What this machine has, what is used of it, and the base that all sandboxes share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from builderd.adapters.bundles.local import LocalBundles
from builderd.adapters.engines.oci.engine import holdings
from builderd.adapters.engines.oci.engine import probe as engine_probe
from builderd.adapters.engines.oci.storage.base import ensure_base
from builderd.adapters.previews.haproxy import probe as previews_probe
from builderd.adapters.stores.sql.store import SqlStore
from builderd.adapters.testers import equipment as testers
from builderd.bootstrap.database import refuse_another_database, whereabouts
from builderd.domain.database_lease import describe_owner
from builderd.domain.equipment import PreflightCheck
from builderd.domain.errors import EngineUnavailable
from builderd.domain.holdings import Inventory
from builderd.domain.resources import GB
from builderd.services import inventory
from builderd.settings import Settings


def examine(settings: Settings) -> Sequence[PreflightCheck]:
    """What this machine has of what the service needs."""
    engine, qa = (
        engine_probe.examine(settings.data_dir, int(settings.store.floor * GB)),
        testers.examine(settings.qa.chromium),
    )
    return [*engine, previews_probe.examine(), *qa]


async def describe_database(settings: Settings) -> Sequence[str]:
    """Lines about the database: its owner, and how its schema differs; none where there is no database yet.

    Changes nothing. Raises what ``take_stock`` raises.
    """
    if not _is_begun(settings):
        return []
    refuse_another_database(settings)
    opened = SqlStore(settings.database)
    try:
        lease = await opened.read(lambda uow: uow.database_lease.get())
        faults = await opened.schema_faults()
    finally:
        await opened.close()
    owner = f"belongs to {describe_owner(lease)}" if lease else "belongs to no service yet"
    return [f"database {whereabouts(settings)}: {owner}", *(f"database: {fault}" for fault in faults)]


def _is_begun(settings: Settings) -> bool:
    return settings.database_url is not None or (settings.data_dir.absolute() / "builderd.db").exists()


async def take_stock(settings: Settings) -> Inventory | None:
    """Who uses what, also while a service runs; None where there is no database yet. Changes nothing.

    Raises ``StoreUnavailable``, and ``InvalidState`` when the service works on another database.
    """
    if not _is_begun(settings):
        return None
    refuse_another_database(settings)
    opened = SqlStore(settings.database)
    try:
        sizes = await LocalBundles(settings.data_dir / "bundles").sizes()
        users, used = await opened.read(lambda uow: (inventory.users(uow), inventory.used_bundles(uow, sizes)))
    finally:
        await opened.close()
    held = None
    with suppress(OSError, EngineUnavailable):
        held = await asyncio.to_thread(holdings.look, settings.data_dir.absolute())
    return Inventory(users, sizes, used, held)


def build_base(settings: Settings, say: Callable[[str], None]) -> str:
    """Make the base root file system if it is not there; its name."""
    return ensure_base(progress=say).id
