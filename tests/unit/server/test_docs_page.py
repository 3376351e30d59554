"""The documentation page, and the pages for language models."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator

import httpx
import pytest
from tests.service import Service, running_service

from builderd.agents import guide
from builderd.server.answers import PREFIX
from builderd.server.docs_page import MAX_BYTES, index


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


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running_service() as running:
        yield running


@pytest.mark.parametrize("path", ["/llms.txt", "/agent-ready.md"])
async def test_the_pages_need_no_token_and_are_short(service: Service, path: str) -> None:
    answer = await service.client(None).get(path)
    assert answer.status_code == 200
    assert answer.text.startswith("# builderd\n\n> ")
    assert len(answer.content) <= MAX_BYTES


def test_the_index_has_every_call_of_the_document(service: Service) -> None:
    document = service.app.openapi()
    text = index(document)
    for path, methods in document["paths"].items():
        for method in methods:
            if path.startswith(PREFIX):
                assert f"- {method.upper()} {path.removeprefix(PREFIX)}: " in text


async def test_the_guides_example_creates_a_builder(service: Service) -> None:
    body = re.search(r"<<'EOF'\n(.*?)\nEOF\n", guide(), re.DOTALL)
    assert body
    answer = await service.client(service.write).post("/api/v1/builders", json=json.loads(body[1]))
    assert answer.status_code == 201, answer.text


def test_the_guide_names_only_calls_that_there_are(service: Service) -> None:
    paths = {parameters_of(path) for path in service.app.openapi()["paths"]}
    named = re.findall(r"`(?:GET|PUT|POST|DELETE) (/api/v1|…)(/[\w/{}-]+)", guide())
    assert len(named) >= 8
    for base, path in named:
        assert parameters_of(("/api/v1" if base != "…" else "/api/v1/builders/{uuid}") + path) in paths, path


def parameters_of(path: str) -> str:
    return re.sub(r"\{\w+\}", "{}", path)
