"""The vault's keys are rotated only by who has those that the service has."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import SecretStr
from tests.contract.store.samples import NOW, TENANT

from builderd.adapters.vaults.sodium import Key, KeyFile
from builderd.bootstrap import keys
from builderd.bootstrap.database import store
from builderd.bootstrap.keys import make_vault, rotate_vault
from builderd.domain.errors import InvalidState
from builderd.services import credentials
from builderd.settings import Settings, VaultSettings
from builderd.store import UnitOfWork


@pytest.fixture(autouse=True)
def _without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "SEAL_PAUSE", 0)


async def _seal(settings: Settings) -> None:
    safe = make_vault(settings)

    def put(uow: UnitOfWork) -> None:
        uow.tenants.add(TENANT)
        credentials.put(uow, safe, TENANT.id, "zoho", {"API_KEY": "secret"}, NOW)

    async with store(settings) as opened:
        await opened.write(put)


async def _opened(settings: Settings) -> dict[str, str]:
    safe = make_vault(settings)
    async with store(settings) as opened:
        found = await opened.read(lambda uow: credentials.open_all(uow, safe, TENANT.id, ["zoho"]))
    return dict(credentials.as_env(found))


def test_a_rotation_seals_with_a_new_key_and_drops_the_one_before(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    asyncio.run(_seal(settings))
    (before,) = KeyFile(settings.vault_key_file).load()
    assert asyncio.run(rotate_vault(settings, print)) == 1
    (after,) = KeyFile(settings.vault_key_file).load()
    assert after != before
    assert asyncio.run(_opened(settings)) == {"API_KEY": "secret"}


@pytest.mark.parametrize("there", ["no key", "another key"])
def test_key_rotation_without_the_present_key_is_refused(tmp_path: Path, there: str) -> None:
    given = Settings(data_dir=tmp_path, vault=VaultSettings(key=SecretStr(Key.new().text)))
    asyncio.run(_seal(given))
    file = KeyFile(tmp_path / "vault.key")
    if there == "another key":
        file.load()
    before = file.existing()
    with pytest.raises(InvalidState, match="BUILDERD_VAULT__KEY"):
        asyncio.run(rotate_vault(Settings(data_dir=tmp_path), print))
    assert file.existing() == before
    assert asyncio.run(_opened(given)) == {"API_KEY": "secret"}


def test_key_rotation_without_a_key_is_refused(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)

    async def make_database() -> None:
        async with store(settings):
            pass

    asyncio.run(make_database())
    with pytest.raises(InvalidState, match="no key yet"):
        asyncio.run(rotate_vault(settings, print))
    assert not settings.vault_key_file.exists()
