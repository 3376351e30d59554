"""Room on a full disk for what the service records of deletions, which free space there."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from builderd.adapters.stores.sql import sqlite_room
from builderd.linux.spare_files import make_spares
from builderd.reconciler.core.every import every
from builderd.settings import Settings

#: Seconds between two looks at the room that is left.
INTERVAL = 60.0

log = logging.getLogger(__name__)


async def keep_room(settings: Settings) -> None:
    """Keep it until cancelled."""
    await every(INTERVAL, partial(asyncio.to_thread, _look, settings), event="room for a full disk")


def _look(settings: Settings) -> None:
    sqlite_room.keep_room(settings.database)
    try:
        make_spares(settings.data_dir)
    except OSError as error:
        log.debug("spare files not made error=%s", error)
