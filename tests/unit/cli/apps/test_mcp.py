"""``builderd mcp``: tools over stdio for the service in use, and the entry for agents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

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
