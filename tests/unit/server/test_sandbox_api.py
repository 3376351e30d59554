"""The API as an app sees it from inside its sandbox: its own builder, and nothing else."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tests.service import MINIMAL, Service

from builderd.server.sandbox_api import create_sandbox_app

BUILDERS = "/api/v1/builders"


@pytest.fixture
async def own(client: httpx.AsyncClient, service: Service) -> dict[str, Any]:
    """A builder; from here on clients speak to the inside."""
    data: dict[str, Any] = (await client.post(BUILDERS, json=MINIMAL)).json()["data"]
    service.app = create_sandbox_app(service.application)
    return data


async def test_an_app_reads_its_own_builder(service: Service, own: dict[str, Any]) -> None:
    inside = service.client(own["service_token"])
    response = await inside.get(f"{BUILDERS}/{own['uuid']}")
    seen = response.json()["data"]
    # Meanwhile it has cost more.
    assert (response.status_code, {**seen, "cost": None}) == (200, {**own, "cost": None})
    assert (await inside.get("/healthz")).status_code == 200


async def test_an_app_reads_no_other_builder(client: httpx.AsyncClient, service: Service) -> None:
    first = (await client.post(BUILDERS, json=MINIMAL)).json()["data"]
    second = (await client.post(BUILDERS, json={**MINIMAL, "name": "b"})).json()["data"]
    service.app = create_sandbox_app(service.application)
    response = await service.client(first["service_token"]).get(f"{BUILDERS}/{second['uuid']}")
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


async def test_only_a_service_token_opens_the_inside(service: Service, own: dict[str, Any]) -> None:
    path = f"{BUILDERS}/{own['uuid']}"
    for secret in (None, service.write, "bds_unknown", "…" + own["service_token"][-4:]):
        headers = [] if secret is None else [(b"Authorization", f"Bearer {secret}".encode())]
        response = await service.client(None).get(path, headers=headers)
        assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")


async def test_the_service_token_of_a_deleted_builder_is_nothing(
    client: httpx.AsyncClient, service: Service, own: dict[str, Any]
) -> None:
    await client.delete(f"{BUILDERS}/{own['uuid']}")
    response = await service.client(own["service_token"]).get(f"{BUILDERS}/{own['uuid']}")
    assert response.status_code == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", BUILDERS),
        ("POST", BUILDERS),
        ("GET", f"{BUILDERS}/spending"),
        ("DELETE", f"{BUILDERS}/{{uuid}}"),
        ("POST", f"{BUILDERS}/{{uuid}}/stop"),
        ("POST", f"{BUILDERS}/{{uuid}}/exec"),
        ("GET", f"{BUILDERS}/{{uuid}}/logs"),
        ("GET", "/metrics"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
    ],
)
async def test_nothing_else_is_there(service: Service, own: dict[str, Any], method: str, path: str) -> None:
    before = await service.kept()
    response = await service.client(own["service_token"]).request(method, path.format(uuid=own["uuid"]), json={})
    assert response.status_code in (404, 405)
    assert response.json()["success"] is False
    assert await service.kept() == before


async def test_a_service_token_is_nothing_outside(client: httpx.AsyncClient, service: Service) -> None:
    own = (await client.post(BUILDERS, json=MINIMAL)).json()["data"]
    response = await service.client(own["service_token"]).get(f"{BUILDERS}/{own['uuid']}")
    assert response.status_code == 401
