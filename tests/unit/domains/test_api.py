"""Custom domains over the API."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tests.service import MINIMAL

BUILDERS = "/api/v1/builders"
HOST = "shop.example.com"


@pytest.fixture
async def path(client: httpx.AsyncClient) -> str:
    data: dict[str, Any] = (await client.post(BUILDERS, json=MINIMAL)).json()["data"]
    return f"{BUILDERS}/{data['uuid']}/domains"


async def test_a_domain_is_added_listed_checked_and_removed(client: httpx.AsyncClient, path: str) -> None:
    added = await client.post(path, json={"host": "BÜCHER.example."})
    assert added.status_code == 201, added.text
    domain = added.json()["data"]
    assert (domain["host"], domain["name"]) == ("xn--bcher-kva.example", "bücher.example")
    assert domain["status"] == "pending"
    assert domain["next_try_at"]
    assert domain["expires_at"] is None
    assert domain["url"].startswith("http://xn--bcher-kva.example")
    assert domain["txt"]["name"] == "_builderd.xn--bcher-kva.example"
    again = await client.post(path, json={"host": "bücher.example"})
    assert (again.status_code, again.json()["data"]) == (200, domain)
    assert (await client.get(path)).json()["data"] == [domain]
    assert (await client.post(f"{path}/XN--BCHER-KVA.example./check")).status_code == 200
    assert (await client.delete(f"{path}/bücher.example")).status_code == 200
    assert (await client.get(path)).json()["data"] == []
    for gone in (await client.delete(f"{path}/{HOST}"), await client.post(f"{path}/{HOST}/check")):
        assert (gone.status_code, gone.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("host", ["%00", "..", "%2e%2e", "a%20b", "%ff", "x" * 300, "<script>"])
async def test_a_bad_host_in_a_path_is_unknown(client: httpx.AsyncClient, path: str, host: str) -> None:
    response = await client.post(f"{path}/{host}/check")
    assert response.status_code in (404, 405)


async def test_a_deleted_builder_frees_the_name_for_its_tenant(client: httpx.AsyncClient, path: str) -> None:
    await client.post(path, json={"host": HOST})
    other = (await client.post(BUILDERS, json={**MINIMAL, "name": "other"})).json()["data"]["uuid"]
    taken = await client.post(f"{BUILDERS}/{other}/domains", json={"host": HOST})
    assert (taken.status_code, taken.json()["code"]) == (409, "conflict")
    assert (await client.delete(path.removesuffix("/domains"))).status_code == 200
    assert (await client.post(f"{BUILDERS}/{other}/domains", json={"host": HOST})).status_code == 201
