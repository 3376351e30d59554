"""Taking everything down needs next to nothing: it is for when other things are broken."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import SecretStr
from tests.unit.bootstrap.fake_cluster import FakeCluster

from builderd.adapters.previews.haproxy import process
from builderd.bootstrap import service
from builderd.bootstrap.service import take_down
from builderd.domain.errors import EngineUnavailable
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


def test_proxy_of_a_standby_ends_although_that_of_previews_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(files: object) -> None:
        raise EngineUnavailable("it does not end")

    (tmp_path / "service.lock").touch()
    (tmp_path / "standby").mkdir()
    monkeypatch.setattr(process, "end", fail)
    with pytest.raises(EngineUnavailable, match="does not end"):
        asyncio.run(take_down(Settings(data_dir=tmp_path), lambda _: None))
    assert not (tmp_path / "standby").exists()


def test_routes_of_a_standby_that_was_killed_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An app of this member that gets such an address later would not be reached."""
    cluster = FakeCluster()
    (tmp_path / "service.lock").touch()
    monkeypatch.setattr(service, "engine_provider", lambda _: cluster)
    asyncio.run(take_down(Settings(data_dir=tmp_path), lambda _: None))
    assert cluster.hops == [{}]
