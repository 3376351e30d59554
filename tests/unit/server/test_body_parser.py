"""Large bodies in a process of their own: values and errors are as in this one; and HEAD is GET without a body."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import tracemalloc
from typing import Any

import httpx
import pytest
from tests.service import MINIMAL, Service, listening

from builderd.core.errors import BadRequest, BuilderdError, MachineFault, TooLarge, ValidationFailed
from builderd.core.resources import Resources
from builderd.schemas.account import NewCredential
from builderd.schemas.builder_parts import NewExecution
from builderd.schemas.builders import NewBuilder
from builderd.schemas.files import bundle_files
from builderd.schemas.shape import Shape
from builderd.schemas.versions import NewSettings, NewVersion
from builderd.server import body_parser, middleware
from builderd.server.body_parser import Body, take_apart

CONTEXT = {"maximum": Resources(cpu=8, memory=16, disk=100)}
LARGE: dict[str, Any] = {
    **MINIMAL,
    "env": {"PRICE": 3.10, "FLAG": True},
    "resources": {"cpu": 1.5},
    "files": {"a": "grüß\n" * 1000, "b": {"content": "AAEC", "encoding": "base64", "executable": True}},
}


@pytest.mark.parametrize(
    ("shape", "value"),
    [
        (NewBuilder, LARGE),
        (NewVersion, {name: value for name, value in LARGE.items() if name != "name"}),
        (NewSettings, {"env": {"A": "b"}}),
        (NewExecution, {"command": "cat", "stdin": "x" * 1000, "env": {"N": 1}}),
        (NewCredential, {"values": {"PASSWORD": "secret"}}),
    ],
)
async def test_a_value_is_the_same_as_in_this_process(shape: type[Shape], value: dict[str, Any]) -> None:
    body = json.dumps(value).encode()
    parsed = await take_apart(shape, Body(body), CONTEXT)
    assert parsed == body_parser.take(shape, body, CONTEXT)
    assert parsed.model_fields_set == body_parser.take(shape, body, CONTEXT).model_fields_set


async def test_large_files_stay_on_the_disk() -> None:
    contents = {"a": random.Random(1).randbytes(8_000_000), "b": random.Random(2).randbytes(6_000_000), "c": b"small"}
    files = {
        name: {"content": base64.b64encode(content).decode(), "encoding": "base64"}
        for name, content in contents.items()
    }
    body = Body()
    await body.add(json.dumps({**MINIMAL, "files": files}).encode())
    tracemalloc.start()
    parsed = await take_apart(NewBuilder, body, CONTEXT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000
    parts = bundle_files(parsed.files)
    assert {file.path: file.content for file in parts} == contents
    assert [type(file.source) is bytes for file in parts] == [False, False, True]
    assert parts[0].source.read(7_999_990, 100) == contents["a"][-10:]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{", BadRequest),
        (b'{"a":[' + b"[]," * 300_000 + b"0]}", TooLarge),
        (json.dumps({**LARGE, "port": "80", "nmae": 1}).encode(), ValidationFailed),
    ],
)
async def test_an_error_is_the_same_as_in_this_process(body: bytes, kind: type[BuilderdError]) -> None:
    with pytest.raises(kind) as there:
        await take_apart(NewBuilder, Body(body), CONTEXT)
    with pytest.raises(kind) as here:
        body_parser.take(NewBuilder, body, CONTEXT)
    assert there.value.message == here.value.message
    assert getattr(there.value, "errors", None) == getattr(here.value, "errors", None)


async def test_a_process_that_takes_too_long_is_killed_and_a_fault_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(body_parser, "PARSE_SECONDS", 0.01)
    with pytest.raises(MachineFault) as fault:
        await take_apart(NewBuilder, Body(json.dumps(LARGE).encode()), CONTEXT)
    assert fault.value.retry_after


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
