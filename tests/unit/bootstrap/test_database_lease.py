"""A second service on the same database is refused, and takes it over only when told to and the first is silent."""

from __future__ import annotations

import asyncio
import re
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.contract.store.samples import TENANT

from builderd.backups.model import BackupKey
from builderd.bootstrap import database_lease as leasing
from builderd.bootstrap import state
from builderd.bootstrap.data_directory import LOCK_FILE
from builderd.bootstrap.database import note_database
from builderd.bootstrap.database_lease import is_loss, owned_store
from builderd.bootstrap.keys import rotate_vault
from builderd.bootstrap.machine import describe_database, describe_space, load_inventory
from builderd.bootstrap.serving import Supervisor
from builderd.bootstrap.tokens import list_tokens, make_token
from builderd.core.errors import InvalidState, StoreUnavailable
from builderd.core.ids import DiskId
from builderd.core.members import DatabaseLease, DatabaseLost, DatabaseOwned, LeaseLost
from builderd.database.lease import DatabaseLeases
from builderd.database.unit_of_work import Store
from builderd.engine.inventory import EngineInventory, StoredDisk
from builderd.engine.oci.provider import OciProvider
from builderd.settings import Settings
from builderd.tokens.model import Scope

WANTED = ("acme", "cli", frozenset({Scope.READ}))


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks come in quick succession; how old a lease must be stays as it is."""
    for name in ("RENEW_INTERVAL", "WATCH_INTERVAL", "START_RETRY"):
        monkeypatch.setattr(leasing, name, 0.01)


@pytest.fixture
def one(tmp_path: Path) -> Settings:
    return _settings(tmp_path, "one")


@pytest.fixture
def two(tmp_path: Path) -> Settings:
    """Another service on the same database."""
    return _settings(tmp_path, "two")


def _settings(folder: Path, name: str) -> Settings:
    (folder / name).mkdir()
    (folder / name / LOCK_FILE).touch()
    return Settings(data_dir=folder / name, database_url=f"sqlite:///{folder}/shared.db")


def _execute(settings: Settings, statement: str) -> None:
    with closing(sqlite3.connect(str(settings.database_url).removeprefix("sqlite:///"))) as connection:
        connection.execute(statement)
        connection.commit()


def grow_old(settings: Settings, seconds: int) -> None:
    """Make the lease look as if it had been renewed so much earlier."""
    _execute(
        settings,
        "UPDATE database_lease SET released = 0, "
        f"renewed_at = strftime('%Y-%m-%d %H:%M:%f000', renewed_at, '{-seconds} seconds')",
    )


async def own(settings: Settings, *, take_over: bool = False) -> DatabaseLease:
    """Own the lease briefly and end in order; return it as it was in between."""
    async with owned_store(settings, Supervisor(), take_over=take_over) as owned:
        lease = await owned.store.read(lambda uow: uow.database_lease.get())
        assert lease is not None
        return lease


async def test_a_second_service_is_refused_with_the_name_of_the_first(one: Settings, two: Settings) -> None:
    async with owned_store(one, Supervisor(), take_over=False) as owned:
        with pytest.raises(DatabaseOwned) as refused:
            await own(two)
        assert str(one.data_dir) in refused.value.message
        assert owned.instance.host_name in refused.value.message
        assert "seconds ago" in refused.value.message
        assert "--take-over" in refused.value.message
        assert await owned.store.write(lambda uow: uow.database_lease.renew(owned.term))


async def test_second_service_is_refused_after_the_owner_stopped(one: Settings, two: Settings) -> None:
    await own(one)
    with pytest.raises(DatabaseOwned, match="stopped"):
        await own(two)
    assert (await own(one)).term == 2


async def test_take_over_of_a_stopped_service_is_immediate(one: Settings, two: Settings) -> None:
    await own(one)
    assert (await own(two, take_over=True)).instance.data_dir == str(two.data_dir)
    with pytest.raises(DatabaseOwned, match=str(two.data_dir)):
        await own(one)


async def test_a_service_that_was_killed_can_be_followed_after_a_minute(one: Settings, two: Settings) -> None:
    await own(one)
    grow_old(one, 61)
    with pytest.raises(DatabaseOwned, match=r"last seen 6\d seconds ago"):
        await own(two)
    assert (await own(two, take_over=True)).term == 2


async def test_renewed_lease_is_not_taken_over(one: Settings, two: Settings) -> None:
    async with owned_store(one, Supervisor(), take_over=False) as owned:
        keeping = asyncio.create_task(owned.keep())
        with pytest.raises(DatabaseOwned, match="still running: stop it first"):
            await own(two, take_over=True)
        assert not keeping.done()
        keeping.cancel()


async def test_clock_set_back_does_not_delay_a_take_over(
    one: Settings, two: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await own(one)
    grow_old(one, -3600)
    monkeypatch.setattr(leasing, "needed_silence", lambda *_, **__: 0.2)
    assert (await own(two, take_over=True)).term == 2


async def test_a_service_that_was_killed_has_its_lease_back_at_once(one: Settings) -> None:
    first = await own(one)
    grow_old(one, 0)
    assert (await own(one)).term == first.term + 1


async def test_after_a_restart_of_the_machine_a_clone_of_it_is_refused(
    one: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with owned_store(one, Supervisor(), take_over=False) as owned:
        keeping = asyncio.create_task(owned.keep())
        monkeypatch.setattr("builderd.bootstrap.database.boot_id", lambda: "another boot")
        with pytest.raises(DatabaseOwned):
            await own(one)
        keeping.cancel()
    grow_old(one, 20)
    assert (await own(one)).term == 2


async def test_a_copy_of_the_data_directory_is_refused(one: Settings, two: Settings) -> None:
    await own(one)
    shutil.copy(one.data_dir / "identity", two.data_dir / "identity")
    with pytest.raises(DatabaseOwned):
        await own(two)
    with pytest.raises(DatabaseOwned):
        await own(two, take_over=True)


async def test_a_copy_on_another_host_is_refused(one: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    await own(one)
    monkeypatch.setattr("builderd.bootstrap.database.host_id", lambda: "another host")
    with pytest.raises(DatabaseOwned):
        await own(one)
    assert (await own(one, take_over=True)).term == 2


async def test_fenced_service_ends_and_writes_nothing(one: Settings, two: Settings) -> None:
    async with owned_store(one, Supervisor(), take_over=False) as owned:
        grow_old(one, 61)
        async with owned_store(two, Supervisor(), take_over=True):
            with pytest.raises(LeaseLost):
                await owned.store.write(lambda uow: uow.tenants.add(TENANT))
            with pytest.raises(LeaseLost) as lost:
                await owned.keep()
            assert is_loss(ExceptionGroup("", [lost.value]))
            loss = await owned.loss()
            assert str(two.data_dir) in loss.message
            assert "builderd down" in loss.message
        assert await owned.store.read(lambda uow: uow.tenants.get(TENANT.id)) is None


async def test_service_that_renews_late_keeps_its_lease(one: Settings) -> None:
    async with owned_store(one, Supervisor(), take_over=False) as owned:
        grow_old(one, 3600)
        await owned.store.write(lambda uow: uow.tenants.add(TENANT))
        assert await owned.store.write(lambda uow: uow.database_lease.renew(owned.term))


async def test_the_owner_starts_where_nothing_can_be_written(
    one: Settings, two: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Builders are to be deleted from a full disk."""
    await own(one)

    def full(*_: object) -> None:
        raise StoreUnavailable("The database cannot be written now: its disk is full.")

    monkeypatch.setattr(DatabaseLeases, "take", full)
    assert (await own(one)).term == 1
    with pytest.raises(TimeoutError):  # it waits
        await asyncio.wait_for(own(two, take_over=True), 0.5)


