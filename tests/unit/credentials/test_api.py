"""Credentials through the API: in, used, never out."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import httpx
import pytest
from tests.service import MINIMAL, Service

from builderd.application import Application
from builderd.builders import service as builders
from builderd.builders.model import Builder
from builderd.builders.service import Caller
from builderd.core.errors import NoCapacity
from builderd.core.ids import BuilderId
from builderd.database.unit_of_work import UnitOfWork

ZOHO = "/api/v1/credentials/zoho"
CANARY = "canary-7f3a"
VALUES = {"values": {"API_KEY": CANARY}}


async def create(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/api/v1/builders", json={**MINIMAL, **fields})
    assert answer.status_code == 201, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


async def test_credentials_are_listed_without_values(client: httpx.AsyncClient) -> None:
    first, again = await client.put(ZOHO, json=VALUES), await client.put(ZOHO, json=VALUES)
    listed, one = await client.get("/api/v1/credentials"), await client.get(ZOHO)

    assert [answer.status_code for answer in (first, again, listed, one)] == [201, 200, 200, 200]
    assert one.json()["data"]["variables"] == ["API_KEY"]
    assert listed.json()["data"] == [one.json()["data"]]
    assert not any(CANARY in answer.text for answer in (first, again, listed, one))


async def test_stored_credential_is_answered_even_if_deleted_meanwhile(
    client: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = service.store.write

    def delete_all(uow: UnitOfWork) -> None:
        for one in uow.credentials.all():
            uow.credentials.delete(one.tenant_id, one.name)

    async def write_and_delete(work: Callable[[UnitOfWork], Any]) -> Any:
        result = await write(work)
        await write(delete_all)
        return result

    monkeypatch.setattr(service.store, "write", write_and_delete)
    answer = await client.put(ZOHO, json=VALUES)
    assert (answer.status_code, answer.json()["data"]["variables"]) == (201, ["API_KEY"])


async def test_a_builder_gets_them_at_its_start_and_the_use_is_on_the_record(
    client: httpx.AsyncClient, service: Service
) -> None:
    await client.put(ZOHO, json={"values": {"API_KEY": CANARY, "MODE": "live"}})
    data = await create(client, credentials=["zoho"], env={"MODE": "from env"})
    (sandbox,) = service.engine.known.values()

    assert sandbox.spec.env["API_KEY"] == CANARY
    assert sandbox.spec.env["MODE"] == "live"
    assert sandbox.spec.secret_files == {"zoho/API_KEY": CANARY, "zoho/MODE": "live"}
    assert (data["credentials"], data["needs_restart"]) == (["zoho"], False)
    shown = (await client.get(ZOHO)).json()["data"]
    assert shown["last_used_by"] == data["uuid"]
    assert shown["used_by"] == [{"uuid": data["uuid"], "name": "my-api", "needs_restart": False}]


async def test_a_change_marks_the_builders_that_run_with_the_values_before(client: httpx.AsyncClient) -> None:
    await client.put(ZOHO, json=VALUES)
    uuid = (await create(client, credentials=["zoho"]))["uuid"]
    changed = await client.put(ZOHO, json={"values": {"API_KEY": "new"}})

    assert "restart=true" in changed.json()["message"]
    assert (await client.get(f"/api/v1/builders/{uuid}")).json()["data"]["needs_restart"] is True
    await client.post(f"/api/v1/builders/{uuid}/restart")
    assert (await client.get(f"/api/v1/builders/{uuid}")).json()["data"]["needs_restart"] is False


async def test_a_change_restarts_them_where_that_is_wanted(client: httpx.AsyncClient, service: Service) -> None:
    await client.put(ZOHO, json=VALUES)
    uuid = (await create(client, credentials=["zoho"]))["uuid"]
    changed = await client.put(f"{ZOHO}?restart=true", json={"values": {"API_KEY": "new"}})

    assert "restarted" in changed.json()["message"]
    await client.post(f"/api/v1/builders/{uuid}/start")
    running = [one for one in service.engine.known.values() if one.spec.env.get("API_KEY") == "new"]
    assert len(running) == 1


async def test_one_builder_that_cannot_be_restarted_keeps_no_other_from_it(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.put(ZOHO, json=VALUES)
    stuck = (await create(client, name="stuck", credentials=["zoho"]))["uuid"]
    free = (await create(client, name="free", credentials=["zoho"]))["uuid"]
    restart = builders.restart

    def full(uow: UnitOfWork, application: Application, caller: Caller, uuid: str, now: datetime) -> Builder:
        if uuid == stuck:
            raise NoCapacity("The machine is full.")
        return restart(uow, application, caller, uuid, now)

    monkeypatch.setattr(builders, "restart", full)
    changed = await client.put(f"{ZOHO}?restart=true", json={"values": {"API_KEY": "new"}})

    assert changed.status_code == 200
    assert changed.json()["message"] == (
        "The credential zoho is stored; being restarted with it: free. stuck is not restarted: The machine is full."
    )
    why = {use["uuid"]: use.get("not_restarted") for use in changed.json()["data"]["used_by"]}
    assert why == {stuck: "The machine is full.", free: None}
    await client.post(f"/api/v1/builders/{free}/start")
    stale = [(await client.get(f"/api/v1/builders/{uuid}")).json()["data"]["needs_restart"] for uuid in (stuck, free)]
    assert stale == [True, False]


async def test_used_credential_is_deleted_only_by_force(
    client: httpx.AsyncClient,
) -> None:
    await client.put(ZOHO, json=VALUES)
    uuid = (await create(client, credentials=["zoho"]))["uuid"]
    refused = await client.delete(ZOHO)
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert "my-api" in refused.json()["message"]

    assert (await client.delete(f"{ZOHO}?force=true")).status_code == 200
    assert (await client.get(ZOHO)).status_code == 404
    restarted = await client.post(f"/api/v1/builders/{uuid}/restart")
    assert (restarted.status_code, restarted.json()["code"]) == (422, "start_failed")
    assert "'zoho'" in restarted.json()["message"]


async def test_a_builder_that_asks_for_an_unknown_one_is_not_stored(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v1/builders", json={**MINIMAL, "credentials": ["zoho"]})
    assert (answer.status_code, list(answer.json()["errors"])) == (422, ["credentials.0"])
    assert (await client.get("/api/v1/builders")).json()["meta"]["total"] == 0


async def test_another_tenants_are_not_used(client: httpx.AsyncClient, service: Service) -> None:
    await client.put(ZOHO, json=VALUES)
    other = service.client(service.other)

    answer = await other.post("/api/v1/builders", json={**MINIMAL, "credentials": ["zoho"]})
    assert answer.status_code == 422


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "values"),
        ({"values": {}}, "values"),
        ({"values": [CANARY]}, "values"),
        ({"values": {"A": 1}}, "values.A"),
        ({"values": {"1A": CANARY}}, "values.1A"),
        ({"values": {"PORT": CANARY}}, "values.PORT"),
        ({"values": {"A": f"{CANARY}\0"}}, "values.A"),
        ({"values": {"A": CANARY * 6000}}, "values"),
        ({"values": {f"A{n}": CANARY for n in range(101)}}, "values"),
    ],
)
async def test_bad_values_are_refused_without_repeating_them(
    client: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    answer = await client.put(ZOHO, json=body)
    assert (answer.status_code, list(answer.json()["errors"])) == (422, [field])
    assert CANARY not in answer.text


@pytest.mark.parametrize("name", ["Zoho", "-a", "a.b", "%00", "a%00b", "%ff", "a" * 64, "a%20b"])
async def test_bad_names_are_refused_and_not_found(client: httpx.AsyncClient, name: str) -> None:
    path = f"/api/v1/credentials/{name}"
    assert (await client.put(path, json=VALUES)).status_code == 422
    for answer in (await client.get(path), await client.delete(path)):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_the_database_holds_no_value_in_clear(client: httpx.AsyncClient, service: Service) -> None:
    await client.put(ZOHO, json=VALUES)
    await create(client, credentials=["zoho"])
    stored = await service.store.read(lambda uow: uow.credentials.all())
    events = await service.store.read(lambda uow: [uow.events.of_builder(BuilderId(one)) for one in uow.builders.ids()])
    assert CANARY.encode() not in stored[0].sealed
    assert CANARY not in repr(stored)
    assert CANARY not in repr(events)
