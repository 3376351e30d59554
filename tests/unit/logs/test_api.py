"""The last lines, and each line as it is written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from tests.fakes.sandboxes import Behaviour
from tests.service import MINIMAL, Service, listening

from builderd.core.errors import EngineUnavailable
from builderd.core.ids import SandboxId
from builderd.logs import api as door
from builderd.logs import service as logs
from builderd.sandboxes.model import LogLine, LogPiece, LogStream
from builderd.schemas import monitoring as wire
from builderd.server import streams

BUILDERS = "/api/v1/builders"


@pytest.fixture
async def path(client: httpx.AsyncClient, service: Service) -> str:
    service.engine.behave(MINIMAL["entrypoint"], Behaviour(lines=("one", "two")))
    uuid = (await client.post(BUILDERS, json=MINIMAL)).json()["data"]["uuid"]
    return f"{BUILDERS}/{uuid}/logs"


def sandbox(service: Service) -> SandboxId:
    (only,) = service.engine.known
    return only


async def test_a_line_has_its_time_stream_version_and_text(client: httpx.AsyncClient, path: str) -> None:
    first = (await client.get(path)).json()["data"][0]
    assert {key: first[key] for key in ("stream", "version", "text")} == {
        "stream": "stdout",
        "version": 1,
        "text": "one",
    }
    assert datetime.fromisoformat(first["time"]).utcoffset() == timedelta(0)


async def test_an_answer_says_how_many_lines_it_has(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert list(response.json()) == ["success", "data", "message"]
    assert response.json()["message"] == "2 lines."
    assert response.headers["content-type"] == "application/json"
    assert (await client.get(path, params={"tail": 0})).json() == {"success": True, "data": [], "message": "0 lines."}


async def test_a_large_answer_is_made_while_it_is_taken(
    real: httpx.AsyncClient, service: Service, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, count = door._present, 0

    def counted(line: logs.VersionedLine) -> wire.LogLine:
        nonlocal count
        count += 1
        return shown(line)

    monkeypatch.setattr(door, "_present", counted)
    # More than what the kernel takes for a client that does not read.
    service.engine.print(sandbox(service), *["x" * 10_000] * 5_000)
    async with real.stream("GET", path, params={"tail": 5_000}) as response:
        await asyncio.sleep(0.5)
        assert 0 < count < 5_000
        text = "".join([piece async for piece in response.aiter_text()])
    assert [line["text"] for line in json.loads(text)["data"]] == ["x" * 10_000] * 5_000


async def test_error_before_the_first_line_has_its_status(
    client: httpx.AsyncClient, service: Service, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def search_log(*_: Any, **__: Any) -> LogPiece:
        raise EngineUnavailable("The disk is gone.")

    monkeypatch.setattr(service.engine, "search_log", search_log)
    response = await client.get(path)
    assert (response.status_code, response.json()["code"]) == (503, "engine_unavailable")


# Following


class Follower:
    """Reads the events of a stream as they come."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()
        self.last_id = ""

    async def texts(self, count: int) -> list[str]:
        return [await self._text() for _ in range(count)]

    async def _text(self) -> str:
        async for line in self._lines:
            if line.startswith("data: "):
                text: str = json.loads(line[6:])["text"]
                self.last_id = (await anext(self._lines)).removeprefix("id: ")
                return text
        raise EOFError


@pytest.fixture
async def real(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """Over a real connection: in memory a stream would have to end before it is read."""
    async with listening(service.app) as url:
        client = service.client(service.write, url)
        yield client
        await client.aclose()


async def test_lines_are_followed_as_they_are_written(real: httpx.AsyncClient, service: Service, path: str) -> None:
    async with real.stream("GET", path, params={"follow": True, "tail": 1}) as response:
        assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
        follower = Follower(response)
        assert await follower.texts(1) == ["two"]
        service.engine.print(sandbox(service), "three", "four")
        assert await follower.texts(2) == ["three", "four"]


async def test_log_stream_resumes_after_last_event_id(real: httpx.AsyncClient, service: Service, path: str) -> None:
    async with real.stream("GET", path, params={"follow": True}) as response:
        follower = Follower(response)
        assert await follower.texts(1) == ["one"]
    service.engine.print(sandbox(service), "three")
    headers = {"Last-Event-ID": follower.last_id}
    async with real.stream("GET", path, params={"follow": True, "tail": 0}, headers=headers) as response:
        assert await Follower(response).texts(2) == ["two", "three"]


@pytest.mark.parametrize("event_id", ["", "0-0"])
async def test_a_stream_may_go_on_after_nothing(real: httpx.AsyncClient, path: str, event_id: str) -> None:
    headers = {"Last-Event-ID": event_id}
    async with real.stream("GET", path, params={"follow": True}, headers=headers) as response:
        assert await Follower(response).texts(2) == ["one", "two"]


@pytest.mark.parametrize("event_id", ["x", "9" * 18 + "-1", "1-", "-1-1", "7", "\u0661-\u0661"])
async def test_an_event_id_that_is_none_is_refused(real: httpx.AsyncClient, path: str, event_id: str) -> None:
    headers = [(b"Last-Event-ID", event_id.encode())]
    async with real.stream("GET", path, params={"follow": True}, headers=headers) as response:
        assert response.status_code == 422
        await response.aread()
    assert list(response.json()["errors"]) == ["Last-Event-ID"]


async def test_a_stream_ends_with_its_builder(real: httpx.AsyncClient, path: str) -> None:
    async with real.stream("GET", path, params={"follow": True, "tail": 0}) as response:
        await real.delete(path.removesuffix("/logs"))
        with pytest.raises(EOFError):
            await Follower(response).texts(1)


async def test_a_stream_ends_with_its_token(
    real: httpx.AsyncClient, service: Service, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.05)
    async with real.stream("GET", path, params={"follow": True, "tail": 0}) as response:
        await service.revoke(service.write)
        async with asyncio.timeout(30):
            with pytest.raises(EOFError):
                await Follower(response).texts(1)


async def test_a_tenant_has_so_many_streams_and_gets_them_back(
    real: httpx.AsyncClient, service: Service, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.app.state.operations.log_streams, "maximum", 1)
    async with real.stream("GET", path, params={"follow": True}) as response:
        follower = Follower(response)
        await follower.texts(1)
        refused = await real.get(path, params={"follow": True})
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    async with asyncio.timeout(30):
        while service.app.state.operations.log_streams.total():
            await asyncio.sleep(0.01)


async def test_density_counts_lines_and_errors_over_time(
    client: httpx.AsyncClient, path: str, service: Service
) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    streams_of = [LogStream.STDERR if number % 4 == 0 else LogStream.STDOUT for number in range(40)]
    service.engine.known_logs[sandbox(service)][1][:] = [
        LogLine(start + timedelta(seconds=number // 20 * 100), stream, f"line {number}")
        for number, stream in enumerate(streams_of)
    ]
    data = (await client.get(f"{path}/density", params={"buckets": 10, "stream": "stdout"})).json()["data"]
    assert (data["lines"], data["bucket_seconds"]) == (30, 10.0)
    assert [one["lines"] for one in data["buckets"]] == [15, *[0] * 8, 15]
    data = (await client.get(f"{path}/density", params={"buckets": 2})).json()["data"]
    assert [(one["lines"], one["errors"]) for one in data["buckets"]] == [(20, 5), (20, 5)]
    assert [one["version"] for one in data["versions"]] == [1]
    assert (await client.get(f"{path}/density", params={"search": "nothing"})).json()["data"]["buckets"] == []
