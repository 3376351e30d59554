"""Entries for the configuration files of agents. Pure: others read and write the files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    return _toml(text, command, env) if not agent.key else _json(agent, text, command, env)


def _json(agent: Agent, text: str, command: Sequence[str], env: Mapping[str, str]) -> str:
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
