"""Creating a builder: its three ways to be answered, its failures, and retries."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest
from tests.fakes.sandboxes import Behaviour
from tests.service import MINIMAL, Service

from builderd.builders import outcomes
from builderd.core.errors import BuilderdError, StoreUnavailable
from builderd.versions.model import Isolation

BUILDERS = "/api/v1/builders"
#: The keys of the contract, by these very names; a service may say more.
KEYS = {
    *("uuid", "name", "status", "preview_url", "service_token", "entrypoint", "port", "job_type", "env", "resources"),
    *("visibility", "auto_stop_interval", "backup_interval_hours", "isolation", "review_passed", "qa_passed"),
    *("status_reason", "version", "exit_code", "cost", "created_at", "updated_at", "last_active_at"),
}

FULL: dict[str, Any] = {
    "name": "my-api",
    "entrypoint": "python3 main.py",
    "files": {"main.py": "…", "requirements.txt": "flask"},
    "port": 8001,
    "env": {"MY_FLAG": 1},
    "resources": {"cpu": 0.5, "memory": 2, "disk": 5},
    "job_type": "always_on",
    "backup_interval_hours": 24,
    "auto_stop_interval": 30,
    "visibility": "private",
    "credentials": [],
    "isolation": "strong",
    "require_qa": True,
    "install_scripts": True,
}


def sse(text: str) -> list[tuple[str, dict[str, Any]]]:
    """(event, data) of each event."""
    blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in text.split("\n\n") if block]
    return [(block["event"], json.loads(block["data"])) for block in blocks if "event" in block]


def failing_once(function: Callable[..., Any], error: BuilderdError) -> Callable[..., Any]:
    """Return the function, with a first call that raises this."""
    errors = [error]

    def call(*args: Any, **named: Any) -> Any:
        if errors:
            raise errors.pop()
        return function(*args, **named)

    return call


async def test_a_builder_is_answered_when_it_is_up(client: httpx.AsyncClient) -> None:
    response = await client.post(BUILDERS, json=MINIMAL)
    body = response.json()
    assert response.status_code == 201
    assert body["success"] is True
    assert set(body["data"]) >= KEYS
    assert response.headers["location"] == f"{BUILDERS}/{body['data']['uuid']}"
    assert body["data"]["status"] == "running"
    assert body["data"]["preview_url"].startswith("http://my-api-")
    shown = (await client.get(response.headers["location"])).json()["data"]
    assert {**shown, "cost": None} == {**body["data"], "cost": None}, "all but what goes up by the second"


async def test_every_field_is_kept_and_shown(client: httpx.AsyncClient) -> None:
    data = (await client.post(BUILDERS, json=FULL)).json()["data"]
    expected = {key: value for key, value in FULL.items() if key not in ("files", "credentials")}
    assert {key: data[key] for key in expected} == {**expected, "env": {"MY_FLAG": "1"}}
    cost = data["cost"]
    assert (cost["currency"], cost["hourly_rate"]) == ("EUR", 0.2075)
    assert 0 <= cost["cost"] <= cost["runtime_hours"] <= 0.1
    assert (data["review_passed"], data["qa_passed"], data["exit_code"], data["version"]) == (True, True, None, 1)


async def test_the_files_are_what_the_engine_is_given(client: httpx.AsyncClient, service: Service) -> None:
    files = {"a/b.txt": {"content": "aGk=", "encoding": "base64"}}
    await client.post(BUILDERS, json={**MINIMAL, "entrypoint": "serve", "files": files})
    (disk,) = service.engine.known_disks.values()
    assert disk.files == {"a/b.txt": b"hi"}


async def test_isolation_that_the_machine_lacks_is_refused(client: httpx.AsyncClient, service: Service) -> None:
    service.engine.unsupported[Isolation.STRONG] = "runsc is missing: install it"
    before = await service.kept()
    response = await client.post(BUILDERS, json={**MINIMAL, "isolation": "strong"})
    assert response.status_code == 422
    assert response.json()["errors"] == {"isolation": ["runsc is missing: install it"]}
    assert await service.kept() == before


async def test_until_the_engine_is_ready_nothing_is_created(client: httpx.AsyncClient, service: Service) -> None:
    service.engine.ready = False
    before = await service.kept()
    response = await client.post(BUILDERS, json=MINIMAL, headers={"Idempotency-Key": "k"})
    assert (response.status_code, response.json()["code"]) == (503, "engine_unavailable")
    assert int(response.headers["retry-after"]) > 0
    assert await service.kept() == before
    service.engine.ready = True
    assert (await client.post(BUILDERS, json=MINIMAL, headers={"Idempotency-Key": "k"})).status_code == 201


async def test_at_once_is_answered_while_it_is_created(client: httpx.AsyncClient, service: Service) -> None:
    service.engine.behave(MINIMAL["entrypoint"], Behaviour(listens_at=None))
    response = await client.post(BUILDERS, json=MINIMAL, headers={"Prefer": "respond-async"})
    assert response.status_code == 202
    assert response.json()["data"]["status"] == "creating"
    assert response.headers["preference-applied"] == "respond-async"
    assert response.headers["location"] == f"{BUILDERS}/{response.json()['data']['uuid']}"


async def test_the_stages_are_streamed_with_their_seconds(client: httpx.AsyncClient) -> None:
    response = await client.post(
        BUILDERS,
        json={**MINIMAL, "files": {"main.py": "", "requirements.txt": "flask"}},
        headers={"Accept": "text/event-stream"},
    )
    events = sse(response.text)
    assert (response.status_code, response.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    assert [name for name, _ in events] == ["review", "install", "start", "qa", "done"]
    assert all(data["seconds"] >= 0 and data["ok"] for _, data in events[:-1])
    assert set(events[-1][1]) >= KEYS
    assert response.headers["location"] == f"{BUILDERS}/{events[-1][1]['uuid']}"


async def test_a_failed_stage_is_422_and_the_builder_is_kept(client: httpx.AsyncClient, service: Service) -> None:
    service.engine.behave(MINIMAL["entrypoint"], Behaviour(listens_at=None, exits_at=1, exit_code=3))
    response = await client.post(BUILDERS, json=MINIMAL)
    body = response.json()
    assert (response.status_code, body["code"]) == (422, "start_failed")
    assert "exited with code 3" in body["message"]
    kept = (await client.get(f"{BUILDERS}/{body['data']['uuid']}")).json()["data"]
    assert kept["status"] == "failed"
    assert kept["status_reason"] == body["message"]


async def test_a_stream_ends_with_the_failure(client: httpx.AsyncClient, service: Service) -> None:
    service.engine.behave(MINIMAL["entrypoint"], Behaviour(listens_at=None, exits_at=1))
    events = sse((await client.post(BUILDERS, json=MINIMAL, headers={"Accept": "text/event-stream"})).text)
    assert [(name, data.get("ok")) for name, data in events] == [
        ("review", True),
        ("install", True),
        ("start", False),
        ("failed", None),
    ]
    failure = events[-1][1]
    assert (failure["success"], failure["code"]) == (False, "start_failed")
    assert "uuid" in failure["data"]


async def test_a_name_is_taken_once_and_the_other_is_named(client: httpx.AsyncClient, service: Service) -> None:
    first = (await client.post(BUILDERS, json=MINIMAL)).json()["data"]["uuid"]
    before = await service.kept()
    response = await client.post(BUILDERS, json={**MINIMAL, "files": {"other.py": ""}})
    assert (response.status_code, response.json()["code"]) == (409, "name_taken")
    assert response.json()["data"]["uuid"] == first
    assert first in response.json()["message"]
    assert await service.kept() == before
    assert (await service.client(service.other).post(BUILDERS, json=MINIMAL)).status_code == 201


async def test_a_job_is_created_when_it_has_started(client: httpx.AsyncClient, service: Service) -> None:
    service.engine.behave(MINIMAL["entrypoint"], Behaviour(listens_at=None))
    response = await client.post(BUILDERS, json={**MINIMAL, "job_type": "one_time"})
    assert (response.status_code, response.json()["data"]["status"]) == (201, "running")


async def test_a_builder_that_is_deleted_while_it_is_created_is_answered(
    client: httpx.AsyncClient, service: Service
) -> None:
    service.engine.behave(MINIMAL["entrypoint"], Behaviour(listens_at=None))
    creating = asyncio.create_task(client.post(BUILDERS, json=MINIMAL))
    uuid = await _first_uuid(service)
    assert (await service.client(service.write).delete(f"{BUILDERS}/{uuid}")).status_code == 200
    assert ((await creating).status_code, (await creating).json()["code"]) == (404, "not_found")


async def test_disconnect_does_not_cancel_the_creation(client: httpx.AsyncClient, service: Service) -> None:
    service.engine.behave(MINIMAL["entrypoint"], Behaviour(listens_at=20))
    creating = asyncio.create_task(client.post(BUILDERS, json=MINIMAL, headers={"Idempotency-Key": "k"}))
    uuid = await _first_uuid(service)
    creating.cancel()
    await asyncio.gather(creating, return_exceptions=True)
    assert await _settled(service, uuid) == "running"
    again = await _retried(client)
    assert (again.status_code, again.json()["data"]["uuid"]) == (201, uuid)


# Retries


KEY = {"Idempotency-Key": "key-1"}


async def test_a_retry_gets_the_first_answer_again(client: httpx.AsyncClient, service: Service) -> None:
    first = await client.post(BUILDERS, json=MINIMAL, headers=KEY)
    before = await service.kept()
    await client.post(f"{BUILDERS}/{first.json()['data']['uuid']}/stop")
    again = await client.post(BUILDERS, json=MINIMAL, headers=KEY)
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert (await service.kept())["builders"] == before["builders"]


async def test_a_retry_of_a_failure_gets_the_failure_again(client: httpx.AsyncClient, service: Service) -> None:
    service.engine.behave(MINIMAL["entrypoint"], Behaviour(listens_at=None, exits_at=1), Behaviour())
    first = await client.post(BUILDERS, json=MINIMAL, headers=KEY)
    again = await client.post(BUILDERS, json=MINIMAL, headers=KEY)
    assert first.status_code == again.status_code == 422
    assert first.json() == again.json()


async def test_a_retry_of_an_answer_at_once_is_the_same_answer(client: httpx.AsyncClient, service: Service) -> None:
    headers = {**KEY, "Prefer": "respond-async"}
    first = await client.post(BUILDERS, json=MINIMAL, headers=headers)
    await _settled(service, first.json()["data"]["uuid"])
    again = await client.post(BUILDERS, json=MINIMAL, headers=headers)
    assert (again.status_code, again.json()) == (202, first.json())


async def test_a_retry_may_be_streamed(client: httpx.AsyncClient) -> None:
    first = await client.post(BUILDERS, json=MINIMAL, headers=KEY)
    again = await client.post(BUILDERS, json=MINIMAL, headers={**KEY, "Accept": "text/event-stream"})
    assert sse(again.text) == [("done", first.json()["data"])]


async def test_a_key_is_for_one_body(client: httpx.AsyncClient, service: Service) -> None:
    await client.post(BUILDERS, json=MINIMAL, headers=KEY)
    before = await service.kept()
    response = await client.post(BUILDERS, json={**MINIMAL, "name": "other"}, headers=KEY)
    assert (response.status_code, response.json()["code"]) == (409, "conflict")
    assert await service.kept() == before


async def test_keys_of_two_tenants_are_two(client: httpx.AsyncClient, service: Service) -> None:
    first = await client.post(BUILDERS, json=MINIMAL, headers=KEY)
    second = await service.client(service.other).post(BUILDERS, json=MINIMAL, headers=KEY)
    assert second.status_code == 201
    assert first.json()["data"]["uuid"] != second.json()["data"]["uuid"]


async def test_a_key_in_flight_is_a_conflict_however_many_come(client: httpx.AsyncClient, service: Service) -> None:
    service.engine.behave(MINIMAL["entrypoint"], Behaviour(listens_at=10))
    clients = [service.client(service.write) for _ in range(6)]
    calls = [asyncio.create_task(one.post(BUILDERS, json=MINIMAL, headers=KEY)) for one in clients]
    statuses = sorted(response.status_code for response in await asyncio.gather(*calls))
    assert statuses == [201, 409, 409, 409, 409, 409]
    assert (await client.post(BUILDERS, json=MINIMAL, headers=KEY)).status_code == 201
    assert (await service.kept())["builders"] == 1


async def test_a_refused_request_leaves_its_key_free(client: httpx.AsyncClient, service: Service) -> None:
    assert (await client.post(BUILDERS, json={**MINIMAL, "port": 0}, headers=KEY)).status_code == 422
    await client.post(BUILDERS, json=MINIMAL)
    assert (await client.post(BUILDERS, json=MINIMAL, headers=KEY)).status_code == 409
    assert (await service.kept())["idempotency"] == 0
    assert (await client.post(BUILDERS, json={**MINIMAL, "name": "b"}, headers=KEY)).status_code == 201


async def test_a_retry_after_a_restart_waits_for_the_same_builder(client: httpx.AsyncClient, service: Service) -> None:
    service.engine.behave(MINIMAL["entrypoint"], Behaviour(listens_at=30))
    first = asyncio.create_task(client.post(BUILDERS, json=MINIMAL, headers=KEY))
    uuid = await _first_uuid(service)
    # What a new process has of the old one: its rows, and nothing in memory.
    await service.app.state.operations.close()
    assert (await asyncio.gather(first, return_exceptions=True))[0] is not None
    again = await service.client(service.write).post(BUILDERS, json=MINIMAL, headers=KEY)
    assert (again.status_code, again.json()["data"]["uuid"]) == (201, uuid)
    assert (await service.kept())["builders"] == 1
    assert (await client.post(BUILDERS, json=MINIMAL, headers=KEY)).json() == again.json()


async def test_temporary_error_is_not_stored_and_the_retry_waits(
    client: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = StoreUnavailable("The database does not answer now.", retry_after=5)
    monkeypatch.setattr(outcomes, "_get", failing_once(outcomes._get, broken))
    first = await client.post(BUILDERS, json=MINIMAL, headers=KEY)
    assert (first.status_code, first.json()["code"]) == (503, "store_unavailable")
    uuid = await _first_uuid(service)
    second = await client.post(BUILDERS, json=MINIMAL, headers=KEY)
    assert (second.status_code, second.json()["data"]["uuid"]) == (201, uuid)
    assert "idempotency-replayed" not in second.headers
    third = await client.post(BUILDERS, json=MINIMAL, headers=KEY)
    assert (third.json(), third.headers["idempotency-replayed"]) == (second.json(), "true")
    assert (await service.kept())["builders"] == 1


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "ä", "a\tb"])
async def test_a_hostile_key_is_refused(client: httpx.AsyncClient, service: Service, key: str) -> None:
    before = await service.kept()
    response = await client.post(BUILDERS, json=MINIMAL, headers=[(b"Idempotency-Key", key.encode())])
    assert response.status_code == 422
    assert list(response.json()["errors"]) == ["Idempotency-Key"]
    assert await service.kept() == before


async def _first_uuid(service: Service) -> str:
    client = service.client(service.write)
    while True:
        data: list[Mapping[str, str]] = (await client.get(BUILDERS)).json()["data"]
        if data:
            return data[0]["uuid"]
        await asyncio.sleep(0.001)


async def _retried(client: httpx.AsyncClient) -> httpx.Response:
    """The answer of a retry, once the first call is no more in flight."""
    while True:
        response = await client.post(BUILDERS, json=MINIMAL, headers={"Idempotency-Key": "k"})
        if response.status_code != 409:
            return response
        await asyncio.sleep(0.002)


async def _settled(service: Service, uuid: str) -> str:
    client = service.client(service.write)
    while True:
        status: str = (await client.get(f"{BUILDERS}/{uuid}")).json()["data"]["status"]
        if status != "creating":
            return status
        await asyncio.sleep(0.002)


async def test_a_creation_that_waits_holds_no_memory_for_its_files(client: httpx.AsyncClient, service: Service) -> None:
    service.engine.behave(MINIMAL["entrypoint"], Behaviour(listens_at=None))
    large = {**MINIMAL, "files": {"main.py": "#" * 1_000_000}}
    waiting = asyncio.create_task(client.post(BUILDERS, json=large))
    while not service.engine.known:
        await asyncio.sleep(0.005)
    assert all(account.reserved == 0 for account in service.app.state.operations.memory._accounts.values())
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
