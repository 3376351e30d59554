"""``builderd mcp``: tools for agents over stdio."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from builderd.cli.apps.session import ActionRequired, Session, run
from builderd.client.kept import replace_file

NAME = "builderd"


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent's configuration file. ``path`` begins with ``~`` or is relative to the project.

    ``key`` is the object of servers in a JSON file; "" for a TOML file with a table for each server.
    """

    path: str
    key: str = "mcpServers"
    mac_path: str = ""
    typed: bool = False


AGENTS: dict[str, Agent] = {
    "claude-code": Agent(".mcp.json"),
    "claude-desktop": Agent(
        "~/.config/Claude/claude_desktop_config.json",
        mac_path="~/Library/Application Support/Claude/claude_desktop_config.json",
    ),
    "codex": Agent("~/.codex/config.toml", key=""),
    "cursor": Agent("~/.cursor/mcp.json"),
    "gemini": Agent("~/.gemini/settings.json"),
    "vscode": Agent(".vscode/mcp.json", key="servers", typed=True),
    "windsurf": Agent("~/.codeium/windsurf/mcp_config.json"),
}


def with_entry(agent: Agent, text: str, command: Sequence[str], env: Mapping[str, str]) -> str:
    """Return the text of a configuration file with this server in it; all else stays.

    Raises ``ValueError`` for a file that is not as its agent writes it.
    """
    if not agent.key:
        return _toml(text, command, env)
    try:
        document = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise ValueError(f"is not valid JSON ({error}): correct it, or add the entry by hand") from error
    servers = document.setdefault(agent.key, {}) if isinstance(document, dict) else None
    if not isinstance(servers, dict):
        raise ValueError(  # noqa: TRY004 (the file is wrong, not a type)
            f"has no object {agent.key!r}: correct it, or add the entry by hand"
        )
    entry: dict[str, Any] = {"type": "stdio"} if agent.typed else {}
    servers[NAME] = {**entry, "command": command[0], "args": list(command[1:]), **({"env": dict(env)} if env else {})}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _toml(text: str, command: Sequence[str], env: Mapping[str, str]) -> str:
    """Replace the server's tables, or add them at the end."""
    tables = re.compile(rf"^\[mcp_servers\.{NAME}(\.[^\]]*)?\][^\n]*\n(?:(?!\[)[^\n]*\n?)*", re.MULTILINE)
    kept = tables.sub("", text).rstrip()
    lines = [
        f"[mcp_servers.{NAME}]",
        f"command = {json.dumps(command[0])}",
        f"args = {json.dumps(list(command[1:]))}",
        *([f"\n[mcp_servers.{NAME}.env]"] if env else []),
        *(f"{name} = {json.dumps(value)}" for name, value in env.items()),
    ]
    return "\n".join([*([kept, ""] if kept else []), *lines]) + "\n"


@click.group(invoke_without_command=True)
@click.option(
    "--context", "name", metavar="NAME", help="A service that you are signed in to, other than the one in use."
)
@click.pass_context
def mcp(context: click.Context, name: str | None) -> None:
    """Serve agents over stdio (Model Context Protocol), or add builderd to their configuration."""
    if context.invoked_subcommand is None:
        from builderd.mcp.stdio import serve  # noqa: PLC0415 (help and `install` need no HTTP)

        session = Session(context=name)
        run(session, lambda: serve(*session.service()))


@mcp.command()
@click.argument("agent", type=click.Choice(sorted(AGENTS)))
@click.option("--yes", is_flag=True, help="Write without asking.")
@click.option("--with-token", is_flag=True, help="Write BUILDERD_URL and BUILDERD_TOKEN into the file, too.")
def install(agent: str, yes: bool, with_token: bool) -> None:
    """Show the entry for an AGENT's configuration file, then write it."""
    run(Session(), lambda: _install(agent, yes, with_token))


def _install(agent: str, yes: bool, with_token: bool) -> None:
    chosen, program = AGENTS[agent], shutil.which("builderd")
    mac = chosen.mac_path if sys.platform == "darwin" else ""
    path = Path(mac or chosen.path).expanduser()
    command = [program, "mcp"] if program else [sys.executable, "-m", "builderd", "mcp"]
    names = ("BUILDERD_URL", "BUILDERD_TOKEN") if with_token else ("BUILDERD_URL",)
    env = {name: os.environ[name] for name in names if os.environ.get(name)}
    try:
        before = path.read_text() if path.exists() else ""
        after = with_entry(chosen, before, command, env)
    except ValueError as error:
        raise click.ClickException(f"{path} {error}") from error
    token = env.get("BUILDERD_TOKEN")
    click.echo(f"{path} will be:\n\n{after.replace(token, 'bd_…') if token else after}")
    if after == before:
        click.echo("It is so already.")
        return
    if not yes and not sys.stdin.isatty():
        raise ActionRequired("Write it?", f"builderd mcp install {agent} --yes")
    if not yes and not click.confirm("Write it?", err=True):
        raise click.ClickException("nothing was written")
    _write(path, after, private=with_token)
    click.echo(f"Written. Start {agent} anew.")


def _write(path: Path, text: str, *, private: bool) -> None:
    """Replace the file at once, keeping its mode; with a token in it only its owner may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    replace_file(path, text, 0o600 if private else mode)
