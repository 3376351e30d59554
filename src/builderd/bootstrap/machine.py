"""What this machine has, what is used of it, and the base that all sandboxes share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from builderd.adapters.bundles.local import LocalBundles
from builderd.adapters.engines.oci import holdings
from builderd.adapters.engines.oci import probe as engine_probe
from builderd.adapters.engines.oci.base import ensure_base
from builderd.adapters.previews.haproxy import probe as previews_probe
from builderd.adapters.stores.sql.store import SqlStore
from builderd.domain.equipment import Equipment
from builderd.domain.holdings import Inventory
from builderd.services import inventory
from builderd.settings import Settings


def examine(settings: Settings) -> Sequence[Equipment]:
    """What this machine has of what the service needs."""
    return [*engine_probe.examine(settings.data_dir), previews_probe.examine()]


async def take_stock(settings: Settings) -> Inventory | None:
    """Who uses what, also while a service runs; None where there is no database yet. Changes nothing.

    Raises ``StoreUnavailable``.
    """
    path = settings.data_dir.absolute() / "builderd.db"
    if settings.database_url is None and not path.exists():
        return None
    opened = SqlStore(settings.database)
    try:
        sizes = await LocalBundles(settings.data_dir / "bundles").sizes()
        users, used = await opened.read(lambda uow: (inventory.users(uow), inventory.used_bundles(uow, sizes)))
    finally:
        await opened.close()
    held = None
    with suppress(OSError):
        held = await asyncio.to_thread(holdings.look, settings.data_dir.absolute())
    return Inventory(users, sizes, used, held)


def build_base(settings: Settings, say: Callable[[str], None]) -> str:
    """Make the base root file system if it is not there; its name."""
    return ensure_base(progress=say).id
