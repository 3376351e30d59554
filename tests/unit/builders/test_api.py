"""List, look, start, stop, restart, delete."""

from __future__ import annotations

import asyncio
import errno
from functools import partial
from typing import Any

import httpx
import pytest
from tests.fakes.sandboxes import Behaviour
from tests.service import MINIMAL, Service

from builderd.builders import outcomes
from builderd.core.errors import EngineUnavailable
from builderd.engine.port import Readiness
from builderd.reconciler import worker

BUILDERS = "/api/v1/builders"


async def create(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    data: dict[str, Any] = (await client.post(BUILDERS, json={**MINIMAL, **fields})).json()["data"]
    return data


async def test_list_is_paged_with_total(client: httpx.AsyncClient) -> None:
    for name in ("a", "b", "c"):
        await create(client, name=name)
    body = (await client.get(BUILDERS, params={"per_page": 2, "page": 2, "sort": "created_at"})).json()
    assert body["meta"] == {"page": 2, "per_page": 2, "total": 3}
    assert [one["name"] for one in body["data"]] == ["c"]
    newest_first = (await client.get(BUILDERS)).json()["data"]
    assert [one["name"] for one in newest_first] == ["c", "b", "a"]


async def test_a_list_is_filtered(client: httpx.AsyncClient, service: Service) -> None:
    service.engine.behave("job", Behaviour(listens_at=None))
    await create(client, name="a")
    await create(client, name="b", job_type="one_time", entrypoint="job")
    for query, names in (
        ({"name": "a"}, ["a"]),
        ({"job_type": "one_time"}, ["b"]),
        ({"status": "running"}, ["b", "a"]),
        ({"status": "stopped"}, []),
        ({"sort": "name"}, ["a", "b"]),
    ):
        data = (await client.get(BUILDERS, params=query)).json()["data"]
        assert [one["name"] for one in data] == names, query


async def test_a_token_that_only_reads_sees_the_end_of_the_service_token(
    client: httpx.AsyncClient, service: Service
) -> None:
    created = await create(client)
    reader = service.client(service.read)
    for body in (
        (await reader.get(f"{BUILDERS}/{created['uuid']}")).json()["data"],
        (await reader.get(BUILDERS)).json()["data"][0],
    ):
        assert body["service_token"] == f"…{created['service_token'][-4:]}"


async def test_a_uuid_may_be_in_capital_letters(client: httpx.AsyncClient) -> None:
    uuid = (await create(client))["uuid"]
    assert (await client.get(f"{BUILDERS}/{uuid.upper()}")).json()["data"]["uuid"] == uuid


async def test_stop_and_start_come_to_their_end_and_are_idempotent(client: httpx.AsyncClient) -> None:
    uuid = (await create(client))["uuid"]
    for verb, status in (("start", "running"), ("stop", "stopped"), ("stop", "stopped"), ("start", "running")):
        response = await client.post(f"{BUILDERS}/{uuid}/{verb}")
        assert (response.status_code, response.json()["data"]["status"]) == (200, status)


async def test_a_restart_is_a_new_sandbox(client: httpx.AsyncClient, service: Service) -> None:
    uuid = (await create(client))["uuid"]
    first = set(service.engine.known)
    response = await client.post(f"{BUILDERS}/{uuid}/restart")
    assert (response.status_code, response.json()["data"]["status"]) == (200, "running")
    assert first.isdisjoint(service.engine.known)


async def test_a_start_that_fails_is_422_and_a_stop_after_it_is_not(
    client: httpx.AsyncClient, service: Service
) -> None:
    service.engine.behave(MINIMAL["entrypoint"], Behaviour(), Behaviour(listens_at=None, exits_at=1))
    uuid = (await create(client))["uuid"]
    await client.post(f"{BUILDERS}/{uuid}/stop")
    started = await client.post(f"{BUILDERS}/{uuid}/start")
    assert (started.status_code, started.json()["code"]) == (422, "start_failed")
    assert started.json()["data"] == {"uuid": uuid, "version": 1}
    stopped = await client.post(f"{BUILDERS}/{uuid}/stop")
    assert (stopped.status_code, stopped.json()["data"]["status"]) == (200, "failed")


@pytest.mark.parametrize("verb", ["start", "restart", "stop"])
async def test_a_change_may_be_answered_at_once(client: httpx.AsyncClient, verb: str) -> None:
    uuid = (await create(client))["uuid"]
    response = await client.post(f"{BUILDERS}/{uuid}/{verb}", headers={"Prefer": "respond-async"})
    assert response.status_code == 202
    assert response.headers["location"] == f"{BUILDERS}/{uuid}"


async def test_a_deleted_builder_is_gone_and_its_name_is_free(client: httpx.AsyncClient, service: Service) -> None:
    uuid = (await create(client))["uuid"]
    response = await client.delete(f"{BUILDERS}/{uuid}")
    assert (response.status_code, response.json()["data"]["status"]) == (200, "deleted")
    for call in (client.get(f"{BUILDERS}/{uuid}"), client.delete(f"{BUILDERS}/{uuid}")):
        assert (await call).status_code == 404
    assert (await client.get(BUILDERS)).json()["data"] == []
    left = await service.kept()
    assert {name: count for name, count in left.items() if name.startswith("world_")} == {
        "world_bundles": 0,
        "world_sandboxes": 0,
        "world_disks": 0,
        "world_routes": 0,
    }
    assert (await client.post(BUILDERS, json=MINIMAL)).status_code == 201


@pytest.mark.parametrize(
    ("verb", "step", "error", "code"),
    [
        ("stop", "stop", EngineUnavailable("Incus has no quorum."), "engine_unavailable"),
        ("delete", "stop", OSError(errno.EIO, "Input/output error"), "machine_fault"),
        ("delete", "delete_disk", ValueError("an answer that nobody expected"), "engine_unavailable"),
    ],
)
async def test_end_that_keeps_failing_is_answered_503_and_carried_out_later(
    client: httpx.AsyncClient,
    service: Service,
    verb: str,
    step: str,
    error: Exception,
    code: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "FIRST_RETRY", 0.01)
    monkeypatch.setattr(worker, "LAST_RETRY", 0.05)
    uuid = (await create(client))["uuid"]
    path = f"{BUILDERS}/{uuid}"
    call = partial(client.post, f"{path}/stop") if verb == "stop" else partial(client.delete, path)
    service.engine.fail_next(step, *[error] * 1000)
    # A deleted builder is not to be seen any more.
    for _ in range(2 if verb == "stop" else 1):
        answer = await call()
        assert (answer.status_code, answer.json()["code"]) == (503, code)
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.json()["data"] == {"uuid": uuid}
        assert "nobody expected" not in answer.text
    service.engine._failures[step].clear()
    answer = await call()
    if verb == "stop":
        assert (answer.status_code, answer.json()["data"]["status"]) == (200, "stopped")
        return
    assert answer.status_code == 404
    async with asyncio.timeout(30):
        while service.engine.known_disks or service.engine.known:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("verb", ["stop", "delete", "start"])
async def test_change_is_answered_503_while_a_step_hangs_in_an_engine_that_is_out_of_reach(
    client: httpx.AsyncClient, service: Service, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut cables do that: Incus neither ends the step nor refuses it."""
    uuid = (await create(client))["uuid"]
    if verb == "start":
        await client.post(f"{BUILDERS}/{uuid}/stop")
    mended = asyncio.Event()
    with monkeypatch.context() as patch:
        name = "start" if verb == "start" else "stop"
        whole = getattr(service.engine, name)

        async def hang(*given: Any) -> Any:
            await mended.wait()
            return await whole(*given)

        patch.setattr(service.engine, name, hang)
        patch.setattr(outcomes, "MAX_UNREACHABLE_SECONDS", 0.2)
        patch.setattr(service.engine, "readiness", lambda: Readiness(False, "no quorum", engine_unreachable=True))
        answer = await (
            client.delete(f"{BUILDERS}/{uuid}") if verb == "delete" else client.post(f"{BUILDERS}/{uuid}/{verb}")
        )
        assert (answer.status_code, answer.json()["code"]) == (503, "engine_unavailable")
        assert int(answer.headers["Retry-After"]) > 0
        assert "no quorum" in answer.json()["message"]
        assert ("may still fail" in answer.json()["message"]) is (verb == "start")
        mended.set()
    if verb == "delete":
        async with asyncio.timeout(30):
            while (await client.get(f"{BUILDERS}/{uuid}")).status_code != 404:
                await asyncio.sleep(0.01)
    else:
        answer = await client.post(f"{BUILDERS}/{uuid}/{verb}")
        assert answer.json()["data"]["status"] == {"start": "running", "stop": "stopped"}[verb]


async def test_a_builder_may_be_deleted_while_it_is_created(client: httpx.AsyncClient, service: Service) -> None:
    service.engine.behave(MINIMAL["entrypoint"], Behaviour(listens_at=None))
    created = await client.post(BUILDERS, json=MINIMAL, headers={"Prefer": "respond-async"})
    uuid = created.json()["data"]["uuid"]
    restarted = await client.post(f"{BUILDERS}/{uuid}/restart")
    assert (restarted.status_code, restarted.json()["code"]) == (409, "invalid_state")
    assert (await client.delete(f"{BUILDERS}/{uuid}")).status_code == 200
