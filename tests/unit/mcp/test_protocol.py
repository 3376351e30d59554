"""Both revisions of the protocol on one endpoint, tokens and limits as those of the API."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx2
import pytest
from tests.agents import Agent, agent
from tests.document import DOCUMENT
from tests.service import Service

from builderd.mcp.http import InProcess
from builderd.mcp.tools import TOOLS
from builderd.server.rates import Rates

CODE = {"main.py": "print('hello')\n"}


@pytest.mark.parametrize("token", [None, "bd_unknown"])
async def test_a_call_without_a_valid_token_is_refused_as_by_the_api(service: Service, token: str | None) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx2.AsyncClient(transport=InProcess(service.app), headers=headers) as http:
        answer = await http.post("http://builderd/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
        assert answer.status_code == 401
        assert answer.json()["code"] == "unauthenticated"
        assert (await http.get("http://builderd/mcp")).status_code == 405


async def test_too_large_a_message_is_refused_unread(service: Service) -> None:
    headers = {"Authorization": f"Bearer {service.write}"}
    async with httpx2.AsyncClient(transport=InProcess(service.app), headers=headers) as http:
        answer = await http.post("http://builderd/mcp", content=b" " * 4_000_001)
        assert answer.status_code == 413
        assert answer.json()["code"] == "too_large"


async def test_a_token_that_may_read_cannot_write(service: Service) -> None:
    async with agent(service, service.read) as one:
        assert (await one.done("list_deployments"))["total"] == 0
        refused = await one.refused("deploy_code", name="hello", files=CODE, entrypoint="x")
        assert refused["code"] == "forbidden"
        assert "ask the user" in refused["next_step"]


async def test_calls_of_tools_count_against_the_rate_of_the_token(service: Service) -> None:
    async with agent(service, service.write) as one:
        await one.done("list_deployments")
        service.app.state.rates = Rates(requests=2)
        # The message, and the first of the tool's two calls.
        refused = await one.refused("get_spending")
        assert refused["code"] == "rate_limited"
        assert refused["retry_after_seconds"] > 0


async def test_a_tenant_sees_nothing_of_another(service: Service) -> None:
    async with agent(service, service.write) as one, agent(service, service.other) as other:
        made = await one.done("deploy_code", name="hello", files=CODE, entrypoint="python3 main.py")
        assert (await other.done("list_deployments"))["total"] == 0
        for name in ("hello", made["uuid"]):
            assert (await other.refused("get_deployment", deployment=name))["code"] == "not_found"


#: The issue's names, which clients of the hosted service know.
NAMES = {
    *("deploy_code", "redeploy", "list_deployments", "get_deployment", "rollback_deployment", "delete_deployment"),
    *("start_deployment", "stop_deployment", "restart_deployment", "set_auto_stop"),
    *("get_deployment_files", "read_file", "write_file", "get_logs", "exec_command", "create_ssh"),
    *("review_deployment", "get_review", "test_deployment", "get_qa_report"),
    *("create_upload_link", "store_credentials", "list_credentials", "get_spending"),
}
#: Operations that no tool calls, and why.
LEFT_OUT = {
    r"GET /(healthz|readyz|metrics)": "for the operator's monitoring",
    r".* /tokens.*": "an agent must not make itself access",
    r".* /webhooks.*": "would send events to any address",
    r".*/spending-cap": "limits are the user's to set; the tenant's cap is shown by get_spending",
    r".*/backups.*": "the service takes backups by itself; restoring is the user's decision",
    r".*/preview-links.*": "whom a private preview is shown to is the user's decision",
    r"GET .*/ports/\{port\}/preview-url": "it is the preview's URL with the port and -- before its host",
    r".*/leases.*": "for programs that work beside an app",
    r".*/service-token": "would show a secret",
    r"PATCH /builders/\{uuid\}": "redeploy changes settings too",
    r"POST .*/review/accept": "a person accepts a finding",
    r"GET .*/(metrics|events|terminal|archive|logs/density)": "streams and series, which no model reads",
    r".*/domains.*": "a person changes DNS records for a host name of their own",
    r"GET .*/(diff|patch)/\{new\}": "an agent has the files that it sent",
    r"DELETE .*/build-cache": "frees space of the user's quota, at the cost of slow rollbacks",
    r"GET /spending/days": "streams and series, which no model reads",
    r"GET /events": "streams and series, which no model reads",
    r"(DELETE .*/files/\{path\})": "exec_command removes files",
    r"(GET|DELETE) .*/ssh|POST .*/ssh/recreate": "a grant ends by itself",
    r"(PUT|GET|DELETE) /uploads/\{upload_id\}": "curl sends to the link",
    r"(POST /credentials|DELETE /credentials/\{name\})": "store_credentials makes them; a person deletes them",
}


def operations() -> set[str]:
    return {
        f"{method.upper()} {path.removeprefix('/api/v1')}"
        for path, methods in DOCUMENT["paths"].items()
        for method in methods
        if method in {"get", "put", "post", "patch", "delete"}
    }


def test_the_tools_are_those_that_clients_know() -> None:
    assert {entry.tool.__name__ for entry in TOOLS} == NAMES
    assert len(TOOLS) <= 25


def test_each_operation_is_called_by_a_tool_or_left_out_with_a_reason() -> None:
    called = {operation for entry in TOOLS for operation in entry.operations}
    assert not called - operations()
    unexplained = {one for one in operations() - called if not any(re.fullmatch(pattern, one) for pattern in LEFT_OUT)}
    assert not unexplained
    assert not [pattern for pattern in LEFT_OUT if not any(re.fullmatch(pattern, one) for one in operations())]


async def test_each_tool_has_a_description_an_output_schema_and_hints(writer: Agent) -> None:
    tools = {tool.name: tool for tool in (await writer.client.list_tools()).tools}
    assert set(tools) == NAMES
    for entry in TOOLS:
        tool = tools[entry.tool.__name__]
        assert tool.output_schema
        assert tool.description
        assert tool.annotations is not None
        reads_only = all(operation.startswith("GET ") for operation in entry.operations)
        assert tool.annotations.read_only_hint == reads_only, tool.name
    destructive = {name for name, tool in tools.items() if tool.annotations and tool.annotations.destructive_hint}
    assert destructive == {"delete_deployment", "write_file", "store_credentials", "exec_command"}


RUN = "python3 main.py"


async def test_a_body_arrives_piece_by_piece() -> None:
    more = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await more.wait()
        await send({"type": "http.response.body", "body": b"two"})

    async with httpx2.AsyncClient(transport=InProcess(app), base_url="http://x") as client:
        async with client.stream("GET", "/") as answer:
            pieces = answer.aiter_raw()
            assert await anext(pieces) == b"one"
            more.set()
            assert await anext(pieces) == b"two"


async def test_a_caller_that_is_cancelled_disconnects_and_the_app_goes_on() -> None:
    seen: list[str] = []
    begun, over = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        begun.set()
        seen.append((await receive())["type"])
        for _ in range(20):  # nobody reads it, and nothing blocks
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        over.set()

    async with httpx2.AsyncClient(transport=InProcess(app), base_url="http://x") as client:
        call = asyncio.create_task(client.post("/", content=b"1"))
        await begun.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await asyncio.wait_for(over.wait(), 30)
    assert seen == ["http.disconnect"]


@pytest.mark.parametrize(("after", "tries"), [("0", 3), ("6", 1), ("Wed, 21 Oct 2026 07:28:00 GMT", 1)])
async def test_a_refusal_is_waited_for_only_where_it_ends_within_moments(after: str, tries: int) -> None:
    bodies: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        bodies.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 429, "headers": [(b"retry-after", after.encode())]})
        await send({"type": "http.response.body", "body": b"{}"})

    async with httpx2.AsyncClient(transport=InProcess(app), base_url="http://x") as client:
        assert (await client.post("/", content=b"sent")).status_code == 429
    assert bodies == [b"sent"] * tries


async def test_an_app_without_an_answer_is_a_transport_error() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/raises":
            raise RuntimeError("broken")

    async with httpx2.AsyncClient(transport=InProcess(app), base_url="http://x") as client:
        for path in ("/raises", "/silent"):
            with pytest.raises(httpx2.TransportError):
                await client.get(path)


async def test_a_cancelled_deployment_is_left_whole(service: Service) -> None:
    async with agent(service, service.write) as one:
        call = asyncio.create_task(one.call("deploy_code", name="hello", files=CODE, entrypoint=RUN))
        while not (await service.client(service.read).get("/api/v1/builders")).json()["data"]:
            await asyncio.sleep(0.005)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        again = await one.done("deploy_code", name="hello", files=CODE, entrypoint=RUN)
        assert again["status"] == "running"
        assert (await one.done("list_deployments"))["total"] == 1
