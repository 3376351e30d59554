"""The service's own state comes back whole or not at all; its secrets are sealed, and its keys rotated."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nacl.pwhash import argon2id
from pydantic import SecretStr
from tests.contract.store.samples import NOW, TENANT, make_builder, make_event, make_token, make_version
from tests.stores import open_store, write_database

from builderd.bootstrap import keys, state
from builderd.bootstrap.configuration import load
from builderd.bootstrap.data_directory import RESTORING, lock
from builderd.bootstrap.database import store
from builderd.bootstrap.keys import make_vault, rotate_vault
from builderd.builders.model import Builder
from builderd.core.errors import EngineUnavailable, InvalidState, ValidationFailed
from builderd.credentials import service as credentials
from builderd.credentials import vault as sodium
from builderd.credentials.vault import Key, KeyFile
from builderd.database.unit_of_work import UnitOfWork
from builderd.settings import Settings, VaultSettings
from builderd.tokens.tenants import IdempotencyRecord

CANARY = "canary-5b1e88d0"
PASSPHRASE = "correct horse battery"
BUNDLE = "a" * 64
BUILDER = make_builder()
ANSWERED = IdempotencyRecord(
    tenant_id=TENANT.id,
    key="retry",
    body_hash="b" * 64,
    owner="me",
    created_at=NOW,
    builder_id=BUILDER.id,
    version=1,
    status=201,
    headers={"Location": CANARY},
    body={"data": {"service_token": CANARY, "long": [CANARY] * 1000}},
)


def settings_of(folder: Path, **given: Any) -> Settings:
    return Settings(data_dir=folder, **given)


async def _fill(settings: Settings) -> None:
    """Write all that a service keeps: rows, a sealed credential, a bundle, keys, and settings with a secret in them."""
    safe = make_vault(settings)

    def rows(uow: UnitOfWork) -> None:
        uow.tenants.add(TENANT)
        uow.tokens.add(make_token())
        uow.builders.add(BUILDER)
        uow.versions.add(make_version(BUILDER.id, bundle_hash=BUNDLE))
        uow.events.add(make_event(BUILDER.id))
        credentials.put(uow, safe, TENANT.id, "zoho", {"API_KEY": CANARY}, NOW)
        uow.idempotency.add(ANSWERED)

    async with store(settings) as opened:
        await opened.write(rows)
    (settings.data_dir / "bundles").mkdir()
    (settings.data_dir / f"bundles/{BUNDLE}.tar").write_bytes(b"the files of a version")
    (settings.data_dir / "ssh_host_key").write_text(f"private {CANARY}")
    (settings.data_dir / "builderd.toml").write_text(f'metrics_token = "{CANARY}"\n')
    (settings.data_dir / "identity").write_text("me")


async def _read(settings: Settings) -> tuple[Builder | None, dict[str, str], int]:
    """A builder, a credential opened, and the number of events."""
    safe = make_vault(settings)

    def look(uow: UnitOfWork) -> tuple[Builder | None, dict[str, str], int]:
        opened = credentials.open_all(uow, safe, TENANT.id, ["zoho"])
        found = uow.events.of_builder(BUILDER.id)
        return uow.builders.get(BUILDER.id), dict(credentials.as_env(opened)), len(found)

    async with store(settings) as opened:
        return await opened.read(look)


@pytest.fixture(autouse=True)
def cheap_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seal at the least cost: the real one is 0.7 s of CPU and 256 MiB each time."""
    monkeypatch.setattr(sodium, "_OPERATIONS", argon2id.OPSLIMIT_MIN)
    monkeypatch.setattr(sodium, "_MEMORY", argon2id.MEMLIMIT_MIN)


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    settings = settings_of(tmp_path / "data")
    settings.data_dir.mkdir()

    async def fill() -> None:
        await write_database(settings.data_dir / "builderd.db")
        await _fill(settings)

    asyncio.run(fill())
    return settings


@pytest.fixture
def kept(home: Settings, tmp_path: Path) -> Path:
    """A backup of it; then everything is deleted."""
    state.back_up(home, tmp_path / "kept", PASSPHRASE, print)
    shutil.rmtree(home.data_dir)
    return tmp_path / "kept"


