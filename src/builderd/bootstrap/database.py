"""The store, opened and brought up to date, and which one it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import URL, make_url

from builderd.adapters.stores.sql import copies
from builderd.adapters.stores.sql.store import SqlStore
from builderd.bootstrap.data_directory import DATABASE_NOTE, make, refuse_half_restored
from builderd.domain.errors import InvalidState
from builderd.linux import durable
from builderd.settings import Settings

#: Parameters of a URL that say where a database is (PostgreSQL, "Parameter Key Words"); others may be secret.
_PLACES = ("dbname", "host", "port", "service", "options")


@asynccontextmanager
async def store(settings: Settings) -> AsyncIterator[SqlStore]:
    """The store at its present revision. Raises ``InvalidState`` when it is not the one of the service."""
    refuse_another_database(settings)
    make(settings.data_dir)
    async with open_store(settings) as opened:
        yield opened


@asynccontextmanager
async def existing_store(settings: Settings) -> AsyncIterator[SqlStore]:
    """The same where there is one. Raises ``InvalidState`` where there is none, and makes nothing."""
    refuse_half_restored(settings.data_dir)
    refuse_another_database(settings)
    if not await holds_something(settings):
        raise InvalidState(
            f"There is no builderd in {settings.data_dir}: its database, {whereabouts(settings)}, is not there or "
            "holds nothing yet. Name the data directory of the service (--data-dir)."
        )
    async with open_store(settings) as opened:
        yield opened


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[SqlStore]:
    """The same as ``store`` for the service itself, whose settings are the ones that count."""
    refuse_half_restored(settings.data_dir)
    opened = SqlStore(settings.database)
    try:
        await opened.migrate()
        yield opened
    finally:
        await opened.close()


async def holds_something(settings: Settings) -> bool:
    """Whether there is a database that is in use."""
    return await asyncio.to_thread(copies.holds_something, settings.database)


def note_database(settings: Settings) -> None:
    """Leave word of which database the service works on. The data directory must be held."""
    note, known = settings.data_dir / DATABASE_NOTE, whereabouts(settings)
    # Written only where it changes: a full disk must not keep the service from starting.
    if not note.is_file() or note.read_text() != known:
        durable.replace(note, known.encode())


def refuse_another_database(settings: Settings) -> None:
    """Raises ``InvalidState`` when these settings name another database than the one that the service works on.

    A shell does not see what a unit gives its service: a command would make a database of its own, and succeed.
    """
    note = settings.data_dir / DATABASE_NOTE
    if not note.is_file():
        return
    known, named = note.read_text(), whereabouts(settings)
    if known != named:
        raise InvalidState(
            f"The service of {settings.data_dir} works on the database {known}, and these settings name {named}: give "
            f"it as the service has it (BUILDERD_DATABASE_URL, database_url in builderd.toml). Remove {note} if the "
            "service is to have another database from now on."
        )


def whereabouts(settings: Settings) -> str:
    """Names the database without its password, and the same when the data directory is moved with what is in it."""
    url = make_url(settings.database)
    if url.get_backend_name() == "sqlite":
        return _file(Path(str(url.database)).resolve(), settings.data_dir.resolve())
    query = {name: url.query[name] for name in _PLACES if name in url.query}
    return str(URL.create("postgresql", url.username, None, url.host, url.port or 5432, url.database, query))


def _file(file: Path, data_dir: Path) -> str:
    return str(file.relative_to(data_dir) if file.is_relative_to(data_dir) else file)
