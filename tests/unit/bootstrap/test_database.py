"""A command works on the database and the data directory of the service, or not at all."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from builderd.bootstrap import machine, state
from builderd.bootstrap.data_directory import DATABASE_NOTE, IDENTITY_FILE, LOCK_FILE, identity, lock, make
from builderd.bootstrap.database import existing_store, host_id, is_copy, note_database, store, this_instance
from builderd.bootstrap.machine import describe_clock, repair_clock
from builderd.bootstrap.tokens import list_tokens, make_token
from builderd.core.errors import EngineUnavailable, InvalidState
from builderd.core.ids import TenantId, new_id
from builderd.core.members import Instance
from builderd.database import migrations
from builderd.linux.clock import SystemClock
from builderd.settings import Settings
from builderd.tokens.model import Scope, Tenant

SECRET = "hunter2"
ELSEWHERE = f"postgresql://builderd:{SECRET}@db.example/builderd?sslpassword={SECRET}"
WANTED = ("acme", "cli", frozenset({Scope.READ}))


def settings_of(folder: Path, database_url: str | None = None) -> Settings:
    return Settings(data_dir=folder, database_url=database_url)


async def _open(settings: Settings) -> None:
    async with store(settings):
        pass


def test_a_token_for_another_database_than_the_services_is_refused_and_no_database_is_made(tmp_path: Path) -> None:
    note_database(settings_of(tmp_path, ELSEWHERE))
    with pytest.raises(InvalidState, match=r"db\.example:5432/builderd.*BUILDERD_DATABASE_URL"):
        asyncio.run(make_token(settings_of(tmp_path), print, *WANTED))
    assert [path.name for path in tmp_path.iterdir()] == [DATABASE_NOTE]


async def test_command_does_not_migrate_the_database_below_an_older_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, owner = settings_of(tmp_path), Instance("host", "one", "/data", "one", "boot")
    async with store(here) as opened:
        await opened.write(lambda uow: uow.database_lease.take(owner, None))
        # The schema is this program's: nothing is to be changed.
        async with store(here):
            pass
    later = (*migrations.revisions(), "9000")
    monkeypatch.setattr(migrations, "revisions", lambda: later)
    with pytest.raises(InvalidState, match=r"host one .*older than this command"):
        async with existing_store(here):
            pass
    with pytest.raises(InvalidState, match="older than this command"):
        async with store(here):
            pass


def test_backup_restore_and_inventory_are_refused_as_well(tmp_path: Path) -> None:
    here = settings_of(tmp_path / "data")
    asyncio.run(_open(here))
    state.back_up(here, tmp_path / "kept", None, print)
    note_database(settings_of(here.data_dir, ELSEWHERE))
    with pytest.raises(InvalidState, match="works on the database"):
        state.back_up(here, tmp_path / "again", None, print)
    with pytest.raises(InvalidState, match="works on the database"):
        asyncio.run(machine.load_inventory(here))
    (here.data_dir / "builderd.db").unlink()
    with pytest.raises(InvalidState, match="works on the database"):
        state.restore(here, tmp_path / "kept", None, print)


def test_the_note_is_its_owners_alone_and_holds_no_password(tmp_path: Path) -> None:
    note_database(settings_of(tmp_path, ELSEWHERE))
    assert (tmp_path / DATABASE_NOTE).stat().st_mode & 0o777 == 0o600
    assert SECRET not in (tmp_path / DATABASE_NOTE).read_text()


@pytest.mark.parametrize(
    "same",
    [
        "postgresql://builderd:new@db.example:5432/builderd",
        "postgres://builderd@db.example/builderd?application_name=shell",
    ],
)
def test_equivalent_database_urls_are_equal(tmp_path: Path, same: str) -> None:
    note_database(settings_of(tmp_path, ELSEWHERE))
    note = (tmp_path / DATABASE_NOTE).read_text()
    note_database(settings_of(tmp_path, same))
    assert (tmp_path / DATABASE_NOTE).read_text() == note


def test_a_data_directory_that_was_moved_keeps_its_database(tmp_path: Path) -> None:
    before = settings_of(tmp_path / "before")
    asyncio.run(make_token(before, print, *WANTED))
    note_database(before)
    moved = settings_of(before.data_dir.rename(tmp_path / "after"))
    assert len(asyncio.run(list_tokens(moved, "acme"))) == 1


def test_the_machine_id_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "machine-id").write_text("e08d2021fbdd6f894fde550c98aff54d\n")
    made = host_id(tmp_path / "machine-id", tmp_path / "host")
    assert made == host_id(tmp_path / "machine-id", tmp_path / "host")
    assert "e08d2021" not in made
    assert not (tmp_path / "host").exists()


@pytest.mark.parametrize("content", [None, "", "uninitialized\n"])
def test_a_host_without_a_machine_id_gets_one_that_stays(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "machine-id"
    if content is not None:
        file.write_text(content)
    first = host_id(file, tmp_path / "host")
    assert first == host_id(file, tmp_path / "host")
    assert first != host_id(file, tmp_path / "another")


def test_copied_data_directory_differs_from_a_moved_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    owner = this_instance(Settings(data_dir=one))
    shutil.copytree(one, two)
    copied = this_instance(Settings(data_dir=two))
    assert copied.member == owner.member
    assert is_copy(copied, owner)
    assert not is_copy(owner, owner)
    shutil.rmtree(one)
    assert not is_copy(copied, owner)
    assert not is_copy(replace(copied, host_id="elsewhere"), owner)


YEAR = timedelta(days=365)


async def test_rows_in_the_future_are_named_and_mended(tmp_path: Path) -> None:
    settings, wrong = Settings(data_dir=tmp_path), datetime.now(UTC) + YEAR
    tenant = Tenant(TenantId(new_id()), "acme", wrong)
    async with store(settings) as opened:
        await opened.write(lambda uow: uow.tenants.add(tenant))
    memory = tmp_path / "clock.json"
    SystemClock(memory)
    memory.write_text(json.dumps({**json.loads(memory.read_text()), "latest": int(wrong.timestamp() * 1e9)}))
    said = "\n".join(await describe_clock(settings))
    assert "rows may lie in the future" in said
    assert "1 times lie in the future (tenants.created_at)" in said
    with lock(tmp_path), pytest.raises(EngineUnavailable, match="stop it first"):
        await repair_clock(settings, lambda *_: None)
    assert await repair_clock(settings, lambda *_: None) == {"tenants.created_at": 1}
    assert await describe_clock(settings) == []


@pytest.mark.parametrize("name", ["lost+found", "builderd.toml", LOCK_FILE])
def test_empty_or_own_directory_is_used_and_closed_to_others(tmp_path: Path, name: str) -> None:
    """A directory has no database with PostgreSQL, and before the first start perhaps nothing but settings."""
    tmp_path.chmod(0o755)
    make(tmp_path)
    (tmp_path / name).touch()
    make(tmp_path)
    (tmp_path / "logs").mkdir()
    if name != "lost+found":
        make(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_empty_key_file_is_generated_again(tmp_path: Path) -> None:
    (tmp_path / IDENTITY_FILE).touch()
    first = identity(tmp_path)
    assert first
    assert identity(tmp_path) == first
