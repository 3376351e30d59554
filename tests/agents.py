"""Agents: clients of the MCP server, as language models use it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent
from tests.service import Service, running_service

from builderd.mcp.http import InProcess, McpEndpoint

URL = "http://builderd/mcp"


@dataclass(slots=True)
class Agent:
    """Client of the server. ``progress`` has the messages of its last call."""

    client: Client
    progress: list[str] = field(default_factory=list)

    async def call(self, tool: str, **arguments: Any) -> CallToolResult:
        self.progress.clear()

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            self.progress.append(message or "")

        result = await self.client.call_tool(tool, arguments, progress_callback=on_progress)
        assert isinstance(result, CallToolResult)
        return result

    async def done(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Return the structured result of a call that succeeds."""
        result = await self.call(tool, **arguments)
        assert not result.is_error, text_of(result)
        structured: dict[str, Any] | None = result.structured_content
        assert structured is not None
        return structured

    async def refused(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Return the failure of a call that does not succeed."""
        result = await self.call(tool, **arguments)
        assert result.is_error, text_of(result)
        text = text_of(result)
        failure: dict[str, Any] = json.loads(text[text.index("{") :])
        return failure


def text_of(result: CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if isinstance(block, TextContent))


@asynccontextmanager
async def service_with_mcp(**limits: Any) -> AsyncIterator[Service]:
    async with running_service(**limits) as service, McpEndpoint(service.app):
        yield service


@asynccontextmanager
async def agent(service: Service, token: str, mode: str = "auto", url: str | None = None) -> AsyncIterator[Agent]:
    """An agent over HTTP: in memory, or at the ``url`` where the service listens."""
    transport = None if url else InProcess(service.app)
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(transport=transport, headers=headers, timeout=None, trust_env=False) as http:
        target = streamable_http_client(f"{url}/mcp" if url else URL, http_client=http)
        async with Client(target, mode=mode) as client:
            yield Agent(client)
