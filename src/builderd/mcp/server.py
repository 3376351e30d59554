"""The server: tools, resources, prompts and instructions, for any transport."""

from __future__ import annotations

from typing import Any

from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings

from builderd import __version__
from builderd.agents import section
from builderd.mcp.app_data import NOTICE
from builderd.mcp.calls import Connect, bind
from builderd.mcp.prompts import add_prompts
from builderd.mcp.resources import add_resources
from builderd.mcp.tools import TOOLS

INTRODUCTION = """\
builderd turns code into running, isolated apps with a live URL. Tools call an app a deployment.

Deploy with deploy_code. When it fails, the result says the stage, the reason, the app's output and the next step:
mend the code and deploy again. When it is up, look at get_qa_report with its screenshots. Change what runs with
redeploy. Delete only what the user has agreed to delete.
"""


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


def no_host_check() -> TransportSecuritySettings:
    """Return settings that accept any ``Host``: without them the library accepts only loopback's names."""
    return TransportSecuritySettings(enable_dns_rebinding_protection=False)
