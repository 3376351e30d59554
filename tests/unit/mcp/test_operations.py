"""The table tool → operations agrees with the OpenAPI document, and each tool has its schema and hints."""

from __future__ import annotations

import re

from tests.agents import Agent
from tests.document import DOCUMENT

from builderd.mcp.tools import TOOLS

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