def test_everything_is_deleted_and_comes_back(home: Settings, kept: Path) -> None:
    state.restore(home, kept, PASSPHRASE, print)
    assert asyncio.run(_read(home)) == (BUILDER, {"API_KEY": CANARY}, 1)
    data = home.data_dir
    assert (data / f"bundles/{BUNDLE}.tar").read_bytes() == b"the files of a version"
    assert (data / "ssh_host_key").read_text() == f"private {CANARY}"
    assert CANARY in (data / "builderd.toml").read_text()
    assert (data / "identity").read_text() == "me"
    assert not (data / RESTORING).exists()
    for path in ("vault.key", "ssh_host_key", "builderd.toml", "builderd.db"):
        assert (data / path).stat().st_mode & 0o777 == 0o600, path


def test_a_retry_key_comes_back_without_its_answer(home: Settings, kept: Path) -> None:
    state.restore(home, kept, PASSPHRASE, print)

    async def read() -> IdempotencyRecord | None:
        async with store(home) as opened:
            return await opened.read(lambda uow: uow.idempotency.get(TENANT.id, ANSWERED.key))

    assert asyncio.run(read()) == replace(ANSWERED, status=None, headers=None, body=None)


def test_no_secret_is_in_it_in_clear_text(home: Settings, tmp_path: Path) -> None:
    state.back_up(home, tmp_path / "kept", PASSPHRASE, print)
    (key,) = KeyFile(home.vault_key_file).load()
    secrets = (CANARY.encode(), key.text.encode(), key.material, PASSPHRASE.encode())
    files = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"manifest.json", "database.sqlite", "keys.sealed", f"{BUNDLE}.tar"}
    for path in files:
        assert [one for one in secrets if one in path.read_bytes()] == [], path
        assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700


def test_without_a_passphrase_the_keys_are_left_out_and_the_ones_put_back_by_hand_open_it(
    home: Settings, tmp_path: Path
) -> None:
    key = home.vault_key_file.read_bytes()
    state.back_up(home, tmp_path / "kept", None, print)
    assert not (tmp_path / "kept/keys.sealed").exists()
    shutil.rmtree(home.data_dir)
    with pytest.raises(ValidationFailed, match="without keys"):
        state.restore(home, tmp_path / "kept", PASSPHRASE, print)
    state.restore(home, tmp_path / "kept", None, print)
    with pytest.raises(EngineUnavailable, match="this service lacks"):
        asyncio.run(_read(home))
    home.vault_key_file.write_bytes(key)
    home.vault_key_file.chmod(0o600)
    assert asyncio.run(_read(home))[1] == {"API_KEY": CANARY}


# What is refused leaves nothing


def _break(kept: Path, what: str) -> None:
    match what:
        case "a byte of a bundle":
            (kept / f"bundles/{BUNDLE}.tar").write_bytes(b"the files of a Version")
        case "a byte of the database":
            with (kept / "database.sqlite").open("r+b") as file:
                file.seek(5000)
                file.write(b"damage")
        case "a missing file":
            (kept / f"bundles/{BUNDLE}.tar").unlink()
        case "a link out of it":
            (kept / f"bundles/{BUNDLE}.tar").unlink()
            (kept / f"bundles/{BUNDLE}.tar").symlink_to("/etc/passwd")
        case "a path out of it":
            manifest = json.loads((kept / "manifest.json").read_text())
            manifest["files"]["../../etc/passwd"] = manifest["files"].pop("database.sqlite")
            (kept / "manifest.json").write_text(json.dumps(manifest))
        case "no manifest":
            (kept / "manifest.json").unlink()
        case "a newer format":
            manifest = json.loads((kept / "manifest.json").read_text())
            (kept / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))


@pytest.mark.parametrize(
    "what",
    [
        *("a byte of a bundle", "a byte of the database", "a missing file", "a link out of it", "a path out of it"),
        *("no manifest", "a newer format"),
    ],
)
def test_a_damaged_backup_is_refused_and_leaves_nothing(home: Settings, kept: Path, what: str) -> None:
    _break(kept, what)
    with pytest.raises(InvalidState):
        state.restore(home, kept, PASSPHRASE, print)
    assert [path.name for path in home.data_dir.iterdir()] == ["service.lock"]


