"""Every list comes in pages, and says how long it is."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from tests.service import MINIMAL, Service

from builderd.core.ids import TenantId, secret_hash
from builderd.schemas.shape import Page, PageMeta, View
from builderd.server import pages
from builderd.tokens.limits import MAX_WAITING

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
    for query, field in (("page=0", "page"), ("per_page=101", "per_page")):
        refused = await client.get(f"{path}?{query}")
        assert (refused.status_code, list(refused.json()["errors"])) == (422, [field])


async def test_a_long_list_counts_in_the_budget_until_it_is_sent(
    client: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {f"LARGE_{number}": "\u00e4" * 9_000 for number in range(5)}
    for number in range(3):
        await client.post(f"{API}/builders", json={**MINIMAL, "name": f"app-{number}", "env": env})
    memory, tenant, reserved = service.app.state.operations.memory, await _tenant(service), list[int]()

    async def sent(pieces: Any, reservation: Any) -> Any:
        reserved.append(memory.reserved(tenant))
        async for piece in send(pieces, reservation):
            yield piece

    send = pages._sent
    monkeypatch.setattr(pages, "_sent", sent)
    response = await client.get(f"{API}/builders")
    assert [one["env"] for one in response.json()["data"]] == [env] * 3
    assert reserved == [len(response.content)] == [int(response.headers["Content-Length"])]
    assert memory.reserved(tenant) == 0


async def test_one_tenant_reads_one_list_at_a_time_and_a_bounded_number_waits(
    client: httpx.AsyncClient, service: Service
) -> None:
    async with service.app.state.operations.lists.one(await _tenant(service)):
        waiting = [asyncio.create_task(client.get(f"{API}/builders")) for _ in range(MAX_WAITING + 1)]
        done, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert [one.result().status_code for one in done] == [429]
        assert (await service.client(service.other).get(f"{API}/builders")).status_code == 200
        assert not any(one.done() for one in others)
    assert {response.status_code for response in await asyncio.gather(*others)} == {200}


async def _tenant(service: Service) -> TenantId:
    token = await service.application.store.read(lambda uow: uow.tokens.by_secret_hash(secret_hash(service.write)))
    assert token is not None
    return token.tenant_id


class Entry(View):
    text: str


class Entries(Page[Entry]):
    """A page of them."""


@pytest.mark.parametrize("sizes", [[], [1], [1, 2, 3], [100_000, 1, 100_000]])
async def test_a_page_in_pieces_is_the_page(sizes: list[int]) -> None:
    page = entries(sizes)
    pieces = await pages._encoded(pages.page_of(page.message, page.meta, page.data))
    assert json.loads(b"".join(pieces)) == page.model_dump(mode="json")
    assert len(pieces) == 1 + sum(size > 10_000 for size in sizes)


async def test_a_large_single_answer_is_the_answer() -> None:
    pieces = await pages._encoded(pages.single('"one"', Entry(text="\x01" * 100_000)))
    assert json.loads(b"".join(pieces)) == {
        "success": True,
        "message": '"one"',
        "data": {"text": "\x01" * 100_000},
    }


def entries(sizes: list[int]) -> Entries:
    data = [Entry(text="\x01" * size) for size in sizes]
    return Entries(message='"many"', data=data, meta=PageMeta(page=1, per_page=25, total=len(data)))
