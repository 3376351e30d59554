"""Links to private previews, and URLs of other ports, over the API."""

from __future__ import annotations

import httpx
import pytest
from tests.service import MINIMAL, Service

from builderd.core.ids import secret_hash
from builderd.previews.model import MAX_LINKS

BUILDERS = "/api/v1/builders"


@pytest.fixture
async def path(client: httpx.AsyncClient) -> str:
    answer = await client.post(BUILDERS, json={**MINIMAL, "visibility": "private"})
    return f"{BUILDERS}/{answer.json()['data']['uuid']}"


async def test_port_has_a_url_below_the_previews_host(client: httpx.AsyncClient, path: str) -> None:
    own = (await client.get(path)).json()["data"]["preview_url"]
    answer = await client.get(f"{path}/ports/3000/preview-url")
    assert answer.status_code == 200
    assert answer.json()["data"] == {"port": 3000, "url": own.replace("http://", "http://3000--")}
    for port in ("0", "65536", "web"):
        assert (await client.get(f"{path}/ports/{port}/preview-url")).status_code == 422


async def test_name_that_is_too_long_has_no_other_ports(client: httpx.AsyncClient) -> None:
    answer = await client.post(BUILDERS, json={**MINIMAL, "name": "a" * 60})
    refused = await client.get(f"{BUILDERS}/{answer.json()['data']['uuid']}/ports/3000/preview-url")
    assert (refused.status_code, refused.json()["code"]) == (409, "invalid_state")


async def test_link_is_shown_once_given_to_the_proxy_and_revoked(
    client: httpx.AsyncClient, service: Service, path: str
) -> None:
    made = await client.post(f"{path}/preview-links", json={"expires_minutes": 5, "port": 3000})
    assert made.status_code == 201
    link = made.json()["data"]
    token = link["url"].partition("?service_token=")[2]
    assert token.startswith("bdpl_")
    (given,) = service.previews.links.values()
    assert (given.token_hash, given.port) == (secret_hash(token), 3000)
    listed = (await client.get(f"{path}/preview-links")).json()["data"]
    assert [one["id"] for one in listed] == [link["id"]]
    assert "url" not in listed[0]
    assert (await client.delete(f"{path}/preview-links/{link['id']}")).status_code == 204
    assert service.previews.links == {}
    assert (await client.delete(f"{path}/preview-links/{link['id']}")).status_code == 404
    assert (await client.get(f"{path}/preview-links")).json()["data"] == []
    types = [one["type"] for one in (await client.get(f"{path}/events?type=preview_link.*")).json()["data"]]
    assert types == ["preview_link.revoked", "preview_link.created"]


async def test_links_of_a_builder_are_limited_and_end_with_it(
    client: httpx.AsyncClient, service: Service, path: str
) -> None:
    for _ in range(MAX_LINKS):
        assert (await client.post(f"{path}/preview-links", json={})).status_code == 201
    refused = await client.post(f"{path}/preview-links", json={})
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert len(service.previews.links) == MAX_LINKS
    await client.delete(path)
    now = service.application.clock.now()
    assert await service.application.store.read(lambda uow: uow.preview_links.routes(now)) == []


async def test_link_is_of_its_builder_alone(client: httpx.AsyncClient, path: str) -> None:
    other = f"{BUILDERS}/{(await client.post(BUILDERS, json={**MINIMAL, 'name': 'other'})).json()['data']['uuid']}"
    link = (await client.post(f"{path}/preview-links", json={})).json()["data"]["id"]
    assert (await client.delete(f"{other}/preview-links/{link}")).status_code == 404
