"""Tools for what runs: logs, commands, SSH."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from mcp_types import CallToolResult
from pydantic import Field

from builderd.domain.qa import pluralize
from builderd.mcp.app_data import last_part, mark
from builderd.mcp.calls import Call
from builderd.mcp.results import CommandResult, Logs, SshAccess, result
from builderd.mcp.tools.arguments import Name

REST_OF_LOG = "Call get_logs with a smaller tail, or with since set to a time before the first line shown."
REST_OF_OUTPUT = "Run the command with its output in a file (cmd > out.txt 2>&1), then read_file out.txt from offset 0."


async def get_logs(
    call: Call,
    deployment: Name,
    tail: Annotated[int, Field(ge=1, le=1000, description="Last lines.")] = 100,
    stream: Literal["stdout", "stderr", "build", "release"] | None = None,
    since: Annotated[datetime, Field(description="RFC 3339 with a time zone.")] | None = None,
) -> Annotated[CallToolResult, Logs]:
    """Read the last lines of the app's and the installer's output. Values of credentials are masked."""
    builder = await call.deployment(deployment)
    lines = [line async for line in builder.logs(tail=tail, stream=stream, since=since)]
    text = "\n".join(f"{line.time:%Y-%m-%dT%H:%M:%SZ} v{line.version} {line.stream} {line.text}" for line in lines)
    part = last_part(text)
    shown = Logs(
        lines=mark(part.text, "log"),
        count=len(lines),
        left_out_characters=part.left_out,
        rest=REST_OF_LOG if part.left_out else "",
    )
    text = f"{pluralize(len(lines), 'line')} of {builder.name}.{_cut(part.left_out, shown.rest)}"
    return result(text, shown, quoted=shown.lines)


async def exec_command(
    call: Call,
    deployment: Name,
    command: Annotated[str, Field(description="For /bin/sh, in the app's folder.")],
    timeout: Annotated[int, Field(ge=1, le=3600, description="In seconds; then the exit code is 124.")] = 60,
    stdin: str = "",
    cwd: str | None = None,
    env: dict[str, str] | None = None,
) -> Annotated[CallToolResult, CommandResult]:
    """Run a shell command beside the app in its sandbox. Values of credentials are masked in its output."""
    builder = await call.deployment(deployment)
    async with call.progress("the command"):
        ended = await builder.exec(command, timeout=timeout, stdin=stdin, cwd=cwd, env=env)
    part = last_part(ended.output)
    rest = REST_OF_OUTPUT if part.left_out or ended.truncated else ""
    shown = CommandResult(
        exit_code=ended.exit_code,
        output=mark(f"{part.text}\n{ended.hint}" if ended.hint else part.text, "command"),
        left_out_characters=part.left_out,
        rest=rest,
    )
    return result(f"Exit code {ended.exit_code}.{_cut(part.left_out, rest)}", shown, quoted=shown.output)


async def create_ssh(
    call: Call, deployment: Name, expires_minutes: Annotated[int, Field(ge=5, le=10_080)] = 60
) -> Annotated[CallToolResult, SshAccess]:
    """Make a login by SSH for the user, which ends by itself. The command contains it: show it to the user alone."""
    builder = await call.deployment(deployment)
    grant = await builder.ssh(expires_minutes=expires_minutes)
    shown = SshAccess(
        command=grant.ssh_command,
        expires_at=grant.expires_at.isoformat(),
        host=grant.host,
        port=grant.port,
        known_hosts=grant.known_hosts,
    )
    return result(f"Until {shown.expires_at}: {shown.command}", shown)


def _cut(left_out: int, rest: str) -> str:
    return f" {left_out} characters before these are left out. {rest}" if left_out else ""
