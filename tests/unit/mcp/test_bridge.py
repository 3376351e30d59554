"""The bridge of ``builderd mcp``: headers, retries, cancellation, and what an agent reads when the service fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest

from builderd.mcp import stdio
from builderd.mcp.stdio import Bridge

URL = "http://service"
REVISION = {"_meta": {stdio.REVISION_KEY: "2026-07-28"}}
TOOLS = [
    {"name": "look", "annotations": {"readOnlyHint": True}},
    {"name": "deploy", "inputSchema": {"properties": {"idempotency_key": {}}}},
    {"name": "run", "annotations": {"readOnlyHint": False}},
]


class Stream(httpx2.AsyncByteStream):
    """Event stream of a response; it breaks off or stays open at its end."""

    def __init__(self, *events: dict[str, Any], breaks: bool = False, stays: bool = False) -> None:
        self._events, self._breaks, self._stays = events, breaks, stays
        self.closed = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for event in self._events:
            yield f"event: message\r\ndata: {json.dumps(event)}\r\n\r\n".encode()
        if self._breaks:
            raise httpx2.ReadError("connection reset")
        if self._stays:
            await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.closed.set()


Answer = httpx2.Response | Exception


class Service(httpx2.AsyncBaseTransport):
    """Service that gives the answers of a list, one a request; it keeps the requests."""

    def __init__(self, *answers: Answer | Callable[[httpx2.Request], Answer]) -> None:
        self._answers = list(answers)
        self.requests: list[httpx2.Request] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await request.aread()
        self.requests.append(request)
        answer = self._answers.pop(0)
        answer = answer(request) if callable(answer) else answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def keys(self) -> list[str]:
        return [one.headers["idempotency-key"] for one in self.requests]


def events(*sent: dict[str, Any], **options: bool) -> httpx2.Response:
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Stream(*sent, **options))


def answered(request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, json={"jsonrpc": "2.0", "id": json.loads(request.content)["id"], "result": {}})


def listed(request: httpx2.Request) -> httpx2.Response:
    answer = {"jsonrpc": "2.0", "id": json.loads(request.content)["id"], "result": {"tools": TOOLS}}
    return httpx2.Response(200, json=answer)


def refused(status: int, code: str, **headers: str) -> httpx2.Response:
    return httpx2.Response(status, json={"code": code, "message": f"refused: {code}."}, headers=headers)


def progress(value: float) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progress": value, "progressToken": 1}}


def call(tool: str, **more: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": {"name": tool, "arguments": {}, **more}}


def request(method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


async def passed_on(service: Service, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    got: list[dict[str, Any]] = []
    async with httpx2.AsyncClient(base_url=URL, transport=service) as http:
        bridge = Bridge(http, got.append)
        for one in requests:
            await bridge.forward(one)
    return got


def failure_of(message: dict[str, Any]) -> dict[str, Any]:
    assert message["result"]["isError"] is True
    assert message["result"]["resultType"] == "complete"
    failure: dict[str, Any] = json.loads(message["result"]["content"][0]["text"])
    return failure


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdio, "wait_before", lambda *_: 0.0)
    monkeypatch.setattr(stdio, "RESTART_SECONDS", 0.0)


async def test_a_request_of_2026_repeats_its_fields_in_headers() -> None:
    service = Service(answered, answered)
    names = ("look", "größe\n")
    await passed_on(service, *(call(name, **REVISION) for name in names))
    first, second = (one.headers for one in service.requests)
    assert (first["mcp-protocol-version"], first["mcp-method"], first["mcp-name"]) == (
        "2026-07-28",
        "tools/call",
        "look",
    )
    assert second["mcp-name"] == "=?base64?Z3LDtsOfZQo=?="
    assert json.loads(service.requests[1].content)["params"]["name"] == "größe\n"


async def test_after_initialize_its_revision_and_the_agents_name_are_sent() -> None:
    def initialized(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json={"jsonrpc": "2.0", "id": 1, "result": {"protocolVersion": "2025-11-25"}})

    service = Service(initialized, answered)
    await passed_on(service, request("initialize", clientInfo={"name": "my/agent\r\nX: y"}), request("tools/list"))
    first, second = (one.headers for one in service.requests)
    assert "mcp-protocol-version" not in first
    assert second["mcp-protocol-version"] == "2025-11-25"
    assert second["user-agent"] == "my agent X y/builderd-mcp"


@pytest.mark.parametrize(
    "broken", [httpx2.ConnectError("refused"), refused(503, "unavailable", **{"retry-after": "1"})]
)
async def test_a_request_that_the_service_has_not_begun_is_sent_again(broken: Answer) -> None:
    service = Service(broken, answered)
    (answer,) = await passed_on(service, call("run"))
    assert answer["result"] == {}
    assert len(set(service.keys)) == 1


async def test_a_broken_call_is_repeated_with_its_key_where_that_does_no_harm() -> None:
    service = Service(listed, events(progress(1), progress(2), breaks=True), lambda _: again)
    again = events(progress(1), progress(3), {"jsonrpc": "2.0", "id": 5, "result": {"done": True}})
    got = await passed_on(service, request("tools/list"), call("deploy"))
    assert [stdio.progress_of(one) for one in got[1:-1]] == [1, 2, 3]
    assert got[-1]["result"] == {"done": True}
    assert service.keys[1] == service.keys[2] != service.keys[0]


@pytest.mark.parametrize("broken", [httpx2.ReadError("reset"), httpx2.ReadTimeout("silence")])
async def test_a_command_is_never_run_twice(broken: Exception) -> None:
    service = Service(listed, broken, answered)
    *_, answer = await passed_on(service, request("tools/list"), call("run"))
    failure = failure_of(answer)
    assert failure["code"] == "no_answer"
    assert "builderd doctor --client" in failure["next_step"]
    assert len(service.requests) == 2


@pytest.mark.parametrize("name", [[], {}, None, 7])
async def test_a_tool_whose_name_is_no_text_is_answered(name: object) -> None:
    (answer,) = await passed_on(Service(answered), request("tools/call", name=name))
    assert answer["id"] == 1


async def test_a_stream_without_an_answer_is_a_broken_connection() -> None:
    _, answer = await passed_on(Service(*(events(progress(1)) for _ in range(3))), request("tools/list"))
    assert answer["error"]["code"] == stdio.NO_ANSWER


async def test_refusals_of_http_are_results_of_tools_and_errors_of_other_requests() -> None:
    service = Service(*(refused(401, "unauthenticated") for _ in range(2)))
    of_tool, other = await passed_on(service, call("look"), request("tools/list"))
    failure = failure_of(of_tool)
    assert failure["code"] == "unauthenticated"
    assert "ask the user" in failure["next_step"]
    assert other["error"]["data"]["code"] == "unauthenticated"
    assert "ask the user" in other["error"]["message"]


@pytest.mark.parametrize(
    "strange",
    [
        httpx2.Response(200, text="<html>"),
        httpx2.Response(307, headers={"location": "https://else.where/mcp"}),
        httpx2.Response(404, text="<html>not here"),
        refused(404, "not_found"),
    ],
)
async def test_a_server_that_is_no_builderd_is_named_with_its_url(strange: httpx2.Response) -> None:
    (answer,) = await passed_on(Service(strange), request("tools/list"))
    assert URL in answer["error"]["message"]
    assert "check the URL" in answer["error"]["message"]


async def test_a_proxy_before_a_restarting_service_is_asked_again() -> None:
    service = Service(httpx2.Response(502, text="<html>Bad Gateway"), answered)
    (answer,) = await passed_on(service, request("tools/list"))
    assert answer["result"] == {}


async def test_an_error_of_the_protocol_passes_with_the_id_of_its_request() -> None:
    error = {"code": -32602, "message": "no"}
    service = Service(httpx2.Response(400, json={"jsonrpc": "2.0", "id": None, "error": error}))
    assert await passed_on(service, call("look")) == [{"jsonrpc": "2.0", "id": 5, "error": error}]


async def test_a_cancelled_call_closes_its_connection_and_is_not_answered() -> None:
    got: list[Any] = []
    stream = Stream(progress(1), stays=True)
    service = Service(httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=stream))
    async with httpx2.AsyncClient(base_url=URL, transport=service) as http:
        task = asyncio.create_task(Bridge(http, got.append).forward(call("run")))
        while not got:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait_for(stream.closed.wait(), 10)
    assert [stdio.progress_of(one) for one in got] == [1]


async def test_texts_that_are_no_valid_unicode_reach_the_service_unchanged() -> None:
    service = Service(answered)
    await passed_on(service, call("look\ud800", **REVISION))
    assert json.loads(service.requests[0].content)["params"]["name"] == "look\ud800"
