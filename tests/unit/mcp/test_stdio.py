"""``builderd mcp`` as agents run it: a process of its own before a service that listens."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from tests.agents import Agent, service_with_mcp
from tests.service import Service, listening

SRC = str(Path(__file__).parents[3] / "src")
CODE = {"main.py": "print('hello')\n"}
RUN = "python3 main.py"
COMMAND = (sys.executable, "-m", "builderd", "mcp")
HANDSHAKE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "my agent/x", "version": "1"},
    },
}


def environment(url: str, token: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": SRC, "BUILDERD_URL": url, "BUILDERD_TOKEN": token}


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with service_with_mcp() as running:
        yield running


@asynccontextmanager
async def beside(service: Service, mode: str = "auto") -> AsyncIterator[Agent]:
    async with listening(service.app) as url:
        parameters = StdioServerParameters(
            command=COMMAND[0], args=list(COMMAND[1:]), env=environment(url, service.write)
        )
        async with Client(parameters, mode=mode) as client:
            yield Agent(client)


async def lines(service: Service, *sent: Any) -> list[dict[str, Any]]:
    """Send lines as they are, close the input, and return what was answered."""
    async with listening(service.app) as url:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, env=environment(url, service.write), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in sent)
        output, _ = await process.communicate(text.encode())
        assert process.returncode == 0
        return [json.loads(line) for line in output.splitlines()]


@pytest.mark.parametrize(("mode", "revision"), [("auto", "2026-07-28"), ("legacy", "2025-11-25")])
async def test_an_agent_deploys_in_either_revision(service: Service, mode: str, revision: str) -> None:
    async with beside(service, mode) as one:
        assert one.client.protocol_version == revision
        assert len((await one.client.list_tools()).tools) == 24
        made = await one.done("deploy_code", name="hello", files=CODE, entrypoint=RUN)
        assert made["status"] == "running"
        assert [message.split()[0] for message in one.progress] == ["review", "install", "start", "qa"]
        assert (await one.refused("get_deployment", deployment="nowhere"))["code"] == "not_found"
        logs = await one.client.read_resource("builderd://deployments/hello/logs")
        assert logs.contents
        assert len((await one.client.list_prompts()).prompts) == 3
    events = (await service.client(service.read).get("/api/v1/events?type=builder.created")).json()["data"]
    assert [event["actor"] for event in events] == ["token test (mcp mcp)"]


async def test_lines_that_are_no_messages_are_answered_with_errors(service: Service) -> None:
    got = await lines(service, "{", "[1]", "", '{"jsonrpc": "2.0", "id": 7, "method": "nothing/known"}')
    codes = {one["error"]["code"]: one["id"] for one in got}
    assert codes == {-32700: None, -32600: None, -32601: 7}


async def test_a_piped_session_is_answered_to_its_end(service: Service) -> None:
    initialized = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    listing = {"jsonrpc": "2.0", "id": "a", "method": "tools/list"}
    got = {one["id"]: one for one in await lines(service, HANDSHAKE, initialized, listing)}
    assert got[1]["result"]["protocolVersion"] == "2025-11-25"
    assert len(got["a"]["result"]["tools"]) == 24


def test_the_bridge_imports_neither_the_library_nor_models() -> None:
    program = "import sys, builderd.mcp.stdio, builderd.cli.apps.mcp; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    tops = {name.partition(".")[0] for name in done.stdout.split()}
    assert "httpx2" in tops
    assert not tops & {"mcp", "mcp_types", "pydantic", "fastapi", "starlette"}