def test_a_schema_of_a_newer_program_is_refused(home: Settings, tmp_path: Path) -> None:
    with closing(sqlite3.connect(home.data_dir / "builderd.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(InvalidState, match="newer builderd"):
        state.back_up(home, tmp_path / "kept", PASSPHRASE, print)
    assert list(tmp_path.iterdir()) == [home.data_dir]


@pytest.mark.parametrize("passphrase", ["wrong horse battery", "short"])
def test_another_passphrase_opens_nothing_and_leaves_nothing(home: Settings, kept: Path, passphrase: str) -> None:
    with pytest.raises(ValidationFailed, match="passphrase"):
        state.restore(home, kept, passphrase, print)
    assert [path.name for path in home.data_dir.iterdir()] == ["service.lock"]


def test_a_short_passphrase_seals_nothing(home: Settings, tmp_path: Path) -> None:
    with pytest.raises(ValidationFailed, match="at least 12"):
        state.back_up(home, tmp_path / "kept", "short", print)
    assert not (tmp_path / "kept").exists()


def test_a_database_that_is_there_is_never_replaced(home: Settings, tmp_path: Path) -> None:
    state.back_up(home, tmp_path / "kept", PASSPHRASE, print)
    before = (home.data_dir / "builderd.db").read_bytes()
    with pytest.raises(InvalidState, match="database already"):
        state.restore(home, tmp_path / "kept", PASSPHRASE, print)
    assert (home.data_dir / "builderd.db").read_bytes() == before


def test_a_directory_that_a_service_holds_is_left_alone(home: Settings, kept: Path) -> None:
    home.data_dir.mkdir()
    with lock(home.data_dir), pytest.raises(EngineUnavailable, match="already running"):
        state.restore(home, kept, PASSPHRASE, print)


def test_a_folder_that_has_done_is_not_written_to(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/mine").write_text("mine")
    with pytest.raises(InvalidState, match="not empty"):
        state.back_up(home, tmp_path / "kept", PASSPHRASE, print)


def test_a_bundle_that_the_database_refers_to_must_be_there(home: Settings, tmp_path: Path) -> None:
    (home.data_dir / f"bundles/{BUNDLE}.tar").unlink()
    with pytest.raises(InvalidState, match=BUNDLE):
        state.back_up(home, tmp_path / "kept", PASSPHRASE, print)
    assert not (tmp_path / "kept").exists()


# Keys


def test_existing_files_stay_and_keys_are_added(home: Settings, kept: Path) -> None:
    """Only the database was lost, or another key was made meanwhile."""
    home.data_dir.mkdir()
    (other,) = KeyFile(home.vault_key_file).load()
    (home.data_dir / "builderd.toml").write_text("# mine\n")
    (home.data_dir / "builderd.db-wal").write_bytes(b"of the database that is gone")
    state.restore(home, kept, PASSPHRASE, print)
    assert len(KeyFile(home.vault_key_file).load()) == 2
    assert KeyFile(home.vault_key_file).load()[1] == other
    assert (home.data_dir / "builderd.toml").read_text() == "# mine\n"
    assert asyncio.run(_read(home)) == (BUILDER, {"API_KEY": CANARY}, 1)


def test_a_key_that_the_settings_give_must_be_the_one_of_the_backup(home: Settings, kept: Path, tmp_path: Path) -> None:
    (wrong,) = KeyFile(tmp_path / "other.key").load()
    given = settings_of(home.data_dir, vault=VaultSettings(key=SecretStr(wrong.text)))
    with pytest.raises(ValidationFailed, match=r"vault\.key"):
        state.restore(given, kept, PASSPHRASE, print)


@pytest.mark.parametrize("there", ["no key", "another key"])
def test_a_backup_with_other_keys_than_the_secrets_are_sealed_with_is_refused_and_makes_none(
    tmp_path: Path, there: str
) -> None:
    """A shell that does not see the unit's environment would seal a key that opens nothing."""
    given = settings_of(tmp_path / "data", vault=VaultSettings(key=SecretStr(Key.new().text)))
    given.data_dir.mkdir()
    asyncio.run(_fill(given))
    if there == "another key":
        KeyFile(given.data_dir / "vault.key").load()
    before = sorted(given.data_dir.iterdir())
    with pytest.raises(InvalidState, match="BUILDERD_VAULT__KEY"):
        state.back_up(settings_of(given.data_dir), tmp_path / "kept", PASSPHRASE, print)
    assert sorted(given.data_dir.iterdir()) == before
    assert not (tmp_path / "kept").exists()
    state.back_up(given, tmp_path / "kept", PASSPHRASE, print)


def test_a_backup_from_before_the_first_secret_makes_no_key(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "data")

    async def open_once() -> None:
        async with store(settings):
            pass

    asyncio.run(open_once())
    state.back_up(settings, tmp_path / "kept", PASSPHRASE, print)
    assert not settings.vault_key_file.exists()


def test_a_rotation_that_ends_while_the_database_is_copied_leaves_no_secret_without_its_key(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = state._copy

    def and_rotate(settings: Settings, target: Path) -> str:
        revision = copy(settings, target)
        KeyFile(settings.vault_key_file).save([Key.new()])
        return revision

    monkeypatch.setattr(state, "_copy", and_rotate)
    state.back_up(home, tmp_path / "kept", PASSPHRASE, print)
    shutil.rmtree(home.data_dir)
    state.restore(home, tmp_path / "kept", PASSPHRASE, print)
    assert asyncio.run(_read(home))[1] == {"API_KEY": CANARY}


def test_a_database_elsewhere_that_the_settings_of_the_backup_name_must_be_given(
    home: Settings, tmp_path: Path
) -> None:
    (home.data_dir / "builderd.toml").write_text('database_url = "postgresql://db/builderd"\n')
    state.back_up(home, tmp_path / "kept", PASSPHRASE, print)
    shutil.rmtree(home.data_dir)
    with pytest.raises(ValidationFailed, match="BUILDERD_DATABASE_URL"):
        state.restore(home, tmp_path / "kept", PASSPHRASE, print)


def test_a_file_of_keys_that_the_settings_of_the_backup_name_must_be_given_and_gets_them(
    home: Settings, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "etc/vault.key"
    elsewhere.parent.mkdir()
    home.vault_key_file.rename(elsewhere)
    (home.data_dir / "builderd.toml").write_text(f'[vault]\nkey_file = "{elsewhere}"\n')
    state.back_up(load(data_dir=home.data_dir), tmp_path / "kept", PASSPHRASE, print)
    shutil.rmtree(home.data_dir)
    elsewhere.unlink()
    with pytest.raises(ValidationFailed, match="BUILDERD_VAULT__KEY_FILE"):
        state.restore(home, tmp_path / "kept", PASSPHRASE, print)
    given = settings_of(home.data_dir, vault=VaultSettings(key_file=elsewhere))
    state.restore(given, tmp_path / "kept", PASSPHRASE, print)
    assert asyncio.run(_read(load(data_dir=home.data_dir)))[1] == {"API_KEY": CANARY}


# Killed

KILLED_RESTORE = """
import os, signal, sys
from pathlib import Path
from builderd.linux import atomic_files
from builderd.bootstrap import state
from builderd.engine import states as folder
from builderd.database import copies
from builderd.credentials import vault as sodium
from builderd.settings import Settings

sodium._OPERATIONS, sodium._MEMORY = {costs}
data, kept, passphrase, where = sys.argv[1:]
def killed(*_): os.kill(os.getpid(), signal.SIGKILL)
def after(module, name):
    found = getattr(module, name)
    def run(*args):
        found(*args)
        killed()
    setattr(module, name, run)
module, name, moment = where.split()
module = {"folder": folder, "atomic_files": atomic_files, "copies": copies, "state": state}[module]
after(module, name) if moment == "after" else setattr(module, name, killed)
state.restore(Settings(data_dir=Path(data)), Path(kept), passphrase, print)
"""
KILLS = [
    *("folder copy_to before", "atomic_files copy after", "folder copy_to after", "state _restore_keys after"),
    *("state _restore_bundles after", "copies restore_copy before", "copies restore_copy after"),
]


def _killed(script: str, *words: str) -> None:
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


#: Each starts a process: of a kill before the database comes back, and after it, one in every run.
OFTEN = ("state _restore_keys after", "copies restore_copy after")


@pytest.mark.parametrize(
    "where", [pytest.param(where, marks=[] if where in OFTEN else [pytest.mark.slow]) for where in KILLS]
)
def test_a_restore_that_is_killed_leaves_no_half_of_it_and_can_be_run_again(
    home: Settings, kept: Path, where: str
) -> None:
    script = KILLED_RESTORE.replace("{costs}", str((sodium._OPERATIONS, sodium._MEMORY)))
    _killed(script, str(home.data_dir), str(kept), PASSPHRASE, where)
    if where != "folder copy_to before":
        assert (home.data_dir / "builderd.db").exists() == (where == "copies restore_copy after")
        with pytest.raises(EngineUnavailable, match="interrupted"):
            asyncio.run(_read(home))
    state.restore(home, kept, PASSPHRASE, print)
    assert asyncio.run(_read(home)) == (BUILDER, {"API_KEY": CANARY}, 1)
    assert not (home.data_dir / RESTORING).exists()


KILLED_BACKUP = """
import os, signal, sys
from pathlib import Path
from builderd.bootstrap import state
from builderd.engine import states as folder
from builderd.settings import Settings
folder.write_manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
state.back_up(Settings(data_dir=Path(sys.argv[1])), Path(sys.argv[2]), None, print)
"""


def test_a_backup_that_is_killed_has_no_name_and_the_next_one_takes_its_place(home: Settings, tmp_path: Path) -> None:
    _killed(KILLED_BACKUP, str(home.data_dir), str(tmp_path / "kept"))
    assert not (tmp_path / "kept").exists()
    state.back_up(home, tmp_path / "kept", PASSPHRASE, print)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "kept"}


# While the service runs


@contextmanager
def _writing(settings: Settings) -> Iterator[None]:
    """Builders with their version and bundle, as many as a slow disk can take in the copy beside them."""
    over = threading.Event()

    async def write() -> None:
        async with store(settings) as opened:
            while not over.is_set():
                builder = make_builder()
                bundle = builder.id.replace("-", "") * 2
                (settings.data_dir / f"bundles/{bundle}.tar").write_bytes(b"x")
                await opened.write(lambda uow, one=builder: uow.builders.add(one))  # type: ignore[misc]
                version = make_version(builder.id, bundle_hash=bundle)
                await opened.write(lambda uow, one=version: uow.versions.add(one))  # type: ignore[misc]
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(write()))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_backup_is_consistent_while_the_service_writes(home: Settings, tmp_path: Path) -> None:
    with _writing(home):
        for number in range(5):
            kept = tmp_path / f"kept-{number}"
            state.back_up(home, kept, None, print)
            held = {path.stem for path in (kept / "bundles").iterdir()}
            with closing(sqlite3.connect(kept / "database.sqlite")) as copy:
                assert copy.execute("PRAGMA foreign_key_check").fetchall() == []
                bundles = {one for (one,) in copy.execute("SELECT bundle_hash FROM versions")}
            assert bundles <= held
    assert len(held) > 1


# PostgreSQL


@pytest.mark.postgres
async def test_postgresql_goes_into_the_same_file_and_comes_back_to_either_kind(
    postgres_url: str, postgres_server: Any, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path / "data", database_url=postgres_url)
    settings.data_dir.mkdir()
    await _fill(settings)
    before = await _read(settings)
    await asyncio.to_thread(state.back_up, settings, tmp_path / "kept", PASSPHRASE, print)
    with pytest.raises(InvalidState, match="database already"):
        await asyncio.to_thread(state.restore, settings, tmp_path / "kept", PASSPHRASE, print)
    with postgres_server.database() as other:
        elsewhere = settings_of(tmp_path / "elsewhere", database_url=other)
        await asyncio.to_thread(state.restore, elsewhere, tmp_path / "kept", PASSPHRASE, print)
        assert await _read(elsewhere) == before
        async with open_store(other) as opened:
            await opened.write(lambda uow: uow.events.add(make_event(BUILDER.id)))
            assert len(await opened.read(lambda uow: uow.events.of_builder(BUILDER.id))) == 2
    as_file = settings_of(tmp_path / "as-file")
    await asyncio.to_thread(state.restore, as_file, tmp_path / "kept", PASSPHRASE, print)
    assert await _read(as_file) == before


@pytest.fixture(autouse=True)
def _without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "SEAL_PAUSE", 0)


def test_a_rotation_seals_with_a_new_key_and_drops_the_one_before(home: Settings) -> None:
    (before,) = KeyFile(home.vault_key_file).load()
    assert asyncio.run(rotate_vault(home, print)) == 1
    (after,) = KeyFile(home.vault_key_file).load()
    assert after != before
    assert asyncio.run(_read(home))[1] == {"API_KEY": CANARY}


@pytest.mark.parametrize("there", ["no key", "another key"])
def test_key_rotation_without_the_present_key_is_refused(tmp_path: Path, there: str) -> None:
    given = Settings(data_dir=tmp_path, vault=VaultSettings(key=SecretStr(Key.new().text)))
    asyncio.run(_fill(given))
    (tmp_path / "builderd.toml").unlink()
    file = KeyFile(tmp_path / "vault.key")
    if there == "another key":
        file.load()
    before = file.existing()
    with pytest.raises(InvalidState, match="BUILDERD_VAULT__KEY"):
        asyncio.run(rotate_vault(Settings(data_dir=tmp_path), print))
    assert file.existing() == before
    assert asyncio.run(_read(given))[1] == {"API_KEY": CANARY}
