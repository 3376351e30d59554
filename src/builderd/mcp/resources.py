"""Resources: what an agent reads of a deployment without a tool."""

from __future__ import annotations

from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError
from mcp_types import CallToolResult, TextContent

from builderd.client.errors import BuilderdError, NotFound
from builderd.mcp.calls import AnyContext, Call, Connect, Tool
from builderd.mcp.tools import files, gates, running

BASE = "builderd://deployments/{deployment}"


def add_resources(server: MCPServer[Any], connect: Connect) -> None:
    """Add the resources of a deployment: its log, review, QA report and files."""

    async def read(ctx: AnyContext, tool: Tool, **arguments: Any) -> str:
        try:
            async with connect(ctx) as client:
                return _text(await tool(Call(client, ctx), **arguments))
        except NotFound as error:
            raise ResourceNotFoundError(error.message) from error
        except BuilderdError as error:
            raise ResourceError(error.message) from error

    @server.resource(f"{BASE}/logs", title="Log", mime_type="text/plain")
    async def logs(deployment: str, ctx: Context) -> str:
        """Last lines of the app's output, marked as data."""
        return await read(ctx, running.get_logs, deployment=deployment)

    @server.resource(f"{BASE}/review", title="Review", mime_type="text/plain")
    async def review(deployment: str, ctx: Context) -> str:
        """Findings of the review of the current version."""
        return await read(ctx, gates.get_review, deployment=deployment)

    @server.resource(f"{BASE}/qa", title="QA report", mime_type="text/plain")
    async def qa(deployment: str, ctx: Context) -> str:
        """Verdict and checks of the current version."""
        return await read(ctx, gates.get_qa_report, deployment=deployment, screenshots=False)

    @server.resource(f"{BASE}/files/{{+path}}", title="File", mime_type="text/plain")
    async def file(deployment: str, path: str, ctx: Context) -> str:
        """File on the disk, marked as data."""
        return await read(ctx, files.read_file, deployment=deployment, path=path)


def _text(shown: CallToolResult) -> str:
    return "\n".join(block.text for block in shown.content if isinstance(block, TextContent))
