"""Entries in the configuration files of agents: what is there stays, a second run changes nothing."""

from __future__ import annotations

import json
import tomllib

import pytest

from builderd.cli.apps.mcp import AGENTS, with_entry

COMMAND = ["/usr/bin/builderd", "mcp"]


@pytest.mark.parametrize("name", AGENTS)
def test_an_entry_is_added_once(name: str) -> None:
    once = with_entry(AGENTS[name], "", COMMAND, {"BUILDERD_URL": "http://x"})
    assert with_entry(AGENTS[name], once, COMMAND, {"BUILDERD_URL": "http://x"}) == once
    read = json.loads(once) if AGENTS[name].key else tomllib.loads(once)
    entry = read[AGENTS[name].key or "mcp_servers"]["builderd"]
    assert (entry["command"], entry["args"]) == ("/usr/bin/builderd", ["mcp"])
    assert entry["env"] == {"BUILDERD_URL": "http://x"}


def test_other_settings_stay() -> None:
    before = json.dumps({"theme": "dark", "mcpServers": {"other": {"command": "x"}, "builderd": {"command": "old"}}})
    after = json.loads(with_entry(AGENTS["cursor"], before, COMMAND, {}))
    assert after["theme"] == "dark"
    assert after["mcpServers"] == {"other": {"command": "x"}, "builderd": {"command": COMMAND[0], "args": ["mcp"]}}
    toml = (
        'model = "m"\n\n[mcp_servers.builderd]\ncommand = "old"\n\n[mcp_servers.builderd.env]\nA = "1"\n'
        "\n[tools]\nx = 1\n"
    )
    read = tomllib.loads(with_entry(AGENTS["codex"], toml, COMMAND, {}))
    assert (read["model"], read["tools"]) == ("m", {"x": 1})
    assert read["mcp_servers"]["builderd"] == {"command": COMMAND[0], "args": ["mcp"]}


@pytest.mark.parametrize("text", ["{", "[]", '{"mcpServers": 1}'])
def test_a_file_of_another_shape_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="by hand"):
        with_entry(AGENTS["cursor"], text, COMMAND, {})
