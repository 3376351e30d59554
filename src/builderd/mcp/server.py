"""The server: tools, resources, prompts and instructions, for any transport."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError
from mcp_types import TextContent

from builderd import __version__
from builderd.agents import section
from builderd.client.errors import BuilderdError, NotFound
from builderd.mcp.calls import AnyContext, Call, Connect, Tool, bind
from builderd.mcp.results import NOTICE
from builderd.mcp.tools import TOOLS, files, running

INTRODUCTION = """\
builderd turns code into running, isolated apps with a live URL. Tools call an app a deployment.

Deploy with deploy_code. When it fails, the result says the stage, the reason, the app's output and the next step:
mend the code and deploy again. When it is up, look at get_qa_report with its screenshots. Change what runs with
redeploy. Delete only what the user has agreed to delete.
"""

#: Texts of the prompts, with their arguments in braces.
PROMPTS: dict[str, str] = tomllib.loads(Path(__file__).with_name("prompts.toml").read_text())


def make_server(connect: Connect) -> MCPServer[Any]:
    """Return a server whose tools act through the client that ``connect`` opens for each call."""
    server: MCPServer[Any] = MCPServer(
        "builderd",
        title="builderd",
        version=__version__,
        instructions=f"{INTRODUCTION}\n{NOTICE}\n\n{section('What an app must do')}",
        log_level="WARNING",
    )
    for entry in TOOLS:
        server.add_tool(bind(entry.tool, connect), title=entry.title, annotations=entry.hints)
    add_resources(server, connect)
    add_prompts(server)
    return server


def add_prompts(server: MCPServer[Any]) -> None:
    """Add the prompts to a server."""

    @server.prompt(title="Deploy this folder")
    def deploy_this_folder(name: str, folder: str = ".") -> str:
        """Deploy the code in a folder and show that it works."""
        return PROMPTS["deploy_this_folder"].format(name=name, folder=folder)

    @server.prompt(title="Why does it fail?")
    def why_does_it_fail(deployment: str) -> str:
        """Find out why a deployment fails, without changing it."""
        return PROMPTS["why_does_it_fail"].format(deployment=deployment)

    @server.prompt(title="Make it pass its gates")
    def make_it_pass_its_gates(deployment: str) -> str:
        """Mend a deployment until its review and QA pass."""
        return PROMPTS["make_it_pass_its_gates"].format(deployment=deployment)


BASE = "builderd://deployments/{deployment}"


def add_resources(server: MCPServer[Any], connect: Connect) -> None:
    """Add the resources of a deployment: its log, review, QA report and files."""

    async def read(ctx: AnyContext, tool: Tool, **arguments: Any) -> str:
        try:
            async with connect(ctx) as client:
                return "\n".join(
                    block.text
                    for block in (await tool(Call(client, ctx), **arguments)).content
                    if isinstance(block, TextContent)
                )
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
        return await read(ctx, running.get_review, deployment=deployment)

    @server.resource(f"{BASE}/qa", title="QA report", mime_type="text/plain")
    async def qa(deployment: str, ctx: Context) -> str:
        """Verdict and checks of the current version."""
        return await read(ctx, running.get_qa_report, deployment=deployment, screenshots=False)

    @server.resource(f"{BASE}/files/{{+path}}", title="File", mime_type="text/plain")
    async def file(deployment: str, path: str, ctx: Context) -> str:
        """File on the disk, marked as data."""
        return await read(ctx, files.read_file, deployment=deployment, path=path)
