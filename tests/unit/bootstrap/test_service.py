"""Taking everything down needs next to nothing: it is for when other things are broken."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pydantic import SecretStr

from builderd.bootstrap.service import take_down
from builderd.settings import BackupSettings, ReviewSettings, Settings, VaultSettings


def test_missing_data_directory_is_reported(tmp_path: Path) -> None:
    said: list[str] = []
    asyncio.run(take_down(Settings(data_dir=tmp_path / "none"), said.append))
    assert said == [f"There is no builderd in {tmp_path / 'none'}: nothing to stop."]
    assert list(tmp_path.iterdir()) == []


def test_neither_database_nor_keys_nor_files_of_the_operator_are_needed(tmp_path: Path) -> None:
    (tmp_path / "service.lock").touch()
    broken = Settings(
        data_dir=tmp_path,
        database_url="postgresql://builderd@127.0.0.1:1/builderd",
        review=ReviewSettings(policy=tmp_path / "none.yaml"),
        backup=BackupSettings(ssh_key=tmp_path / "none"),
        vault=VaultSettings(key=SecretStr("no key")),
    )
    said: list[str] = []
    asyncio.run(take_down(broken, said.append))
    assert said[-1].startswith("Everything is stopped.")
