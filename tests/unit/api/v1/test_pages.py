"""Every list comes in pages, and says how long it is."""

from __future__ import annotations

import json

import httpx
import pytest
from tests.service import MINIMAL

from builderd.api.v1 import pages
from builderd.schemas.v1.envelope import Page, PageMeta
from builderd.schemas.v1.shape import View

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
