"""A builder in a list is what a call for it alone shows."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx
from tests.service import MINIMAL, Service
from tests.statements import statements

from builderd.builders.model import Builder
from builderd.core.ids import BuilderId
from builderd.database.unit_of_work import UnitOfWork
from builderd.schemas import builders as wire

BUILDERS = "/api/v1/builders"
ODD = 'h"ä\\\u2028</script>\U0001f600'


def move_to_another_member(uow: UnitOfWork, builder: Builder) -> None:
    uow.builders.save(replace(builder, location="node2"))


async def test_entries_of_several_builders_have_the_keys_and_values_of_each(service: Service) -> None:
    client = service.client(service.write)
    await _put_credential(client, "one")
    stopped = await created(service, name="stopped", credentials=["zoho"])
    await client.post(f"{BUILDERS}/{stopped}/stop")
    made = [
        *(stopped, await created(service, name="plain"), await created(service, name="held", credentials=["zoho"])),
        await created(service, name="job", job_type="one_time"),
    ]
    await service.store.write(lambda uow: move_to_another_member(uow, _builder(uow, made[1])))
    listed = await _listed(client)
    async with asyncio.timeout(30):
        while True:
            alone = {uuid: (await client.get(f"{BUILDERS}/{uuid}")).json()["data"] for uuid in made}
            before, listed = listed, await _listed(client)
            # Nothing was changed by the reconciler between the two lists.
            if before == listed and listed[stopped]["status"] == "stopped" and listed[made[1]]["status"] == "running":
                break
    assert listed == {uuid: _without_growth(one) for uuid, one in alone.items()}
    assert listed[made[1]]["member"] == "node2"
    assert all(set(one) == set(wire.Builder.model_fields) for one in listed.values())


async def test_entry_needs_a_restart_once_its_credential_changed(service: Service) -> None:
    client = service.client(service.write)
    await _put_credential(client, "one")
    changed, kept = await created(service, credentials=["zoho"]), await created(service, name="kept")
    stopped = await created(service, name="stopped", credentials=["zoho"])
    await client.post(f"{BUILDERS}/{stopped}/stop")
    assert await _stale(client) == set()
    await _put_credential(client, "two")
    assert await _stale(client) == {changed}
    await service.store.write(lambda uow: uow.credentials.delete(_builder(uow, kept).tenant_id, "zoho"))
    assert await _stale(client) == {changed}


async def test_credentials_of_many_builders_take_no_statement_each(service: Service) -> None:
    client = service.client(service.write)
    await _put_credential(client, "one")
    counts = []
    for number in range(4):
        await created(service, name=f"app-{number}", credentials=["zoho"])
        with statements(service.store) as seen:
            await client.get(BUILDERS)
        counts.append(len([one for one in seen if "sandboxes" in one or "credentials.tenant_id" in one]))
    assert counts == [2, 2, 2, 2]


async def test_large_environments_are_listed_whole(service: Service) -> None:
    env = {f"LARGE_{number}": ODD * 2_000 for number in range(5)}
    for number in range(3):
        await created(service, name=f"app-{number}", env=env)
    listed = await service.client(service.read).get(BUILDERS)
    assert [one["env"] for one in listed.json()["data"]] == [env] * 3


async def created(service: Service, **more: Any) -> str:
    response = await service.client(service.write).post(BUILDERS, json={**MINIMAL, **more})
    assert response.status_code == 201, response.text
    uuid: str = response.json()["data"]["uuid"]
    return uuid


async def _listed(client: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    return {one["uuid"]: _without_growth(one) for one in (await client.get(BUILDERS)).json()["data"]}


async def _put_credential(client: httpx.AsyncClient, value: str) -> None:
    answer = await client.put("/api/v1/credentials/zoho", json={"values": {"ZOHO_TOKEN": value}})
    assert answer.is_success, answer.text


async def _stale(client: httpx.AsyncClient) -> set[str]:
    return {one["uuid"] for one in (await client.get(BUILDERS)).json()["data"] if one["needs_restart"]}


def _builder(uow: UnitOfWork, uuid: str) -> Builder:
    builder = uow.builders.get(BuilderId(uuid), lock=True)
    assert builder is not None
    return builder


def _without_growth(shown: dict[str, Any]) -> dict[str, Any]:
    """Leave out what grows between two calls."""
    return {**shown, "cost": {name: amount for name, amount in shown["cost"].items() if name == "hourly_rate"}}
