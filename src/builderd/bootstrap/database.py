"""Open and migrate the store, check that it is the database of the service; and identify this instance of it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from socket import gethostname

from sqlalchemy import URL, make_url

from builderd.bootstrap.data_directory import DATABASE_NOTE, IDENTITY_FILE, identity, make, refuse_half_restored
from builderd.core.errors import InvalidState
from builderd.core.ids import new_id
from builderd.core.members import STALE_AFTER, Instance, describe_owner
from builderd.database import copies
from builderd.database.unit_of_work import Store
from builderd.engine.oci.network.allocations import HOST_DIR
from builderd.linux import atomic_files
from builderd.linux.processes import boot_id
from builderd.settings import Settings

#: URL parameters that locate a database (PostgreSQL, "Parameter Key Words"); others may be secret.
_LOCATION_PARAMETERS = ("dbname", "host", "port", "service", "options")


@asynccontextmanager
async def store(settings: Settings) -> AsyncIterator[Store]:
    """Open the store, migrated; make it if needed. Raises ``InvalidState`` when it is not the service's."""
    refuse_another_database(settings)
    make(settings.data_dir)
    async with open_store(settings) as opened:
        yield opened


@asynccontextmanager
async def existing_store(settings: Settings) -> AsyncIterator[Store]:
    """Open a store that is in use already, migrated. Raises ``InvalidState`` where there is none; makes nothing."""
    refuse_half_restored(settings.data_dir)
    refuse_another_database(settings)
    if not await has_content(settings):
        raise InvalidState(
            f"There is no builderd in {settings.data_dir}: its database, {database_location(settings)}, does not "
            "exist or is empty. Name the data directory of the service (--data-dir)."
        )
    async with open_store(settings) as opened:
        yield opened


@asynccontextmanager
async def unmigrated_store(settings: Settings) -> AsyncIterator[Store]:
    """Open the store to look at it, as it is. Raises ``InvalidState`` when it is not the service's."""
    refuse_another_database(settings)
    opened = Store(settings.database)
    try:
        yield opened
    finally:
        await opened.close()


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """Open the store, migrated, without a check of its location: the service's own settings are authoritative."""
    refuse_half_restored(settings.data_dir)
    opened = Store(settings.database)
    try:
        await _refuse_migration_below_owner(opened, settings)
        await opened.migrate()
        yield opened
    finally:
        await opened.close()


async def _refuse_migration_below_owner(opened: Store, settings: Settings) -> None:
    """Raise ``InvalidState`` when another service, of an older version, works on the database."""
    lease = await opened.read(lambda uow: uow.database_lease.get())
    if lease is None or await opened.is_migrated():
        return
    if lease.released or lease.age > STALE_AFTER:
        return
    if lease.instance.member != this_instance(settings).member:
        raise InvalidState(
            f"The database is that of {describe_owner(lease)}, whose version is older than this command: upgrade that "
            "service first, or run the command there."
        )


async def has_content(settings: Settings) -> bool:
    """Return True when the database exists and has tables in use."""
    return await asyncio.to_thread(copies.has_content, settings.database)


def note_database(settings: Settings) -> None:
    """Write the database's location into the data directory, which must be locked."""
    note, known = settings.data_dir / DATABASE_NOTE, database_location(settings)
    # Written only when it changes: a full disk must not keep the service from starting.
    if not note.is_file() or note.read_text() != known:
        atomic_files.replace(note, known.encode(), durable=True)


def refuse_another_database(settings: Settings) -> None:
    """Raise ``InvalidState`` when these settings name another database than the service uses.

    A shell lacks the variables of the service's systemd unit: a command would make a new database and succeed.
    """
    note = settings.data_dir / DATABASE_NOTE
    if not note.is_file():
        return
    known, named = note.read_text(), database_location(settings)
    if known != named:
        raise InvalidState(
            f"The service of {settings.data_dir} works on the database {known}, but these settings name {named}: set "
            f"BUILDERD_DATABASE_URL, or database_url in builderd.toml, as the service has it. Remove {note} to give "
            "the service another database from now on."
        )


def database_location(settings: Settings) -> str:
    """Return the database's URL without password, or its file relative to the data directory, which may be moved."""
    url = make_url(settings.database)
    if url.get_backend_name() == "sqlite":
        file, data_dir = Path(str(url.database)).resolve(), settings.data_dir.resolve()
        return str(file.relative_to(data_dir) if file.is_relative_to(data_dir) else file)
    query = {name: url.query[name] for name in _LOCATION_PARAMETERS if name in url.query}
    return str(URL.create("postgresql", url.username, None, url.host, url.port or 5432, url.database, query))


MACHINE_ID = Path("/etc/machine-id")
#: Key of the hash over the machine id, which must not be shown to others (machine-id(5)).
_APPLICATION = b"builderd database lease"


def this_instance(settings: Settings) -> Instance:
    """Return the instance of this data directory, which must be locked."""
    return Instance(
        host_id=host_id(),
        host_name=gethostname(),
        data_dir=str(settings.data_dir.resolve()),
        identity=identity(settings.data_dir),
        boot_id=boot_id(),
    )


def host_id(machine_id: Path = MACHINE_ID, host_dir: Path = HOST_DIR) -> str:
    """Return 32 hex characters that stay the same over reboots; without a machine id, from a random stored one."""
    try:
        key = bytes.fromhex(machine_id.read_text().strip())
    except (OSError, ValueError):  # a container may have none, or the word "uninitialized"
        key = b""
    return hmac.new(key or _stored_id(host_dir), _APPLICATION, hashlib.sha256).hexdigest()[:32]


def _stored_id(host_dir: Path) -> bytes:
    file = host_dir / "host-id"
    if not file.exists() or not file.read_bytes():
        host_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        atomic_files.replace(file, new_id().encode(), durable=True)
    return file.read_bytes()


def is_copy(instance: Instance, owner: Instance) -> bool:
    """Return True when the owner's data directory still exists on this host with our identity: one was copied."""
    if instance.host_id != owner.host_id or instance.data_dir == owner.data_dir:
        return False
    try:
        there = (Path(owner.data_dir) / IDENTITY_FILE).read_text()
    except OSError:
        return False  # the directory was moved
    return there == instance.identity
