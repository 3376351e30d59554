"""A command works on the database of the service, or not at all."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from builderd.bootstrap import machine, state
from builderd.bootstrap.data_directory import DATABASE_NOTE, RESTORING
from builderd.bootstrap.database import existing_store, note_database, store
from builderd.bootstrap.tokens import TokenRequest, list_tokens, make_token
from builderd.domain.database_lease import Instance
from builderd.domain.errors import EngineUnavailable, InvalidState
from builderd.domain.tokens import Scope
from builderd.settings import Settings
from builderd.store import migrations

SECRET = "hunter2"
ELSEWHERE = f"postgresql://builderd:{SECRET}@db.example/builderd?sslpassword={SECRET}"
WANTED = TokenRequest("acme", "cli", frozenset({Scope.READ}), None)


def settings_of(folder: Path, database_url: str | None = None) -> Settings:
    return Settings(data_dir=folder, database_url=database_url)


async def _open(settings: Settings) -> None:
    async with store(settings):
        pass


def test_a_token_for_another_database_than_the_services_is_refused_and_no_database_is_made(tmp_path: Path) -> None:
    note_database(settings_of(tmp_path, ELSEWHERE))
    with pytest.raises(InvalidState, match=r"db\.example:5432/builderd.*BUILDERD_DATABASE_URL"):
        asyncio.run(make_token(settings_of(tmp_path), WANTED, print))
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


def test_interrupted_restore_is_reported(tmp_path: Path) -> None:
    (tmp_path / RESTORING).mkdir()
    with pytest.raises(EngineUnavailable, match="interrupted"):
        asyncio.run(list_tokens(settings_of(tmp_path), "acme"))


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
    asyncio.run(make_token(before, WANTED, print))
    note_database(before)
    moved = settings_of(before.data_dir.rename(tmp_path / "after"))
    assert len(asyncio.run(list_tokens(moved, "acme"))) == 1
