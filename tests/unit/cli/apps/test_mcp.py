"""``builderd mcp``: tools over stdio for the service in use, and the entry for agents."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from builderd.cli.apps.mcp import AGENTS, with_entry
from builderd.cli.group import builderd


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("BUILDERD_URL", "BUILDERD_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def run(*words: str, **options: Any) -> Any:
    return CliRunner().invoke(builderd, ["mcp", *words], prog_name="builderd", **options)


def test_install_shows_asks_and_writes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = project / ".mcp.json"
    unasked = run("install", "claude-code")
    assert (unasked.exit_code, file.exists()) == (4, False)
    assert unasked.stderr.endswith("Next: builderd mcp install claude-code --yes\n")
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True)
    refused = run("install", "claude-code", input="n\n")
    assert refused.exit_code == 1
    assert '"mcpServers"' in refused.output
    assert not file.exists()
    assert run("install", "claude-code", input="y\n").exit_code == 0
    assert json.loads(file.read_text())["mcpServers"]["builderd"]["args"][-1] == "mcp"
    assert "so already" in run("install", "claude-code").output


def test_install_writes_a_token_only_on_request_and_shows_it_never(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUILDERD_URL", "http://x")
    monkeypatch.setenv("BUILDERD_TOKEN", "bd_secret")
    file = project / ".mcp.json"
    assert run("install", "claude-code", "--yes").exit_code == 0
    assert "bd_secret" not in file.read_text()
    done = run("install", "claude-code", "--yes", "--with-token")
    assert "bd_secret" not in done.output
    assert "bd_secret" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


def test_without_a_service_it_says_how_to_sign_in(project: Path) -> None:
    done = run()
    assert done.exit_code == 3
    assert "builderd login" in done.stderr


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
