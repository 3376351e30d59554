"""Backups through the API."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from tests.fakes.backup_repository import FakeBackupRepository
from tests.service import METRICS_TOKEN, MINIMAL, Service

from builderd.core.errors import BackupFailed

SHOWN = {
    *("id", "builder", "builder_name", "kind", "status", "version", "created_at", "finished_at", "files"),
    *("size_bytes", "added_bytes", "error", "last_verified_at", "fault", "expires_at"),
}


async def _create(client: httpx.AsyncClient, **fields: Any) -> str:
    answer = await client.post("/api/v1/builders", json={**MINIMAL, **fields})
    assert answer.status_code == 201, answer.text
    uuid: str = answer.json()["data"]["uuid"]
    return uuid


async def _take(client: httpx.AsyncClient, uuid: str) -> dict[str, Any]:
    answer = await client.post(f"/api/v1/builders/{uuid}/backups")
    assert answer.status_code == 201, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


async def test_a_backup_is_taken_and_listed(client: httpx.AsyncClient) -> None:
    uuid = await _create(client)
    taken = await _take(client, uuid)
    assert set(taken) == SHOWN
    assert (taken["status"], taken["kind"], taken["version"], taken["builder"]) == ("done", "requested", 1, uuid)
    listed = (await client.get(f"/api/v1/builders/{uuid}/backups")).json()
    assert listed["data"] == [taken]
    assert listed["meta"] == {"page": 1, "per_page": 25, "total": 1}
    assert (await client.get("/api/v1/backups?page=2")).json()["data"] == []
    builder = (await client.get(f"/api/v1/builders/{uuid}")).json()["data"]
    assert (builder["last_backup_at"], builder["last_backup_error"]) == (taken["created_at"], None)


async def test_async_backup_is_answered_at_once(client: httpx.AsyncClient) -> None:
    uuid = await _create(client)
    answer = await client.post(f"/api/v1/builders/{uuid}/backups", headers={"Prefer": "respond-async"})
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (202, "respond-async")


async def test_a_failure_is_answered_and_stays_visible(client: httpx.AsyncClient, service: Service) -> None:
    uuid = await _create(client)
    assert isinstance(service.application.backup_repository, FakeBackupRepository)
    service.application.backup_repository.fail_next("save", BackupFailed("The repository is locked."))
    answer = await client.post(f"/api/v1/builders/{uuid}/backups")
    assert (answer.status_code, answer.json()["code"]) == (503, "backup_failed")
    assert "locked" in answer.json()["message"]
    builder = (await client.get(f"/api/v1/builders/{uuid}")).json()["data"]
    assert builder["last_backup_error"] == "The repository is locked."
    assert builder["last_backup_at"] is None


async def test_a_failure_after_a_good_one_hides_neither(client: httpx.AsyncClient, service: Service) -> None:
    uuid = await _create(client, backup_interval_hours=6)
    good = (await client.post(f"/api/v1/builders/{uuid}/backups")).json()["data"]
    assert isinstance(service.application.backup_repository, FakeBackupRepository)
    service.application.backup_repository.fail_next("save", BackupFailed("The repository is locked."))
    await client.post(f"/api/v1/builders/{uuid}/backups")
    builder = (await client.get(f"/api/v1/builders/{uuid}")).json()["data"]
    assert (builder["last_backup_at"], builder["last_backup_error"]) == (
        good["created_at"],
        "The repository is locked.",
    )
    lines = (await service.client(METRICS_TOKEN).get("/metrics")).text.splitlines()
    assert 'builderd_backups{status="failed"} 1.0' in lines
    assert 'builderd_backups{status="done"} 1.0' in lines
    assert "builderd_backup_failing_builders 1.0" in lines
    await client.post(f"/api/v1/builders/{uuid}/backups")
    lines = (await service.client(METRICS_TOKEN).get("/metrics")).text.splitlines()
    assert "builderd_backup_failing_builders 0.0" in lines


async def test_a_backup_that_lost_data_is_the_last_backups_error(client: httpx.AsyncClient, service: Service) -> None:
    uuid = await _create(client)
    taken = (await client.post(f"/api/v1/builders/{uuid}/backups")).json()["data"]
    repository = service.application.backup_repository
    assert isinstance(repository, FakeBackupRepository)
    for kept in repository.repositories.values():
        for snapshot in kept.snapshots:
            repository.damage(snapshot)
    answer = await client.post(f"/api/v1/builders/{uuid}/backups/{taken['id']}/restore", json={"as": "lost"})
    assert (answer.status_code, answer.json()["code"]) == (503, "backup_failed")
    while "check" not in repository.calls:
        await asyncio.sleep(0.01)
    (shown,) = (await client.get(f"/api/v1/builders/{uuid}/backups")).json()["data"]
    (listed,) = (await client.get("/api/v1/builders")).json()["data"]
    builder = (await client.get(f"/api/v1/builders/{uuid}")).json()["data"]
    assert "is lost" in shown["fault"]
    assert builder["last_backup_error"] == listed["last_backup_error"] == shown["fault"]
    lines = (await service.client(METRICS_TOKEN).get("/metrics")).text.splitlines()
    assert "builderd_backup_unproven 1.0" in lines


async def test_a_backup_comes_back_in_place(client: httpx.AsyncClient, service: Service) -> None:
    uuid = await _create(client)
    taken = await _take(client, uuid)
    answer = await client.post(f"/api/v1/builders/{uuid}/backups/{taken['id']}/restore")
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert (data["uuid"], data["status"], data["version"]) == (uuid, "running", 2)
    kinds = [one["kind"] for one in (await client.get(f"/api/v1/builders/{uuid}/backups")).json()["data"]]
    assert kinds == ["before_restore", "requested"]


async def test_backup_without_a_disk_is_refused(client: httpx.AsyncClient, service: Service) -> None:
    service.installer.refusal = "no such package"
    files = {"main.py": "", "requirements.txt": "nowhere"}
    failed = await client.post("/api/v1/builders", json={**MINIMAL, "files": files})
    assert failed.status_code == 422, failed.text
    uuid = failed.json()["data"]["uuid"]
    answers = [
        await client.post(f"/api/v1/builders/{uuid}/backups"),
        await client.get(f"/api/v1/builders/{uuid}/files"),
    ]
    assert [(one.status_code, one.json()["code"]) for one in answers] == [(409, "invalid_state")] * 2


async def test_cancelled_restore_is_reported_to_its_waiter(
    client: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, restore = asyncio.Semaphore(0), asyncio.Semaphore(0), service.application.backup_repository.restore

    async def held(*args: Any) -> None:
        begun.release()
        await go_on.acquire()
        await restore(*args)

    monkeypatch.setattr(service.application.backup_repository, "restore", held)
    for name, method, call, status, code in (
        ("a", "POST", "/stop", 409, "invalid_state"),
        ("b", "DELETE", "?purge=true", 404, "not_found"),
    ):
        uuid = await _create(client, name=name)
        taken = await _take(client, uuid)
        waiting = asyncio.create_task(client.post(f"/api/v1/builders/{uuid}/backups/{taken['id']}/restore"))
        await begun.acquire()
        assert (await client.request(method, f"/api/v1/builders/{uuid}{call}")).status_code == 200
        go_on.release()
        answer = await waiting
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.json()["data"] == {"uuid": uuid}


async def test_a_backup_becomes_a_builder(client: httpx.AsyncClient) -> None:
    uuid = await _create(client)
    taken = await _take(client, uuid)
    answer = await client.post(f"/api/v1/builders/{uuid}/backups/{taken['id']}/restore", json={"as": "second"})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["data"]["name"], answer.json()["data"]["status"]) == ("second", "running")
    assert answer.json()["data"]["uuid"] != uuid
    again = await client.post(f"/api/v1/builders/{uuid}/backups/{taken['id']}/restore", json={"as": "second"})
    assert (again.status_code, again.json()["code"]) == (409, "name_taken")


async def test_a_deleted_builder_is_brought_back_from_the_list_of_all(client: httpx.AsyncClient) -> None:
    uuid = await _create(client, backup_interval_hours=1)
    await client.delete(f"/api/v1/builders/{uuid}")
    while not (found := (await client.get("/api/v1/backups")).json()["data"]) or found[0]["status"] != "done":
        pass
    assert (found[0]["kind"], found[0]["builder_name"]) == ("deleted", "my-api")
    assert found[0]["expires_at"]
    missing = await client.post(f"/api/v1/backups/{found[0]['id']}/restore", json={})
    assert missing.status_code == 422
    answer = await client.post(f"/api/v1/backups/{found[0]['id']}/restore", json={"as": "my-api"})
    assert (answer.status_code, answer.json()["data"]["status"]) == (200, "running")


async def test_purging_and_removing_leave_nothing_in_the_lists(client: httpx.AsyncClient) -> None:
    uuid = await _create(client, backup_interval_hours=1)
    first, second = await _take(client, uuid), await _take(client, uuid)
    for path in (f"/builders/{uuid}/backups/{first['id']}", f"/backups/{second['id']}"):
        assert (await client.delete(f"/api/v1{path}")).status_code == 200
        assert (await client.delete(f"/api/v1{path}")).status_code == 404
    await _take(client, uuid)
    assert (await client.delete(f"/api/v1/builders/{uuid}?purge=true")).status_code == 200
    assert (await client.get("/api/v1/backups")).json()["data"] == []


async def test_a_backup_of_another_tenant_is_not_restored_into_ones_own_builder(
    client: httpx.AsyncClient, service: Service
) -> None:
    uuid = await _create(client)
    taken = await _take(client, uuid)
    other = service.client(service.other)
    mine = await other.post("/api/v1/builders", json=MINIMAL)
    path = f"/api/v1/builders/{mine.json()['data']['uuid']}/backups/{taken['id']}/restore"
    assert (await other.post(path)).status_code == 404
