"""Costs of all builders."""

from __future__ import annotations

import httpx
import pytest
from tests.service import MINIMAL, Service

SPENDING = "/api/v1/builders/spending"


async def test_deleted_builders_still_count(client: httpx.AsyncClient) -> None:
    uuid = (await client.post("/api/v1/builders", json=MINIMAL)).json()["data"]["uuid"]
    await client.delete(f"/api/v1/builders/{uuid}")
    await client.post("/api/v1/builders", json={**MINIMAL, "resources": {"cpu": 2}})
    data = (await client.get(SPENDING)).json()["data"]
    assert (data["currency"], data["vm_count"], data["total_cost"]) == ("EUR", 2, 0.0)
    assert [one["hourly_rate"] for one in data["deployments"]] == [0.1965, 0.3165]
    assert data["deployments"][0] | {"runtime_hours": 0} == {
        "uuid": uuid,
        "name": "my-api",
        "hourly_rate": 0.1965,
        "runtime_hours": 0,
        "cost": 0.0,
    }


async def test_spending_of_another_tenant_is_hidden(client: httpx.AsyncClient, service: Service) -> None:
    await client.post("/api/v1/builders", json=MINIMAL)
    assert (await service.client(service.other).get(SPENDING)).json()["data"]["deployments"] == []


async def test_spending_comes_in_pages(client: httpx.AsyncClient) -> None:
    names = ["one", "two", "three"]
    for name in names:
        await client.post("/api/v1/builders", json={**MINIMAL, "name": name})
    whole = (await client.get(SPENDING)).json()
    assert whole["meta"] == {"page": 1, "per_page": 100, "total": 3}
    for number, found in enumerate((names[:2], names[2:], []), 1):
        answer = (await client.get(SPENDING, params={"page": number, "per_page": 2})).json()
        assert [one["name"] for one in answer["data"]["deployments"]] == found
        assert (answer["data"]["vm_count"], answer["meta"]["total"]) == (3, 3)


async def test_a_span_may_be_asked_for(client: httpx.AsyncClient) -> None:
    query = {"from": "2026-01-01T00:00:00Z", "to": "2026-02-01T00:00:00+01:00"}
    assert (await client.get(SPENDING, params=query)).status_code == 200


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("from=x", "from"),
        ("to=2026-01-01", "to"),
        ("since=2026-01-01T00:00:00Z", "since"),
        ("from=2026-01-01T00:00:00Z&to=2026-01-01T00:00:00Z", "to"),
        ("from=9999-12-31T23:59:59-14:00", "from"),
        ("page=0", "page"),
        ("per_page=101", "per_page"),
    ],
)
async def test_a_hostile_span_is_refused(client: httpx.AsyncClient, query: str, field: str) -> None:
    response = await client.get(f"{SPENDING}?{query}")
    assert (response.status_code, list(response.json()["errors"])) == (422, [field])
