"""No argument of a tool leads to another resource: each text of each tool gets hostile ones."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from mcp import MCPError
from tests.agents import Agent
from tests.hostile_paths import HOSTILE, strays
from tests.unit.client.openapi import Operation

from builderd.mcp.http import InProcess
from builderd.mcp.tools import TOOLS

SAMPLES = {"content": "x", "command": "true", "values": {"KEY": "secret"}, "path": "data.txt", "minutes": 5}


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[httpx2.Request]:
    """Requests of the tools to the API."""
    found: list[httpx2.Request] = []
    send = InProcess.handle_async_request

    async def recorded(self: InProcess, request: httpx2.Request) -> httpx2.Response:
        if request.url.path != "/mcp":
            found.append(request)
        return await send(self, request)

    monkeypatch.setattr(InProcess, "handle_async_request", recorded)
    return found


@pytest.mark.parametrize("entry", TOOLS, ids=lambda entry: entry.tool.__name__)
async def test_no_argument_leads_to_another_resource(writer: Agent, requests: list[httpx2.Request], entry: Any) -> None:
    await writer.done("deploy_code", name="own", files={"main.py": "x"}, entrypoint="python3 main.py")
    await writer.done("write_file", deployment="own", path="data.txt", content="x")
    tools = {tool.name: tool.input_schema for tool in (await writer.client.list_tools()).tools}
    schema = tools[entry.tool.__name__]
    own: set[Operation | None] = {
        (method, f"/api/v1{path}") for method, _, path in (one.partition(" ") for one in entry.operations)
    }
    required = {name: SAMPLES.get(name, "own") for name in schema.get("required", ())}
    for name in schema["properties"].keys() & {"deployment", "name", "path", "upload_id", "root", "cwd"}:
        for value in HOSTILE:
            requests.clear()
            await writer.call(entry.tool.__name__, **{**required, name: value})
            assert not strays(requests, own), (name, value)


@pytest.mark.parametrize("tool", ["read_file", "write_file"])
async def test_a_path_is_refused_before_anything_is_sent(
    writer: Agent, requests: list[httpx2.Request], tool: str
) -> None:
    more = {"content": "x"} if tool == "write_file" else {}
    result = await writer.call(tool, deployment="own", path="../../../credentials/prod", **more)
    assert result.is_error
    assert "must not contain .." in str(result.content)
    assert requests == []


@pytest.mark.parametrize("path", ["../../../credentials/prod", "%2e%2e/%2e%2e/x", "a/../b"])
async def test_no_resource_leads_elsewhere(writer: Agent, requests: list[httpx2.Request], path: str) -> None:
    await writer.done("deploy_code", name="own", files={"main.py": "x"}, entrypoint="python3 main.py")
    requests.clear()
    with pytest.raises(MCPError):
        await writer.client.read_resource(f"builderd://deployments/own/files/{path}")
    assert not strays(requests, {("GET", "/api/v1/builders")})
