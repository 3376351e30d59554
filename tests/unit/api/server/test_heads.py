"""HEAD is GET without the body, also where GET would go on for ever."""

from __future__ import annotations

import asyncio
import logging

import httpx
import pytest
from tests.service import MINIMAL, Service, listening

from builderd.api.server import middleware

API = "/api/v1"
OWN = {"x-request-id", "date", "ratelimit", "ratelimit-remaining", "ratelimit-reset"}


@pytest.mark.parametrize("real", [False, True])
async def test_a_head_says_what_get_would(service: Service, client: httpx.AsyncClient, real: bool) -> None:
    uuid = (await client.post(f"{API}/builders", json=MINIMAL)).json()["data"]["uuid"]
    builder = f"{API}/builders/{uuid}"
    paths = ("/healthz", "/readyz", "/openapi.json", "/docs", f"{builder}/versions", f"{builder}/files/main.py")
    async with listening(service.app) as url, asyncio.timeout(60):
        asking = service.client(service.write, url) if real else client
        for path in (*paths, f"{API}/builders/x", f"{API}/builders?page=0"):
            whole, head = await asking.get(path), await asking.head(path)
            assert (head.status_code, head.content) == (whole.status_code, b"")
            headers = [{name: value for name, value in one.headers.items() if name not in OWN} for one in (whole, head)]
            assert headers[0] == headers[1]
        await asking.aclose()


async def test_head_of_a_stream_has_no_body(service: Service, client: httpx.AsyncClient) -> None:
    uuid = (await client.post(f"{API}/builders", json=MINIMAL)).json()["data"]["uuid"]
    async with listening(service.app) as url, service.client(service.write, url) as real, asyncio.timeout(60):
        for path in (f"{API}/events", f"{API}/builders/{uuid}/logs"):
            head = await real.head(path, params={"follow": True})
            assert head.headers["content-type"].partition(";")[0] == "text/event-stream"
        assert (await real.head(f"{API}/builders/{uuid}/archive")).status_code == 200
        # The connection is as good as new.
        assert (await real.get("/healthz")).status_code == 200
    assert service.app.state.operations.event_streams.total() == service.app.state.operations.log_streams.total() == 0


async def test_head_request_is_logged_and_counted_as_head(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, middleware.__name__):
        await client.head("/healthz")
    assert caplog.records[0].getMessage().startswith("request method=HEAD path=/healthz status=200 ms=")


async def test_path_without_get_has_no_head(client: httpx.AsyncClient) -> None:
    refused = await client.head(f"{API}/builders/x/start")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert (await client.head("/nope")).status_code == 404
