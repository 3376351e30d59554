"""The documentation page works without the Internet."""

from __future__ import annotations

import re

import httpx


async def test_the_page_and_all_it_refers_to_come_from_here(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "//" not in page.text
    references = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(references) == 4
    for reference in references:
        assert (await client.get(reference)).status_code == 200, reference


async def test_the_page_starts_with_the_services_own_document(client: httpx.AsyncClient) -> None:
    start = await client.get("/docs/start.js")
    assert start.headers["content-type"].startswith("text/javascript")
    assert '"/openapi.json"' in start.text
    assert (await client.get("/openapi.json")).json()["info"]["title"] == "builderd"


async def test_nothing_but_the_assets_is_served_from_their_folder(client: httpx.AsyncClient) -> None:
    for path in ("../__init__.py", "%2e%2e/__init__.py", "..%2f__init__.py", "", "."):
        assert (await client.get(f"/docs/assets/{path}")).status_code == 404, path
