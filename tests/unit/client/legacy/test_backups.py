"""Backups from a program: taken, listed, restored in place and as a new builder, removed."""

from __future__ import annotations

import pytest
from tests.threaded_service import Running
from tests.unit.client.legacy.test_client import new

from builderd.adapters.fakes.backup_repository import FakeBackupRepository
from builderd.client.legacy import ApiError, Client
from builderd.domain.errors import BackupFailed


def test_one_is_taken_and_comes_back_in_place_and_beside(client: Client) -> None:
    uuid = client.create(new()).uuid
    backup = client.backups.take(uuid)
    assert (backup.status, backup.kind, backup.builder) == ("done", "requested", uuid)
    assert client.backups.restore(uuid, backup.id).version == 2
    assert [one.kind for one in client.backups.list(uuid)] == ["before_restore", "requested"]
    second = client.backups.restore_as(backup.id, "second")
    assert (second.name, second.status) == ("second", "running")
    client.delete(uuid)
    assert client.backups.restore_as(backup.id, "third").name == "third"


def test_all_are_listed_whatever_their_number_until_they_are_removed(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builderd.client.legacy.pages.MAX_PER_PAGE", 1)
    uuids = [client.create(new(name=name)).uuid for name in ("one", "two")]
    taken = {client.backups.take(uuid).id for uuid in uuids}
    assert {one.id for one in client.backups.list()} == taken
    for backup in taken:
        assert client.backups.remove(backup).id == backup
    assert client.backups.list() == []


def test_a_failed_one_is_an_error_and_is_listed(client: Client, running: Running) -> None:
    archive = running.service.application.backup_repository
    assert isinstance(archive, FakeBackupRepository)
    uuid = client.create(new()).uuid
    archive.fail_next("save", BackupFailed("The repository is locked."))
    with pytest.raises(ApiError, match="locked") as failed:
        client.backups.take(uuid)
    assert failed.value.code == "backup_failed"
    assert [one.error for one in client.backups.list(uuid)] == ["The repository is locked."]
