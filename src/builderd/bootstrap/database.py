"""The store, opened and brought up to date."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from builderd.adapters.stores.sql.store import SqlStore
from builderd.data_directory import make, refuse_half_restored
from builderd.settings import Settings


@asynccontextmanager
async def store(settings: Settings) -> AsyncIterator[SqlStore]:
    """The store at its present revision."""
    make(settings.data_dir)
    refuse_half_restored(settings.data_dir)
    opened = SqlStore(settings.database)
    try:
        await opened.migrate()
        yield opened
    finally:
        await opened.close()
