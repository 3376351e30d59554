"""SSH tokens through the API."""

from __future__ import annotations

import httpx
import pytest
from tests.service import MINIMAL, Service


@pytest.fixture
async def path(client: httpx.AsyncClient) -> str:
    uuid = (await client.post("/api/v1/builders", json=MINIMAL)).json()["data"]["uuid"]
    return f"/api/v1/builders/{uuid}/ssh"


async def test_a_token_is_answered_once_with_the_command_and_the_gateways_key(
    client: httpx.AsyncClient, path: str
) -> None:
    answer = await client.post(path, json={})
    data = answer.json()["data"]
    assert answer.status_code == 201
    assert data["ssh_command"] == f"ssh -p 8022 {data['token']}@localhost"
    assert (data["fingerprint"], data["known_hosts"]) == ("SHA256:fake", "[localhost]:8022 ssh-ed25519 AAAA")
    assert data["token"] != (await client.post(path, json={"expires_minutes": 10080})).json()["data"]["token"]


async def test_recreating_ends_the_others_and_ending_ends_all(
    client: httpx.AsyncClient, service: Service, path: str
) -> None:
    async def valid() -> int:
        now = service.application.clock.now()
        return await service.store.read(
            lambda uow: sum(len(uow.ssh_grants.valid_of(one, now)) for one in uow.builders.ids())
        )

    await client.post(path, json={})
    assert (await client.post(path)).status_code == 201, "no body is as good as an empty one"
    assert await valid() == 2
    assert (await client.post(f"{path}/recreate", json={})).status_code == 201
    assert await valid() == 1
    assert [(await client.delete(path)).status_code for _ in range(2)] == [200, 200]
    assert await valid() == 0


async def test_there_is_an_end_to_tokens(client: httpx.AsyncClient, path: str) -> None:
    statuses = [(await client.post(path, json={})).status_code for _ in range(21)]
    assert statuses == [201] * 20 + [409]


async def test_the_token_is_in_no_event_and_not_in_the_store(
    client: httpx.AsyncClient, service: Service, path: str
) -> None:
    token = (await client.post(path, json={})).json()["data"]["token"]
    events = (await client.get(path.replace("/ssh", "/events"))).text
    assert "ssh.granted" in events
    assert token not in events
    assert await service.store.read(lambda uow: uow.ssh_grants.by_secret_hash(token)) is None
