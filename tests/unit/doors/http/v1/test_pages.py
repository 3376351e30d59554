"""Every list comes in pages, and says how long it is."""

from __future__ import annotations

import httpx
import pytest
from tests.service import MINIMAL

API = "/api/v1"


@pytest.fixture
async def builder(client: httpx.AsyncClient) -> str:
    """The path of a builder with two of everything."""
    path = str((await client.post(f"{API}/builders", json=MINIMAL)).headers["location"])
    assert (await client.put(path, json={"port": 8001})).status_code == 200
    for number in range(2):
        await client.post(f"{path}/leases", json={"seconds": 600, "reason": f"{number}"})
        await client.put(f"{API}/credentials/c{number}", json={"values": {"A": "x"}})
        await client.post(f"{API}/webhooks", json={"url": f"https://example.com/{number}"})
    return path


@pytest.mark.parametrize("name", ["versions", "leases", "credentials", "webhooks"])
async def test_a_list_comes_in_pages(client: httpx.AsyncClient, builder: str, name: str) -> None:
    path = f"{builder}/{name}" if name in ("versions", "leases") else f"{API}/{name}"
    whole = (await client.get(path)).json()
    assert (len(whole["data"]), whole["meta"]) == (2, {"page": 1, "per_page": 25, "total": 2})
    for number in (1, 2, 3):
        answer = (await client.get(path, params={"page": number, "per_page": 1})).json()
        assert answer["data"] == whole["data"][number - 1 : number]
        assert answer["meta"] == {"page": number, "per_page": 1, "total": 2}
    for query, field in (("page=0", "page"), ("per_page=101", "per_page"), ("pages=1", "pages")):
        refused = await client.get(f"{path}?{query}")
        assert (refused.status_code, list(refused.json()["errors"])) == (422, [field])