async def test_failed_renewal_does_not_lose_the_lease(one: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    async def away(*_: object) -> None:
        nonlocal tries
        tries += 1
        raise StoreUnavailable("The database does not answer.")

    async with owned_store(one, Supervisor(), take_over=False) as owned:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "write", away)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(owned.keep(), 0.2)
        assert tries > 1


def _lose(settings: Settings) -> None:
    file = Path(str(settings.database_url).removeprefix("sqlite:///"))
    for path in file.parent.glob(f"{file.name}*"):
        path.unlink()


@pytest.mark.parametrize("left", ["missing", "empty", "made again by a command"])
async def test_service_that_worked_does_not_begin_with_an_empty_database(one: Settings, left: str) -> None:
    await own(one)
    note_database(one)
    _lose(one)
    if left == "empty":
        Path(str(one.database_url).removeprefix("sqlite:///")).touch()
    elif left != "missing":
        await make_token(one, print, *WANTED)
    for _ in range(2):  # as systemd would try
        with pytest.raises(DatabaseLost, match=r"builderd restore FOLDER.*--new-database"):
            await own(one)
    async with owned_store(one, Supervisor(), take_over=False, new_database=True) as owned:
        assert owned.term == 1
    assert (await own(one)).term == 2


async def test_disks_tell_that_a_service_worked(one: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = StoredDisk(DiskId("d"), 1, 1)
    found = EngineInventory([], [disk], [], cache_bytes=0, scratch_bytes=0, scratch=0)
    monkeypatch.setattr(OciProvider, "read_inventory", lambda *_: found)
    with pytest.raises(DatabaseLost):
        await own(one)


async def test_service_starts_without_builders_on_its_own_database_and_on_a_restored_one(
    one: Settings, tmp_path: Path
) -> None:
    """All builders may have been deleted, and their records removed."""
    await own(one)
    note_database(one)
    await own(one)
    await asyncio.to_thread(state.back_up, one, tmp_path / "kept", None, print)
    _lose(one)
    with pytest.raises(DatabaseLost):
        await own(one)
    # What the refused start left is no obstacle.
    await asyncio.to_thread(state.restore, one, tmp_path / "kept", None, print)
    assert (await own(one)).term == 1


async def test_commands_work_beside_the_service(one: Settings, tmp_path: Path) -> None:
    async with owned_store(one, Supervisor(), take_over=False) as owned:
        await make_token(one, print, *WANTED)
        assert len(await list_tokens(one, "acme")) == 1
        assert await load_inventory(one) is not None
        (line,) = await describe_database(one)
        assert f"belongs to the service on host {owned.instance.host_name}" in line
        *_, line = await describe_space(one)
        assert re.fullmatch(r"stored code: 0 B, and \S+ GB are free for more", line)
        with pytest.raises(InvalidState, match="no key yet"):
            await rotate_vault(one, print)
        await asyncio.to_thread(state.back_up, one, tmp_path / "kept", None, print)
        assert await owned.store.write(lambda uow: uow.database_lease.renew(owned.term))


async def test_damaged_backups_are_named(one: Settings) -> None:
    async with owned_store(one, Supervisor(), take_over=False) as owned:
        await make_token(one, print, *WANTED)
        (tenant,) = await owned.store.read(lambda uow: uow.backup_keys.lacking())
        now = datetime.now(UTC)
        key = BackupKey(tenant, b"sealed", now, now, now, fault="restic printed: pack 1a2b3c4d is damaged")
        await owned.store.write(lambda uow: uow.backup_keys.add(key))
        (_, line) = await describe_database(one)
        assert line == f"backups of tenant {tenant}: {key.fault}"


async def test_a_database_that_is_away_is_waited_for(
    one: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "hunter2"
    away = one.model_copy(update={"database_url": f"postgresql://me:{secret}@127.0.0.1:1/builderd"})
    told: list[str] = []
    monkeypatch.setattr(Supervisor, "status", lambda _, text: told.append(text))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(own(away), 2)
    said = [record.getMessage() for record in caplog.records if record.name == leasing.log.name]
    assert len(said) == 1
    assert "database unavailable" in said[0]
    assert "127.0.0.1:1/builderd" in said[0]
    assert "refused" in said[0]
    assert len(told) == 1
    assert secret not in caplog.text + "".join(told)


async def test_lease_is_taken_when_the_database_answers(
    one: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    tries, migrate = 0, Store.migrate

    async def late(store: Store) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise StoreUnavailable("The database does not answer.")
        await migrate(store)

    monkeypatch.setattr(Store, "migrate", late)
    assert (await own(one)).term == 1
    assert "database available" in caplog.text
